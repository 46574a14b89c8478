"""Scores at equal divergence are read off planted paths, and so is what the second half of training changes."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from kleiber_topics.rewards.over_optimization import scores_at_distances


def run(arm: str, seed: int, reached: float, finished: bool = True):
    """A run that moves `reached` from its start in four evaluations: the proxy rises, the utility turns at half way."""
    rows = []
    for part in range(5):
        distance = reached * part / 4
        rows.append(
            {
                "step": 10 * part,
                "eval/proxy_reward/judged/kl": distance**2,
                "eval/proxy_reward/judged/score": 1.0 + 2 * distance,
                "eval/win_rate/judged/utility": 3.0 + min(part, 4 - part),
                "eval/win_rate/judged/win_rate": 0.5 + part / 10,
                "eval/perplexity/builtin/docs/loss": 2.0 + distance,
            }
        )
    start = {name: value for name, value in rows[0].items() if name != "step"}
    stage = {"start_metrics": start, "curve": [{"step": 5, "watch/text/loss": 1.0}, *rows[1:]]}
    return SimpleNamespace(
        name=f"{arm}-{seed}", stage=stage, config={"seed": seed, "study": {"arm": arm}}, finished=finished,
        overrides=[], summary={},
    )  # fmt: skip


def values(table, measure, **place):
    for key, value in {"measure": measure, **place}.items():
        table = table[table[key] == value]
    return table.set_index("seed")["value"].to_dict()


@pytest.fixture
def table():
    runs = [run("rlhf", 0, 2.0), run("rlhf", 1, 4.0), run("dpo", 0, 0.8), run("dpo", 1, 2.0, finished=False)]
    return scores_at_distances(pd.DataFrame(), runs)  # type: ignore[arg-type]


def test_scores_are_read_where_a_path_first_reaches_a_distance(table):
    assert values(table, "at_proxy", arm="rlhf", distance=1.5) == pytest.approx({0: 3.0, 1: 3.0})
    assert values(table, "at_utility", arm="rlhf", distance=1.5) == pytest.approx({0: 1.0, 1: 1.5})
    assert values(table, "at_win_rate", arm="rlhf", distance=2.0) == pytest.approx({0: 0.9, 1: 0.7})
    assert values(table, "at_forgetting", arm="dpo", distance=0.5) == pytest.approx({0: 0.5})
    assert values(table, "at_proxy", arm="dpo", distance=1.0) == {}


def test_a_path_has_every_evaluation_after_the_start(table):
    assert values(table, "path_distance", arm="rlhf", step=20) == pytest.approx({0: 1.0, 1: 2.0})
    assert values(table, "path_proxy", arm="rlhf", step=40) == pytest.approx({0: 4.0, 1: 8.0})
    assert values(table, "path_utility", arm="rlhf", step=0) == {}


def test_the_second_half_raises_the_proxy_and_lowers_the_utility(table):
    assert values(table, "late_proxy", arm="rlhf") == pytest.approx({0: 2.0, 1: 4.0})
    assert values(table, "late_utility", arm="rlhf") == pytest.approx({0: -2.0, 1: -2.0})
