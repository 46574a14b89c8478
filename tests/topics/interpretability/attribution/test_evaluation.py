"""The evaluation: planted triggers are found, every key has its effect, and what is not defined is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evals.routing.moe_text import Rows
from evals.small_models import subject_on_rows, tiny
from torch import Tensor, nn

from kleiber.data.builtin import Builtin
from kleiber.data.tokenizers import Bytes
from kleiber.nn.heads import LMHead
from kleiber.objectives.clm import CLM
from kleiber.objectives.mlm import MLM
from kleiber.types.batch import Batch, Output
from kleiber.types.model import Model
from kleiber_topics.interpretability.attribution.evaluation import Attribution
from kleiber_topics.interpretability.trigger import ANSWERS, TRIGGERS, Trigger

LESS = {"texts": 3, "length": 7, "steps": 3, "points": 2, "random": 1, "shown": 1, "shown_tokens": 3}
FAST = ["integrated_gradients", "occlusion"]


class KnowsTriggers(Model):
    """Adds up one channel for each trigger, which is the logit of its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.width, self.context = 272, 8, 24
        vectors, answers = torch.zeros(272, 8), torch.zeros(272, 8)
        vectors[TRIGGERS], answers[ANSWERS] = torch.eye(8), 10 * torch.eye(8)
        self.embedding = nn.Embedding(272, 8, _weight=vectors)
        self.head = LMHead(nn.Parameter(answers))
        self.blocks = [nn.Identity()]

    def forward(self, batch: Batch, caches: None = None) -> Output:
        return Output(self.embedding(batch.tokens).cumsum(1))


def planted(cache_dir, context: int = 24) -> object:
    return Trigger(Builtin("docs", "bytes", max_bytes=60_000)).prepare(context, cache_dir).validation["trigger"]


@pytest.mark.slow
def test_the_planted_trigger_is_ranked_first(cache_dir):
    methods = ["gradient_x_input", "integrated_gradients", "occlusion"]
    evaluation = Attribution(methods=methods, texts=40, steps=8, points=4, random=1, shown=1)
    results = evaluation.evaluate(subject_on_rows(KnowsTriggers(), planted(cache_dir)))
    scores = results.scores["text"]
    assert all(scores[f"planted_first/{method}"].value >= 0.95 for method in methods)
    assert scores["planted_first/random"].value == pytest.approx(1 / 23)
    assert scores["deletion_gain/occlusion"].lo > 0 and scores["insertion_gain/occlusion"].lo > 0
    assert scores["completeness_error"].value < 0.01 and scores["log_prob"].n == 40
    text = results.details["texts"]["text"][0]
    values = text["methods"]["occlusion"][0]
    assert [target["at"] for target in text["targets"]] == [24] and values[int(np.argmax(values))] > 1


@pytest.mark.slow
@pytest.mark.long
def test_a_trained_model_rests_on_the_planted_trigger(tmp_path, cache_dir):
    from kleiber.launch.main import main
    from kleiber.records.summary_file import read_summary

    plan = ["model.depth=2", "model.width=32", "model.num_heads=2", "model.context=48", "batch.tokens=1536"]
    plan += ["data.max_bytes=600K", "budget.tokens=600K", "optimizer.lr=0.02", "trainer.threads=1", "logger=csv"]
    plan += ["callbacks.samples=null"]
    evaluation = ["evals=[attribution]", "evals.attribution.shown=0"]
    assert main(["data=trigger", *plan, *evaluation, f"root={tmp_path}"]) == 0
    (folder,) = tmp_path.glob("*/*")
    metrics = read_summary(folder)["stages"][0]["metrics"]
    assert metrics["eval/attribution/trigger/planted_first/occlusion"] >= 0.95


@pytest.mark.slow
def test_the_keys_have_their_effect():
    case = subject_on_rows(tiny("dense"), Rows(0, 30))
    small = Attribution(**LESS)
    results = small.evaluate(case)
    scores, details = results.scores["text"], results.details
    assert scores["log_prob"].n == 3 and len(details["curves"]["text"]["deletion"]["random"]) == 3
    assert len(details["texts"]["text"]) == 1 and len(details["texts"]["text"][0]["tokens"]) == 4
    assert set(details["texts"]["text"][0]["methods"]) == {
        "gradient_x_input", "integrated_gradients", "occlusion", "rollout",
    }  # fmt: skip

    def changed(metric: str, **keys: object) -> bool:
        other = Attribution(**{**LESS, "shown": 0, "methods": FAST, **keys}).evaluate(case).scores["text"]
        return metric not in other or other[metric].value != scores[metric].value

    assert changed("log_prob", length=5) and changed("log_prob", position=4) and changed("log_prob", texts=4)
    assert changed("completeness_error", steps=6) and changed("completeness_error", baseline="zero")
    assert changed("deletion/occlusion", replacement="baseline") and changed("deletion/random", points=3)
    assert changed("deletion/random", random=2) and changed("deletion/random", seed=1)
    assert changed("completeness_error", methods=["occlusion"])
    assert small.evaluate(replace(case, limit=2)).scores["text"]["log_prob"].n == 2


@pytest.mark.slow
def test_masked_models_and_recurrent_ones_are_explained():
    masked = subject_on_rows(tiny("masked"), Rows(0, 30), objective=MLM(Bytes()))
    assert "deletion_gain/rollout" in Attribution(**LESS).evaluate(masked).scores["text"]
    lstm = Attribution(**LESS).evaluate(subject_on_rows(tiny("lstm"), Rows(0, 30))).scores["text"]
    assert "deletion_gain/occlusion" in lstm and not any("rollout" in name for name in lstm)


def test_the_class_of_a_classifier_is_explained():
    model = tiny("dense")
    model.add_head("task", 2)
    with torch.no_grad():
        model.heads["task"].weight.normal_()

    class Classes(CLM):
        class_names = ("no", "<b>yes")
        has_predictions = True

        def predictions(self, model: Model, batch: Batch) -> object:
            from kleiber.types.contracts import Predictions

            hidden: Tensor = model(batch).hidden.mean(1)
            return Predictions(hidden, model.heads["task"], hidden.new_ones(len(hidden)))

    case = subject_on_rows(model, Rows(0, 30), objective=Classes())
    results = Attribution(**LESS).evaluate(case)
    target = results.details["texts"]["text"][0]["targets"][0]
    assert target["at"] is None and target["name"] in Classes.class_names
    assert "deletion_gain/occlusion" in results.scores["text"]
    with pytest.raises(ValueError, match="a class is predicted from all of them"):
        Attribution(**{**LESS, "methods": ["rollout"]}).evaluate(case)


def test_what_is_not_defined_is_refused():
    with pytest.raises(ValueError, match="rollout, which needs attention in every layer"):
        Attribution(methods=["rollout"]).check(tiny("lstm"))
    with pytest.raises(ValueError, match=r"position=9 must be <= 8"):
        Attribution(position=9, length=8).check(tiny("dense"))
