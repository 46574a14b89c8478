"""The misfit of a law, estimated from its backtests, and its effect on intervals."""

import numpy as np
import pytest
from scipy.special import ndtri

from kleiber.studies.laws.prediction import (
    EXPECTED,
    FEW_PER_CUT,
    NEAR,
    POWER,
    WEIGHT,
    Evidence,
    Misfit,
    decades_outside,
    widen_interval,
)

Z = ndtri(0.95)


def evidence(error, decades=1.0, sd=0.0, cluster=None, first=0):
    """Errors of runs above one cut, each a run of its own unless `cluster` says otherwise."""
    error = np.atleast_1d(np.asarray(error, dtype=float))
    rows = first + np.arange(len(error))
    cluster = rows if cluster is None else np.asarray(cluster)
    return Evidence(rows, cluster, error, np.full(len(error), sd**2), np.broadcast_to(decades, error.shape) * 1.0)


def at_one_decade(*cuts):
    return Misfit(cuts).at_one_decade


def test_without_evidence_the_misfit_is_the_expected_one():
    assert at_one_decade() == EXPECTED and Misfit().num_runs == 0


def test_small_errors_lower_the_misfit_and_large_ones_raise_it():
    accounted = evidence([0.03, -0.03], sd=0.04)
    assert at_one_decade(accounted) == pytest.approx(EXPECTED * np.sqrt(WEIGHT / (WEIGHT + 2)))
    assert at_one_decade(accounted, accounted) < at_one_decade(accounted) < EXPECTED
    assert EXPECTED < at_one_decade(evidence([0.1, -0.1])) < at_one_decade(evidence([0.2, -0.1])) < 0.2


def test_an_error_counts_by_its_distance_and_beyond_what_is_known():
    """The error expected at twice the distance tells the same there; a distance close to 0 does not blow it up."""
    assert at_one_decade(evidence(0.1 * 2**POWER, decades=2.0)) == pytest.approx(at_one_decade(evidence(0.1)))
    assert at_one_decade(evidence(0.05, sd=0.03)) == pytest.approx(at_one_decade(evidence(0.04)))
    assert at_one_decade(evidence(0.1 * NEAR**POWER, decades=0.0)) == pytest.approx(at_one_decade(evidence(0.1)))


def test_many_independent_runs_approach_their_own_rms_at_one_decade():
    """A hundred cuts of two runs each; those above one cut share its fit, and count as two however many they are."""
    rng = np.random.default_rng(0)
    cuts = [evidence(rng.normal(size=2) * 0.1, first=2 * k) for k in range(200)]
    rms = np.sqrt(np.mean(np.concatenate([cut.error for cut in cuts]) ** 2))
    assert at_one_decade(*cuts) == pytest.approx(rms, rel=0.01)
    assert at_one_decade(evidence([0.1] * 50)) == pytest.approx(at_one_decade(evidence([0.1] * 2)))
    assert evidence([0.1] * 50).weights.sum() == pytest.approx(FEW_PER_CUT)


def test_the_runs_of_a_trunk_are_one_run():
    ten = evidence([0.2] * 10 + [0.0], cluster=["a"] * 10 + ["b"])
    assert at_one_decade(ten) == pytest.approx(at_one_decade(evidence([0.2, 0.0])))
    assert Misfit((ten, evidence([0.1], cluster=["a"]))).num_runs == 2
    assert evidence([0.1] * 4, cluster=list("aaaa")).weights.sum() == pytest.approx(1.0)


def test_a_cut_knows_the_rows_of_its_training_side_alone():
    train = np.array([True, True, True, False, False])
    observed, unseen = evidence([0.05, 0.06], first=1), evidence([0.3, 0.4], first=3)
    across = evidence([0.05, 0.06, 0.3, 0.4], first=1)
    assert Misfit((across,)).within(train).at_one_decade == pytest.approx(at_one_decade(observed))
    assert Misfit((unseen,)).within(train).evidence == ()
    assert Misfit((observed, unseen)).within(train).num_runs == 2


def ends(value, lo, hi, rate=0.05, decades=1.0, level=0.9):
    arrays = (np.atleast_1d(np.asarray(a, dtype=float)) for a in (value, lo, hi))
    return [end[0] for end in widen_interval(*arrays, rate, np.atleast_1d(float(decades)), level)]


@pytest.mark.parametrize("interval", [(2.0, 1.9, 2.2), (2.0, -1.0, 4.0), (-2.0, -3.0, -1.0), (2.0, 0.0, 3.0)])
def test_an_interval_inside_the_rows_stays_and_grows_with_the_distance(interval):
    value, lo, hi = interval
    assert ends(*interval, decades=0.0) == pytest.approx([lo, hi])
    assert ends(*interval, decades=-1.0) == pytest.approx([lo, hi])
    far = [ends(*interval, decades=d) for d in (0.0, 0.5, 1.0, 2.0, 3.0)]
    assert np.isfinite(far).all()
    assert (np.diff([low for low, _ in far]) < 0).all() and (np.diff([high for _, high in far]) > 0).all()
    assert all(low < value < high for low, high in far)


def test_the_misfit_is_added_in_quadrature_and_alike_to_both_sides_in_logs():
    low, high = ends(2.0, 2.0 / 1.1, 2.0 * 1.1, 0.05, 2.0)
    assert (
        np.log(high / 2) == pytest.approx(np.log(2 / low)) == pytest.approx(np.hypot(np.log(1.1), Z * 0.05 * 2**POWER))
    )
    assert ends(2.0, 2.0, 2.0, 0.05, 1.0) == pytest.approx([2 * np.exp(-Z * 0.05), 2 * np.exp(Z * 0.05)])
    assert ends(2.0, 2.0, 2.0, level=0.5)[1] == pytest.approx(2 * np.exp(ndtri(0.75) * 0.05))


def test_what_is_not_positive_is_widened_on_its_own_scale():
    assert ends(2.0, -1.0, 4.0, 0.1, 1.0) == pytest.approx([2 - np.hypot(3, Z * 0.2), 2 + np.hypot(2, Z * 0.2)])
    assert ends(-2.0, -3.0, -1.0, 0.1, 1.0) == pytest.approx([-2 - np.hypot(1, Z * 0.2), -2 + np.hypot(1, Z * 0.2)])


def test_ends_that_do_not_hold_the_value_stay():
    assert ends(2.0, 2.1, 2.2) == [2.1, 2.2]


def test_decades_outside_the_rows_by_hand():
    domain = {"N": [1e7, 1e9], "D": [1e9, 1e10], "C": [6e16, 6e19]}
    at = {
        "N": np.array([1e8, 1e10, 1e6, 1e9, 1e9]), "D": np.array([5e9, 1e10, 1e9, 1e12, 1e9]),
        "C": np.array([3e18, 6e20, 6e15, 6e21, 6e18]),
    }  # fmt: skip
    np.testing.assert_allclose(decades_outside(domain, at), [0, 1, 1, 2, 0], atol=1e-12)
    assert decades_outside(domain, {"N": 1e9, "C": 6e20}) == pytest.approx(1.0)  # compute alone lies outside
    assert decades_outside(domain, {"X": 1e3}) == 0.0 and decades_outside({"X": [0.0, 1.0]}, {"X": 1e3}) == 0.0
