"""Claims about forgetting: their estimates and intervals."""

import pandas as pd
import pytest

from kleiber.studies.claims import decide_together
from kleiber.studies.compare.contrast import format_level, questions_on_forgetting
from kleiber.studies.decision import estimate_around


def test_a_level_without_replicates_has_no_interval():
    alone = estimate_around(-0.0149, float("inf"), 1, "nats")
    assert (alone.lo, alone.hi) == (None, None) and "[" not in alone.text()
    assert format_level(alone).startswith("-0.0149 (no interval")


def rows(points):
    """Of (method, share, lr, seed, tokens, F, target); no line between start and end."""
    names = ["method", "replayed", "lr", "seed", "tokens", "F", "target"]
    built = pd.DataFrame(points, columns=names)
    return built.assign(
        kept=float("inf"), run=range(len(built)), setting=built["replayed"].astype(str), steps=built["tokens"] / 1000
    )


def results(points):
    return decide_together(questions_on_forgetting(rows(points)), 0.9)


def step(points, of, against):
    """The claim that F falls from one replayed share to another."""
    sides = ({"replayed": of, "lr": 0.01}, {"replayed": against})
    (result,) = [each for each in results(points) if (each.claim.of, each.claim.against) == sides]
    return result


def about(points, measure, **of):
    """The claim about a measure whose group has these values."""
    (result,) = [r for r in results(points) if r.claim.measure == measure and r.claim.of.items() >= of.items()]
    return result


def test_steps_share_their_variance_and_one_with_a_single_base_is_not_tested():
    base = [0.02, 0.0, -0.02]
    wiggle = iter([0.001, -0.002, 0.0015, -0.001, 0.002, -0.0015] * 3)
    points = []
    for share, F, seeds in ((0.0, 0.3, 3), (0.01, 0.2, 3), (0.05, 0.18, 3), (0.2, 0.1595, 1)):
        method = "replay" if share else "none"
        points += [(method, share, 0.01, s, 1e6, F + base[s] + next(wiggle), 1.5) for s in range(seeds)]
    first, middle, last = (step(points, *ends) for ends in ((0.01, 0.0), (0.05, 0.01), (0.2, 0.05)))
    assert first.spread.prior == middle.spread.prior is not None and middle.spread.df > 2
    assert middle.estimate.value == pytest.approx(-0.02, abs=0.003) and middle.decision == "supported"
    assert last.decision == "not tested" and last.estimate.n == 1 and last.estimate.lo is None


def test_a_step_that_rises_beyond_noise_contradicts_its_claim_alone():
    wiggle = iter([0.002, -0.003, 0.003, -0.003, 0.003, -0.002] * 3)
    points = []
    for share, F, seeds in ((0.0, 0.3, 3), (0.01, 0.34, 3), (0.05, 0.29, 3), (0.2, 0.309, 3)):
        method = "replay" if share else "none"
        points += [(method, share, 0.01, s, 1e6, F + next(wiggle), 1.5) for s in range(seeds)]
    assert step(points, 0.01, 0.0).decision == "contradicted" and step(points, 0.05, 0.01).decision == "supported"


def test_learning_rates_are_compared_at_equal_length():
    """Of the long runs, which forget more, only those at the low rate are there yet."""
    points = [("none", 0.0, 0.003, s, n, F + 0.001 * s, 1.5) for s in range(3) for n, F in ((1e6, 0.2), (4e6, 0.5))]
    points += [("none", 0.0, 0.03, s, 1e6, 0.3 + 0.001 * s + 1e-4 * (s == 1), 1.5) for s in range(3)]
    result = about(points, "F", method="none")
    assert result.estimate.value == pytest.approx(0.1, abs=1e-3) and result.decision == "supported"


@pytest.mark.parametrize(("tokens", "words"), [(1e6, "at equal tokens"), (1e6 / 0.95, "at equal new tokens")])
def test_what_is_equal_between_replay_and_plain_is_said(tokens, words):
    points = [("none", 0.0, 0.01, s, 1e6, 0.3 + 0.01 * s, 1.5 + 0.01 * s) for s in range(3)]
    points += [("replay", 0.05, 0.01, s, tokens, 0.2 + 0.011 * s, 1.51 + 0.011 * s) for s in range(3)]
    result = about(points, "target", replayed=0.05)
    assert result.question.text.endswith(words) and result.estimate.value == pytest.approx(0.0101 / 1.51, rel=0.2)


def test_replay_of_small_memories_is_no_part_of_the_curve_of_replay():
    points = [("none", 0.0, 0.01, s, 1e6, 0.10 + s / 1e3, 1.0) for s in range(3)]
    points += [("replay", 0.2, 0.01, s, 1e6, 0.04 + s / 1e3, 1.0) for s in range(3)]
    small = rows([("replay", 0.2, 0.01, s, 1e6, 0.09 + s / 1e3, 1.0) for s in range(3)]).assign(kept=8e3)
    whole = rows(points)
    tables = (whole, pd.concat([whole, small], ignore_index=True))
    first, other = (decide_together(questions_on_forgetting(table), 0.9)[0].estimate for table in tables)
    assert first.value == pytest.approx(other.value) == pytest.approx(-0.06)
    alone = pd.concat([rows(points[:3]), small], ignore_index=True)
    assert decide_together(questions_on_forgetting(alone), 0.9)[0].estimate.value == pytest.approx(-0.01)
