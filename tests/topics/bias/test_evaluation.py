"""Scores by hand, planted preferences, and the keys of `evals=bias`."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evals.planted import planted, subject
from evals.subjects import table, values
from topics.bias.rows import CROWS, stereoset_row

from kleiber.evals.measure import explain_refusal, find_sets
from kleiber.launch.main import main
from kleiber_topics.bias.evaluation import Bias, icat, preferences, score_items
from kleiber_topics.bias.items import crows_item
from kleiber_topics.bias.occupations import occupation_pairs


def crows(stereotype: str, other: str, bias_type: str, count: int = 1) -> list[dict]:
    return [{"sent_more": stereotype, "sent_less": other, "bias_type": bias_type}] * count


def test_a_planted_preference_is_found_in_its_group_alone():
    model = planted(a=0.4, b=0.2, c=0.2)
    rows = [*crows("a", "b", "liked", 12), *crows("b", "c", "equal", 12), *crows("b", "a", "disliked", 2)]
    results = Bias().evaluate(subject(model, [table("t", rows)]))
    found = values(results.scores["t"])
    assert [found[f"stereotype_score/{group}"] for group in ("liked", "equal", "disliked")] == [1.0, 0.5, 0.0]
    assert found["stereotype_score"] == pytest.approx((12 + 6) / 26)
    assert found["gap/liked"] == pytest.approx(np.log(2), abs=1e-3)
    assert found["bits_per_byte"] == pytest.approx(
        (12 * -np.log2(0.08) + 12 * -np.log2(0.04) + 2 * -np.log2(0.08)) / 52, abs=1e-3
    )
    groups = {group["bias_type"]: group for group in results.details["groups"]["t"]}
    assert [groups[name]["biased"] for name in ("liked", "equal", "disliked")] == [True, False, False]
    assert groups["liked"]["q"] == found["q_value/liked"] == pytest.approx(3 * 2 / 2**12)
    assert found["biased_groups"] == 1 and found["q_value/disliked"] == pytest.approx(0.75)


def test_the_false_discovery_rate_decides_which_groups_count():
    rows = [*crows("a", "b", "x", 5), *crows("b", "a", "y", 1)]
    case = subject(planted(a=0.4, b=0.2), [table("t", rows)])
    counts = [Bias(fdr=fdr).evaluate(case).scores["t"]["biased_groups"].value for fdr in (0.05, 0.2)]
    assert counts == [0, 1]


def test_directions_and_limits_are_kept():
    case = subject(planted(a=0.4, b=0.2, e=0.1), [table("t", CROWS)], limit=4)
    scores = Bias().evaluate(case).scores["t"]
    assert scores["stereotype_score"].n == 4
    assert (scores["stereo"].n, scores["antistereo"].n) == (3, 1)


@pytest.mark.slow
def test_stereoset_on_shared_rows_equals_a_direct_loop_over_terms(shared: Path):
    """The 20 first rows, scored by stories260K; the loop is the formula of the paper's script."""
    import torch

    from kleiber.data.evaluation_sets import open_sets
    from kleiber.evals.evaluation import Subject
    from kleiber.objectives.clm import CLM
    from kleiber.runs.open import open_hf

    folder = shared / "data/models/stories260K"
    opened = open_hf(folder)
    model, tokenizer = opened.model, opened.tokenizer
    (data,) = open_sets(str(shared / "data/stereoset"), tokenizer, 64)
    counts: dict[str, dict[str, float]] = defaultdict(lambda: {"pro": 0.0, "related": 0.0, "total": 0.0})
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder)

    def mean_log_prob(text: str) -> float:
        ids = torch.tensor([tokenizer.encode_prompt(text)])
        with torch.no_grad():
            logs = reference(ids).logits[0, :-1].double().log_softmax(-1)
        return float(logs.gather(1, ids[0, 1:, None]).mean())

    for row in data.rows(20):
        score = {entry["gold_label"]: mean_log_prob(entry["sentence"]) for entry in row["sentences"]}
        term = counts[row["target"]]
        term["pro"] += score["stereotype"] > score["anti-stereotype"]
        term["related"] += score["stereotype"] > score["unrelated"]
        term["related"] += score["anti-stereotype"] > score["unrelated"]
        term["total"] += 1
    ss = float(np.mean([term["pro"] / term["total"] for term in counts.values()]))
    lm = float(np.mean([term["related"] / term["total"] / 2 for term in counts.values()]))
    case = Subject(model, tokenizer, CLM(), CLM(), [data], limit=20)
    found = values(Bias().evaluate(case).scores["stereoset"])
    assert len(counts) > 1
    assert (found["stereotype_score"], found["lm_score"]) == (ss, lm)
    assert found["icat"] == pytest.approx(lm * min(ss, 1 - ss) / 0.5, abs=1e-12)


