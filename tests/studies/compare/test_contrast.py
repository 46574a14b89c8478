"""Claims about forgetting: their texts, estimates and intervals."""

import pandas as pd
import pytest

from kleiber.studies.compare.contrast import Difference, format_level, verdicts_on_forgetting
from kleiber.studies.compare.decision import estimate_around
from kleiber.studies.compare.verdicts import verdict


def test_a_difference_without_replicates_has_no_interval_and_decides_nothing():
    alone = estimate_around(-0.0149, float("inf"), 1, "nats")
    assert (alone.lo, alone.hi) == (None, None) and "[" not in alone.text()
    assert verdict("code", "text", alone)["holds"] is None
    assert format_level(alone).startswith("-0.0149 (no interval")


@pytest.mark.parametrize(("value", "half", "holds"), [(0.0, 0.005, True), (0.05, 0.01, False), (0.01, 0.005, None)])
def test_with_a_margin_two_arms_forget_the_same_where_the_whole_interval_lies_within_it(value, half, holds):
    entry = Difference(
        "matched_rank1", "matched", "rank 1", "full", estimate_around(value, half, 3, "nats"), margin=0.01
    )
    assert entry.verdict["holds"] is holds and entry.verdict["code"] == "matched_rank1"
    assert "full fine-tuning" in entry.measure
    row = entry.row()
    assert (row["arm"], row["value"], row["lo"], row["n"]) == ("rank 1", value, entry.estimate.lo, 3)


@pytest.mark.parametrize(
    ("value", "margin", "bounds", "holds"),
    [(1.0, 0.0, (True, False), True), (1.0, 0.0, (False, True), None), (-1.0, 0.0, (False, True), False),
     (-1.0, 0.0, (True, False), None), (1.0, 0.0, (True, True), None), (0.0, 0.5, (True, False), None),
     (1.0, 0.5, (True, False), False), (1.0, 0.5, (False, True), None)],
)  # fmt: skip
def test_an_f_that_is_an_upper_bound_decides_no_claim_that_a_smaller_f_could_turn(value, margin, bounds, holds):
    """The arm forgets `value` less than the other: at least that where its own F is the bound, else at most that."""
    estimate = estimate_around(value, 0.1, 3, "nats")
    entry = Difference("code", "matched", "replay", "none", estimate, margin, bounds)
    assert entry.verdict["holds"] is holds and entry.verdict["lo"] == estimate.lo
    assert entry.bound in entry.verdict["text"] and entry.row()["is"] == entry.bound != ""


def rows(points):
    """Of (method, share, lr, seed, tokens, F, target); no line between start and end."""
    names = ["method", "replayed", "lr", "seed", "tokens", "F", "target"]
    built = pd.DataFrame(points, columns=names)
    return built.assign(
        kept=float("inf"), run=range(len(built)), setting=built["replayed"].astype(str), steps=built["tokens"] / 1000
    )


def claim(points, code):
    return next(entry for entry in verdicts_on_forgetting(rows(points), 0.9) if entry["code"] == code)


def test_one_replicate_is_weaker_than_three_with_a_smaller_fall():
    """The step 1 % to 5 % falls by less and is known; that to 20 % has one seed."""
    base = [0.02, 0.0, -0.02]
    wiggle = iter([0.001, -0.002, 0.0015, -0.001, 0.002, -0.0015] * 3)
    points = []
    for share, F, seeds in ((0.0, 0.3, 3), (0.01, 0.2, 3), (0.05, 0.18, 3), (0.2, 0.1595, 1)):
        method = "replay" if share else "none"
        points += [(method, share, 0.01, s, 1e6, F + base[s] + next(wiggle), 1.5) for s in range(seeds)]
    warning = claim(points, "replay_monotone")
    assert "from 0.05 to 0.2 " in warning["text"] and warning["value"] > 0.0197 and warning["holds"] is True


def test_a_step_that_rises_beyond_noise_is_the_answer_whatever_else_is_noisier():
    wiggle = iter([0.002, -0.003, 0.003, -0.003, 0.003, -0.002] * 3)
    points = []
    for share, F, seeds in ((0.0, 0.3, 3), (0.01, 0.312, 3), (0.05, 0.29, 3), (0.2, 0.309, 1)):
        method = "replay" if share else "none"
        points += [(method, share, 0.01, s, 1e6, F + next(wiggle), 1.5) for s in range(seeds)]
    warning = claim(points, "replay_monotone")
    assert warning["holds"] is False and "from 0 to 0.01 " in warning["text"], warning["text"]


def test_learning_rates_are_compared_at_equal_length():
    """Of the long runs, which forget more, only those at the low rate are there yet."""
    points = [("none", 0.0, 0.003, s, n, F + 0.001 * s, 1.5) for s in range(3) for n, F in ((1e6, 0.2), (4e6, 0.5))]
    points += [("none", 0.0, 0.03, s, 1e6, 0.3 + 0.001 * s + 1e-4 * (s == 1), 1.5) for s in range(3)]
    warning = claim(points, "fast_forgets")
    assert warning["value"] == pytest.approx(0.1, abs=1e-3) and warning["holds"] is True


@pytest.mark.parametrize(("tokens", "words"), [(1e6, "at equal tokens:"), (1e6 / 0.95, "at equal new tokens:")])
def test_what_is_equal_between_replay_and_plain_is_said(tokens, words):
    points = [("none", 0.0, 0.01, s, 1e6, 0.3 + 0.01 * s, 1.5 + 0.01 * s) for s in range(3)]
    points += [("replay", 0.05, 0.01, s, tokens, 0.2 + 0.011 * s, 1.51 + 0.011 * s) for s in range(3)]
    warning = claim(points, "replay_cheap")
    assert words in warning["text"] and warning["value"] == pytest.approx(0.0101 / 1.51, rel=0.2)


def test_replay_of_small_memories_is_no_part_of_the_curve_of_replay():
    points = [("none", 0.0, 0.01, s, 1e6, 0.10 + s / 1e3, 1.0) for s in range(3)]
    points += [("replay", 0.2, 0.01, s, 1e6, 0.04 + s / 1e3, 1.0) for s in range(3)]
    small = rows([("replay", 0.2, 0.01, s, 1e6, 0.09 + s / 1e3, 1.0) for s in range(3)]).assign(kept=8e3)
    whole = rows(points)
    first_claims = [
        verdicts_on_forgetting(table, 0.9)[0] for table in (whole, pd.concat([whole, small], ignore_index=True))
    ]
    assert first_claims[0]["code"] == first_claims[1]["code"] == "replay_monotone"
    assert first_claims[0]["value"] == pytest.approx(first_claims[1]["value"]) == pytest.approx(0.06)
    alone = rows(points[:3])
    assert verdicts_on_forgetting(pd.concat([alone, small], ignore_index=True), 0.9)[0]["value"] == pytest.approx(0.01)
