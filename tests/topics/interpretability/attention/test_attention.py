"""The evaluation finds planted heads, refuses models without attention weights, and gives every head a score."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evals.routing.moe_text import CONTEXT, VOCAB, Rows

from kleiber.data.evaluation_sets import DataSet
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.models.transformer import Transformer
from kleiber.nn.patterns import NoMixing
from kleiber.objectives.clm import CLM
from kleiber.objectives.mlm import MLM
from kleiber_topics.interpretability.attention.attention import REPEATED, Attention, head_scores, token_text

LAYERS, HEADS = 2, 2


def subject(vocab: int = 272, **options: object) -> Subject:
    torch.manual_seed(0)
    model = Transformer(vocab, depth=LAYERS, width=32, context=CONTEXT, num_heads=HEADS, **options).eval()
    data = [DataSet(name, lambda rows=rows: rows) for name, rows in {"low": Rows(0, 15), "high": Rows(15, 30)}.items()]
    return Subject(model, Bytes(), CLM(), CLM(), data, rows=5)


@pytest.mark.slow
def test_every_head_has_every_score_for_every_data_set():
    results = Attention().evaluate(subject())
    assert list(results.scores) == ["low", "high", REPEATED]
    low = results.scores["low"]
    for metric in ("entropy", "normalized_entropy", "max_logit", "sink", "distance", "previous_token"):
        values = [low[f"{metric}/layer{n}/head{h}"].value for n in range(LAYERS) for h in range(HEADS)]
        assert low[f"{metric}/max"].value == max(values)
        if metric != "max_logit":
            assert low[f"{metric}/mean"].value == pytest.approx(np.mean(values))
            assert low[f"{metric}/mean"].lo <= low[f"{metric}/mean"].value <= low[f"{metric}/mean"].hi
        matrix = results.details["heads"]["low"][metric]
        assert [value for layer in matrix.values() for value in layer] == values
    assert low["normalized_entropy/min"].value <= low["normalized_entropy/mean"].value
    assert low["sink/mean"].n == 12 and low["max_logit/max"].lo is None
    assert {"repeat_gain", "induction/mean", "induction/layer1/head1"} <= set(results.scores[REPEATED])
    assert [low[f"lens_loss/layer{n}"].value for n in range(3)] == results.details["lens"]["low"]["loss"]


@pytest.mark.slow
def test_a_head_whose_logits_are_multiplied_by_20_is_found():
    healthy, broken = subject(qk_norm=False), subject(qk_norm=False)
    size = 32 // HEADS
    with torch.no_grad():
        broken.model.blocks[1].attention.qkv.weight[size : 2 * size] *= 20  # the queries of head 1
    before, after = (Attention().evaluate(case).scores["low"] for case in (healthy, broken))
    changed = {name: after[name].value / before[name].value for name in before if name.startswith("max_logit/layer")}
    expected = {name: 20.0 if name == "max_logit/layer1/head1" else 1.0 for name in changed}
    assert changed == pytest.approx(expected, rel=1e-3)
    assert after["max_logit/max"] == after["max_logit/layer1/head1"]
    assert after["normalized_entropy/min"] == after["normalized_entropy/layer1/head1"]


def test_masked_models_have_no_lens_and_no_induction():
    masked = replace(subject(causal=False), objective=MLM(Bytes()))
    results = Attention().evaluate(masked)
    assert list(results.scores) == ["low", "high"] and results.details["lens"] == {}
    assert not any(name.startswith("lens") for name in results.scores["low"])


@pytest.mark.slow
def test_the_keys_have_their_effect():
    case = subject()
    fewer = Attention(text_tokens=3, period=4, repeats=2, seed=1)
    results = fewer.evaluate(case)
    assert len(results.details["lens"]["low"]["tokens"]) == 3
    assert results.scores[REPEATED]["repeat_gain"].n == 2
    rows = fewer.repeated_tokens(case.model, case.tokenizer, "cpu")
    assert rows.shape == (2, 9) and torch.equal(rows[:, 1:5], rows[:, 5:]) and (rows[:, 0] == Bytes.eos).all()
    assert not torch.equal(rows, Attention(period=4, repeats=2).repeated_tokens(case.model, case.tokenizer, "cpu"))
    read: list[int | None] = []
    data = DataSet("low", lambda: Counted(read))
    Attention(tokens=77).evaluate(replace(case, data=[data]))
    Attention(tokens=77).evaluate(replace(case, data=[data], tokens=5))
    assert set(read) == {77, 5, 1}


class Counted(Rows):
    def __init__(self, read: list[int | None]) -> None:
        super().__init__(0, 15)
        self.read = read

    def first(self, tokens: int | None) -> Rows:
        self.read.append(tokens)
        return self


@pytest.mark.parametrize(
    ("evaluation", "model", "message"),
    [
        (
            Attention(),
            Transformer(VOCAB, 1, 32, context=8, attention=NoMixing),
            "this model, Transformer with NoMixing, has none",
        ),
        (Attention(period=4), Transformer(VOCAB, 1, 32, context=8), r"attention\.period=4 must be <= 3"),
    ],
)
def test_what_cannot_be_read_is_refused(evaluation, model, message):
    with pytest.raises(ValueError, match=message):
        evaluation.check(model)


@pytest.mark.slow
def test_models_of_transformers_are_refused_by_name():
    from kleiber.models.hf import HFModel

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = HFModel(32, "gpt2", weights="random", config=sizes, context=16)
    with pytest.raises(ValueError, match="a gpt2 is computed by transformers"):
        Attention().check(model)


@pytest.mark.slow
def test_metrics_without_a_value_are_left_out_and_page_and_figures_are_drawn():
    nowhere = {"previous_token": {0: np.full((3, 2), np.nan)}, "sink": {0: np.array([[0.1, np.nan], [0.3, 0.5]])}}
    scores = head_scores(nowhere)
    assert not any(name.startswith("previous_token") for name in scores)
    assert scores["sink/layer0/head0"].value == pytest.approx(0.2) and scores["sink/layer0/head1"].n == 1
    results = Attention().evaluate(subject())
    record = {"details": results.details}
    assert "max_logit" in Attention().figures(record, None) and "Logit lens: low" in Attention().page(record)


def test_parts_of_characters_are_shown_by_their_number():
    assert token_text(Bytes(), ord("a")) == "a" and token_text(Bytes(), 200) == "<200>"
    assert token_text(Bytes(), Bytes.eos) == "<256>"


def test_a_space_at_the_start_of_a_word_is_kept(shared):
    from kleiber.data.pretrained_tokenizer import load_pretrained

    llama = load_pretrained(str(shared / "data/models/stories260K"))
    assert "".join(token_text(llama, i) for i in llama.encode("Once upon a time"))[-11:] == "upon a time"