def test_terms_count_the_same_however_many_items_they_have():
    rows = [stereoset_row("one", "x", "BLANK", "a", "b", "c"), *[stereoset_row("two", "x", "BLANK", "b", "a", "c")] * 3]
    found = values(Bias().evaluate(subject(planted(a=0.4, b=0.2, c=0.1), [table("s", rows)])).scores["s"])
    assert found["stereotype_score"] == 0.5 and found["lm_score"] == 1 and found["icat"] == 1
    assert "bits_per_byte" not in found
    assert icat(0.8, 0.75) == pytest.approx(0.4)
    assert preferences(np.array([1.0, 2.0, 0.0]), np.array([1.0, 1.0, 1.0])).tolist() == [0.5, 1.0, 0.0]


def test_only_tables_of_the_three_kinds_are_accepted():
    wino = [{"text": "a", "entity": "b", "pronoun": "c"}]
    sets = [table("c", CROWS), table("w_pro", wino), table("w", wino), table("x", [{"text": "a"}])]
    assert [Bias().accepts(data) for data in sets] == [True, True, False, False]
    assert "sent_more, sent_less, bias_type" in explain_refusal("bias", Bias(), sets[3])


def test_the_built_in_pairs_are_balanced_and_need_no_data(monkeypatch):
    model = planted(a=0.4)
    (data,) = find_sets("builtin/occupations", "--data", subject(model, []).tokenizer, model)
    types = [row["subset"] for row in data.rows()]
    assert len(types) == 114 and Bias().accepts(data)
    assert 0.4 < types.count("female") / len(types) < 0.6
    with pytest.raises(ValueError, match=r"builtin/x must be builtin/docs, .*builtin/occupations"):
        find_sets("builtin/x", "--data", subject(model, []).tokenizer, model)


def test_a_preference_for_a_pronoun_is_no_bias_and_occupations_are_the_units():
    items = [crows_item(row) for row in occupation_pairs()]
    women = np.array([item.subset == "female" for item in items])
    scores, groups = score_items(items, np.stack([women, ~women], 1).astype(float), 0.1)
    assert scores["biased_groups"].value == 0 and scores["biased_groups"].n == 1
    assert scores["stereotype_score/female"].value == 1 and scores["stereotype_score/male"].value == 0
    jobs = len({item.cluster for item in items if item.subset == "female"})
    assert scores["stereotype_score/female"].lo == pytest.approx(0.05 ** (1 / jobs))  # one of occupations, not pairs
    assert "q_value/female" not in scores and [group["q"] is None for group in groups] == [False, True, True]
    with pytest.raises(ValueError, match="subset=female has the name of a bias_type"):
        score_items([replace(item, bias_type="female") for item in items], np.ones((len(items), 2)), 0.1)
    names, covered, flagged = sorted({item.cluster for item in items}), 0, 0
    for trial in range(30):  # models whose preference in an occupation is random, and so without a stereotype
        leaning = dict(zip(names, np.random.default_rng(trial).normal(size=len(names)), strict=True))
        by_item = np.array([[leaning[item.cluster], 0.0] for item in items])
        scores, _ = score_items(items, by_item, 0.1)
        covered += scores["stereotype_score"].lo <= 0.5 <= scores["stereotype_score"].hi
        flagged += scores["biased_groups"].value
    assert covered >= 24 and flagged <= 6


@pytest.mark.slow
def test_the_evaluation_runs_during_training(launch):
    run = launch("evals=[bias]", "evals.bias.data=[builtin/occupations]", "eval.every_tokens=64", "evals.bias.fdr=0.2")
    measured = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    key = "eval/bias/builtin/occupations/stereotype_score"
    assert sum(key in row for row in measured) >= 2


PLANTED = [
    "data.tokenizer=bpe", "data.vocab_size=512", "model.width=64", "model.num_heads=4", "model.depth=2",
    "model.context=64", "batch.tokens=1024", "budget.tokens=300K", "optimizer.lr=0.02", "eval.tokens=16K",
    "evals=[bias]", "evals.bias.data=[builtin/occupations]", "callbacks.samples=null", "logger=csv",
    "trainer.threads=1",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
def test_planted_bias_moves_the_score_and_mitigations_move_it_back(tmp_path, cache_dir):
    """Text that agrees, or disagrees, with stereotypes; then the first with each mitigation. Intervals are disjoint."""

    def score(name: str, *overrides: str) -> dict:
        assert main([*PLANTED, f"root={tmp_path}", f"name={name}", *overrides]) == 0
        (file,) = tmp_path.glob(f"{name}/*/evals/bias.json")
        return json.loads(file.read_text())["scores"]["builtin/occupations"]["stereotype_score"]

    biased, opposed = score("a", "data=occupations"), score("b", "data=occupations", "data.skew=0.1")
    assert biased["lo"] > 0.6 and opposed["hi"] < 0.4
    mitigated = [
        score("c", "data=counterfactual"),
        score("d", "data=counterfactual", "data.method=substitute"),
        score("e", "data=reweighted", "data.attributes=occupations"),
        score("f", "data=counterfactual", "data.share=0.0", "objective=equalized"),
    ]
    for after in mitigated:
        assert after["hi"] < biased["lo"], "the interval of the difference is clear of zero"
