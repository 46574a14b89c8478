"""Forgetting at equal score, read off planted paths, at the rate that forgets least of those that reach the score."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from kleiber_topics.rewards.matched import matched_forgetting, path_of


def run(arm: str, rate: float, seed: int, slope: float, last: float, **data):
    """A run whose score rises from 0.2 to `last` in four evaluations, and its loss by `slope` times that."""
    scores = [0.2 + (last - 0.2) * part / 4 for part in range(5)]
    rows = [
        {
            "step": 10 * i,
            "eval/reward/sums/mean": score,
            "eval/perplexity/text/loss": 2.0 + slope * (score - 0.2),
            "eval/divergence/sums/kl": 2 * slope * (score - 0.2),
        }
        for i, score in enumerate(scores)
    ]
    start = {name: value for name, value in rows[0].items() if name != "step"}
    stage = {
        "start_metrics": start, "curve": [{"step": 5, "watch/text/loss": 1.0}, *rows[1:]], "steps": 40, "samples": 40,
        "flops": {"executed": 400.0, "model": 300.0},
    }  # fmt: skip
    config = {"optimizer": {"lr": rate}, "seed": seed, "data": {"_target_": "x.Right", **data}, "study": {"arm": arm}}
    return SimpleNamespace(
        name=f"{arm}-{rate}-{seed}", stage=stage, config=config, finished=True, folder=Path(arm), overrides=[],
        summary={},
    )  # fmt: skip


def runs():
    listed = [run("written", 0.01, 0, slope=0.1, last=0.8)]  # its other seed is missing
    for seed in (0, 1):
        listed.append(run("sft", 0.1, seed, slope=1.0, last=1.0))
        listed.append(run("sft", 0.01, seed, slope=0.5 + seed / 10, last=0.6))
        listed.append(run("sft", 0.001, seed, slope=0.1, last=0.6 - 0.4 * seed))  # the second seed reaches nothing
        listed.append(run("written", 0.1, seed, slope=0.2, last=0.8, prompts=4, samples=2))
    return listed


def values(table, measure, **place):
    part = table[table["measure"] == measure]
    for key, value in place.items():
        part = part[part[key] == value]
    return part.set_index("seed")["value"].to_dict()


def test_arms_are_read_at_equal_score_at_the_rate_that_forgets_least_of_those_that_reach_it():
    table = matched_forgetting(pd.DataFrame(), runs())  # type: ignore[arg-type]
    assert values(table, "matched", arm="sft", score=0.5) == pytest.approx({0: 0.15, 1: 0.18})
    assert values(table, "best_rate", arm="sft", score=0.5) == {0: 0.01, 1: 0.01}
    assert values(table, "best_rate", arm="sft", score=0.7) == {0: 0.1, 1: 0.1}
    assert values(table, "matched_kl", arm="sft", score=0.7) == pytest.approx({0: 1.0, 1: 1.0})
    assert values(table, "matched", arm="written", score=0.5) == pytest.approx({0: 0.06, 1: 0.06})
    assert values(table, "matched", arm="written", score=0.9) == {}


def test_cost_counts_the_answers_that_the_data_was_made_of():
    table = matched_forgetting(pd.DataFrame(), runs())  # type: ignore[arg-type]
    assert values(table, "matched_flops", arm="sft", score=0.6)[0] == pytest.approx(400.0)
    assert values(table, "matched_flops", arm="written", score=0.5)[0] == pytest.approx(200 + 8 * 300 / 40 / 3)


def test_paths_have_the_start_and_skip_rows_without_all_scores():
    first = runs()[0]
    assert [point.step for point in path_of(first)] == [0, 10, 20, 30, 40]  # type: ignore[arg-type]
    table = matched_forgetting(pd.DataFrame(), runs())  # type: ignore[arg-type]
    assert len(values(table, "on_path", arm="sft", rate=0.1, step=40)) == 2
    assert values(table, "rank") == pytest.approx({0: 1.0, 1: 1.0}, abs=0.02)  # ties differ by rounding
