"""Contrasts estimated together: limits, agreement with Dunnett's test, pairing, and coverage by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import dunnett, norm, t

from kleiber.inference.contrasts import SEPARATE, Contrast, estimate_family
from kleiber.inference.moderation import pooled_variance


def family(table: np.ndarray, paired: bool = False, variance: str = "moderated", level: float = 0.9):
    """The differences of all groups from the first one, groups x seeds, with half-widths."""
    contrasts = [Contrast({0: -1.0, at: 1.0}, (row - table[0]).tolist()) for at, row in enumerate(table) if at]
    groups = {at: [dict(enumerate(row.tolist()))] for at, row in enumerate(table)}
    result = estimate_family(contrasts, {} if paired else groups, level, variance, paired)
    widths = [spread.half_width(each) for spread, each in zip(result.spreads, result.levels, strict=True)]
    return contrasts, result, widths


def alike(groups: int, seeds: int) -> np.ndarray:
    """A table whose groups all have the variance 1, with different orders of the seeds."""
    row = np.array([-1.0, 0.0, 1.0, 2.0, -2.0][:seeds])
    row = (row - row.mean()) / row.std(ddof=1)
    return np.array([np.roll(row, at) + 0.3 * at for at in range(groups)])


@pytest.mark.slow
def test_equal_variances_give_dunnetts_intervals():
    table = alike(8, 3)
    _, result, widths = family(table)
    assert all(spread.df == 16 and not spread.paired for spread in result.spreads)
    assert all(spread.prior is not None and math.isinf(spread.prior.df) for spread in result.spreads)
    ends = dunnett(*table[1:], control=table[0], rng=np.random.default_rng(0)).confidence_interval(0.9)
    assert widths == pytest.approx((ends.high - ends.low) / 2, rel=2e-3)


def test_a_difference_of_two_groups_among_many_has_students_two_sample_interval_with_the_df_of_all():
    table = alike(8, 3)
    groups = {at: [dict(enumerate(row.tolist()))] for at, row in enumerate(table)}
    contrast = Contrast({0: -1.0, 1: 1.0}, (table[1] - table[0]).tolist())
    result = estimate_family([contrast], groups, 0.9)
    assert result.spreads[0].half_width(result.levels[0]) == pytest.approx(t.ppf(0.95, 16) * math.sqrt(2 / 3))


def test_a_contrast_alone_has_students_interval_paired_by_seed():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(2, 4))
    gaps = table[1] - table[0]
    wanted = t.ppf(0.95, 3) * gaps.std(ddof=1) / 2
    assert family(table, paired=True)[2] == [pytest.approx(wanted)]
    assert family(table, variance=SEPARATE)[2] == [pytest.approx(wanted)]


def test_separate_variances_have_bonferronis_level_and_no_prior():
    _, result, widths = family(np.random.default_rng(0).normal(size=(6, 3)), variance=SEPARATE)
    assert result.levels == pytest.approx([1 - 0.1 / 5] * 5) and all(each.prior is None for each in result.spreads)
    contrasts, *_ = family(np.random.default_rng(0).normal(size=(6, 3)))
    sd = np.array([np.std(contrast.values, ddof=1) for contrast in contrasts])
    assert widths == pytest.approx(t.ppf(1 - 0.1 / 10, 2) * sd / math.sqrt(3))


def test_differences_are_paired_where_the_seed_explains_the_variance():
    rng = np.random.default_rng(3)
    seeds, noise = 5 * rng.normal(size=4), rng.normal(size=(5, 4))
    assert all(spread.paired for spread in family(noise + seeds)[1].spreads)
    assert not any(spread.paired for spread in family(noise)[1].spreads)
    assert all(spread.paired for spread in family(noise, paired=True)[1].spreads)


def test_groups_with_few_degrees_of_freedom_are_paired():
    rng = np.random.default_rng(3)
    assert all(spread.paired for spread in family(rng.normal(size=(3, 3)))[1].spreads)
    three_cells = {at: [dict(enumerate(rng.normal(size=3).tolist())) for _ in range(3)] for at in range(2)}
    contrast = Contrast({0: -1.0, 1: 1.0}, [three_cells[1][1][seed] - three_cells[0][1][seed] for seed in range(3)])
    assert not estimate_family([contrast], three_cells, 0.9).spreads[0].paired


def test_unequal_variances_are_seen_and_a_noisy_group_keeps_its_own():
    rng = np.random.default_rng(5)
    table = rng.normal(size=(8, 5)) * np.array([1, 1, 1, 1, 1, 1, 1, 60])[:, None]
    _, result, _ = family(table)
    noisy, quiet = result.spreads[-1], result.spreads[0]
    assert noisy.prior is not None and noisy.prior.df < 4 and noisy.error > 5 * quiet.error
    assert noisy.error > 0.5 * math.sqrt(pooled_variance([table[-1].tolist()])[0] / 5)


def test_levels_and_differences_share_the_error_and_have_priors_of_their_own():
    table = alike(8, 3)
    groups = {at: [dict(enumerate(row.tolist()))] for at, row in enumerate(table)}
    contrasts = [
        Contrast({0: 1.0}, table[0].tolist()),
        Contrast({1: 1.0, 0: -1.0}, (table[1] - table[0]).tolist()),
        Contrast({2: 1.0, 0: -1.0}, (table[2] - table[0]).tolist()),
    ]
    result = estimate_family(contrasts, groups, 0.9)
    assert result.levels[0] == pytest.approx(1 - 0.1 / 3) and result.levels[1] == result.levels[2] < 1 - 0.1 / 3
    assert result.spreads[1].error == pytest.approx(math.sqrt(2) * result.spreads[0].error)


def test_more_samples_narrow_the_interval():
    spread = family(alike(8, 3))[1].spreads[0]
    longer = spread.with_samples(3, 3)
    assert longer.error == pytest.approx(spread.error / math.sqrt(2)) and longer.df == pytest.approx(16 * 5 / 2)
    assert longer.half_width(0.98) < spread.half_width(0.98) / math.sqrt(2)


@pytest.mark.slow
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("noisy", [1.0, 2.0])
def test_joint_intervals_cover(paired, noisy):
    rng, studies, wrong = np.random.default_rng(7), 1500, 0
    for _ in range(studies):
        table = rng.normal(size=(4, 4)) * np.array([1, 1, 1, noisy])[:, None]
        contrasts, _, widths = family(table, paired)
        wrong += any(abs(np.mean(c.values)) > half for c, half in zip(contrasts, widths, strict=True))
    assert wrong / studies < 0.1 + 2 * math.sqrt(0.09 / studies)


def test_what_all_runs_of_a_base_share_changes_no_interval_of_differences_within_bases():
    random = np.random.default_rng(0)
    groups = {arm: [dict(enumerate(random.normal(size=3))) for _ in range(2)] for arm in range(6)}
    moved = {a: [{s: v + 5.0 * s for s, v in cell.items()} for cell in cells] for a, cells in groups.items()}

    def spreads(of):
        contrasts = [Contrast({a: 1.0, 0: -1.0}, [of[a][0][s] - of[0][0][s] for s in range(3)]) for a in range(1, 6)]
        return estimate_family(contrasts, of, 0.9, paired=True).spreads

    for plain, shifted in zip(spreads(groups), spreads(moved), strict=True):
        assert plain.paired and plain.error == pytest.approx(shifted.error) and plain.df == pytest.approx(shifted.df)
    # 12 cells of 3 values less 12 means, and less 2 for the bases
    assert max(spread.df for spread in spreads(groups)) <= 22 + 1e-9


def test_blocks_with_few_degrees_of_freedom_leave_student_t_of_the_differences():
    groups = {arm: [dict(enumerate(values))] for arm, values in {"a": [1.0, 2.0, 4.0], "b": [0.5, 1.0, 3.5]}.items()}
    contrast = Contrast({"a": 1.0, "b": -1.0}, [0.5, 1.0, 0.5])
    (spread,) = estimate_family([contrast], groups, 0.9, paired=True).spreads
    assert spread.df == 2 and spread.error == pytest.approx(np.std([0.5, 1.0, 0.5], ddof=1) / 3**0.5)


def test_the_error_that_samples_share_stays_with_more_of_them():
    (spread,) = estimate_family([Contrast({"a": 1.0}, [1.0, 2.0, 4.0])], {}, 0.9).spreads
    shared = replace(spread, fixed=0.5)
    normal = norm.ppf(0.95) * 0.5
    assert shared.half_width(0.9) == pytest.approx(math.hypot(spread.half_width(0.9), normal))
    assert shared.with_samples(3, 10_000).half_width(0.9) == pytest.approx(normal, rel=0.01)
