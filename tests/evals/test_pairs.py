"""Minimal pairs and last words: planted log-probabilities, and lm-eval and transformers on the same rows."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evals.planted import planted, subject
from evals.subjects import table

from kleiber.evals import Pairs, pairs
from kleiber.evals.evaluation import Score, Subject
from kleiber.evals.pairs import perplexity

PAIRS = [
    {"sentence_good": "aa", "sentence_bad": "bb"},
    {"sentence_good": "bbb", "sentence_bad": "aaaaa"},
    {"sentence_good": "ab", "sentence_bad": "ba"},
]
LAMBADA = [{"text": "b a a"}, {"text": "a b"}, {"text": "aa"}]


@pytest.mark.parametrize("causal", [True, False])
def test_scores_are_those_of_planted_log_probabilities(causal):
    """p(a) = 1/2 and p(b) = 1/4 on their own, so a pseudo-log-likelihood is a log-likelihood."""
    scores = Pairs(prefix="").evaluate(subject(planted(causal, a=0.5, b=0.25), [table("t", PAIRS)])).scores["t"]
    difference = [2 * math.log(2), 3 * math.log(0.25) - 5 * math.log(0.5), 0]
    assert scores["accuracy"].value == pytest.approx(1.5 / 3) and scores["chance"].value == 0.5
    assert scores["margin"].value == pytest.approx(sum(difference) / 3, abs=5e-4)
    assert scores["margin_per_byte"].value == pytest.approx((difference[0] / 2 + difference[1] / 4) / 3, abs=5e-4)


def test_the_prefix_stands_in_front_of_each_sentence_of_a_causal_model(monkeypatch):
    model, rows = planted(a=0.5, b=0.25), [table("t", [{"sentence_good": "a", "sentence_bad": "bb"}])]
    encoded, encode = [], pairs.encode_pairs
    monkeypatch.setattr(
        pairs, "encode_pairs", lambda tokenizer, texts: encoded.append(texts) or encode(tokenizer, texts)
    )
    for prefix in ("", "ab"):
        Pairs(prefix=prefix).evaluate(subject(model, rows))
    Pairs().evaluate(subject(model, rows))
    assert encoded == [[("", f"{p}a"), ("", f"{p}bb")] for p in ("", "ab", " ")]


def test_the_last_word_is_what_greedy_decoding_must_give():
    """The most probable byte is the space, then a."""
    model = planted(a=0.3, b=0.2)
    scores = Pairs().evaluate(subject(model, [table("lambada", LAMBADA)])).scores["lambada"]
    log_probs = [math.log(0.5 * 0.3), math.log(0.5 * 0.2), math.log(0.5 * 0.3**2)]
    assert scores["log_prob"].value == pytest.approx(np.mean(log_probs), abs=5e-4)
    assert scores["perplexity"].value == pytest.approx(math.exp(-np.mean(log_probs)), abs=1e-4)
    assert scores["perplexity"].lo == pytest.approx(math.exp(-scores["log_prob"].hi))
    assert scores["accuracy"].value == 0 and "chance" not in scores
    assert (
        Pairs()
        .evaluate(subject(planted(a=1e-9), [table("lambada", [{"text": "a  "}])]))
        .scores["lambada"]["accuracy"]
        .value
        == 1.0
    )


def test_perplexity_has_the_bounds_of_the_log_probability_in_reverse():
    score = perplexity(Score(0.0, -math.log(2), math.log(4), 5))
    assert (score.value, score.n) == (1.0, 5) and (score.lo, score.hi) == pytest.approx((0.25, 2.0))
    assert perplexity(Score(0.0)) == Score(1.0)


def test_questions_are_scored_as_by_choice():
    from kleiber.evals import Choice

    rows = [{"ctx": "a", "endings": ["aaaa", "b"], "label": "0"}]
    model = planted(a=0.5, b=0.25)
    assert (
        Pairs().evaluate(subject(model, [table("q", rows)])).scores
        == Choice().evaluate(subject(model, [table("q", rows)])).scores
    )


def test_a_text_has_a_last_word_to_predict_where_its_name_says_so():
    text, lambada = table("wikitext", LAMBADA), table("lambada_openai", LAMBADA)
    assert not Pairs().accepts(text) and Pairs().accepts(lambada)
    assert Pairs(last_word=["wikitext"]).accepts(text) and not Pairs(last_word=["wikitext"]).accepts(lambada)
    assert Pairs().accepts(table("t", PAIRS))


def test_a_masked_model_scores_pairs_alone():
    with pytest.raises(ValueError, match=r"--evals pairs on lambada needs a causal model"):
        Pairs().evaluate(subject(planted(False, a=0.5), [table("lambada", LAMBADA)]))


def test_parts_and_their_group_are_scored():
    parts = [table("blimp/x", PAIRS[:1], "blimp"), table("blimp/y", PAIRS[1:], "blimp")]
    scores = Pairs().evaluate(subject(planted(a=0.5, b=0.25), parts)).scores
    assert set(scores) == {"blimp/x", "blimp/y", "blimp"} and scores["blimp"]["accuracy"].n == 3


# The reference: lm-eval and transformers on real rows.

LIMIT = 40
TASKS = {
    "blimp/transitive": ("blimp/transitive", "train"),
    "lambada_openai": ("lambada/lambada_openai", "test"),
    "hellaswag": ("hellaswag/hellaswag", "validation"),
}


@pytest.fixture(scope="module")
def stories(shared) -> Subject:
    from kleiber.data.pretrained_tokenizer import load_pretrained
    from kleiber.models.hf_pretrained import read_folder
    from kleiber.models.hf_twin import from_hf
    from kleiber.objectives.clm import CLM

    folder = shared / "data/models/stories260K"
    model = from_hf(read_folder(folder)).eval()
    tables = [read(shared, "blimp/transitive"), read(shared, "lambada_openai"), read(shared, "hellaswag")]
    return Subject(model, load_pretrained(str(folder)), CLM(), CLM(), tables, limit=LIMIT)


def read(shared, name):
    import pyarrow.parquet

    (path,) = (shared / "data" / name).glob("*.parquet")
    return table(name, pyarrow.parquet.read_table(path).to_pylist())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra eval (lm-eval)")
def test_scores_equal_those_of_lm_evals_tasks(stories, shared, tmp_path):
    """The tasks of lm-eval themselves, on files with the same rows."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=str(shared / "data/models/stories260K"), dtype="float32", device="cpu", batch_size=8)
    ours, home = Pairs().evaluate(stories).scores, Path(lm_eval.__file__).parent / "tasks"
    for name, (task, split) in TASKS.items():
        rows = next(data for data in stories.data if data.name == name).rows(LIMIT)
        (tmp_path / f"{Path(task).name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"dataset_kwargs": {"data_files": {split: str(tmp_path / f"{Path(task).name}.jsonl")}}}
        own = {
            "include": str(home / f"{task}.yaml"),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "training_split": split,
            **files,
        }
        (tmp_path / f"{Path(task).name}.yaml").write_text(json.dumps(own))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(model=lm, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)["results"]
    for name, found in results.items():
        assert ours[name]["accuracy"].value == pytest.approx(found["acc,none"], abs=1e-4)
        if name == "hellaswag":
            assert ours[name]["accuracy_per_byte"].value == pytest.approx(found["acc_norm,none"], abs=1e-4)
        if name == "lambada_openai":
            assert ours[name]["log_prob"].value == pytest.approx(-math.log(found["perplexity,none"]), abs=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_scores_equal_a_direct_computation_with_transformers(stories, shared):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "data/models/stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def log_prob(text: str) -> float:
        ids = torch.tensor([tokenizer(text).input_ids])
        log_probs = model(ids).logits[0, :-1].log_softmax(-1)
        return float(log_probs.gather(1, ids[0, 1:, None]).sum())

    rows = stories.data[0].rows(LIMIT)
    differences = [log_prob(row["sentence_good"]) - log_prob(row["sentence_bad"]) for row in rows]
    one = Subject(**{**vars(stories), "data": stories.data[:1]})
    scores = Pairs(prefix="").evaluate(one).scores["blimp/transitive"]
    assert scores["margin"].value == pytest.approx(np.mean(differences), abs=1e-4)
    assert scores["accuracy"].value == np.mean(np.array(differences) > 0)
