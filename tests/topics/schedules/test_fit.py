"""The fit of the law of schedules: planted parameters are found, derivatives are right, correlation is measured."""

import numpy as np
import pytest

from kleiber_topics.schedules.curves import read_curves
from kleiber_topics.schedules.fit import Noise, _Problem, estimate_noise, groups_of_rows, points_of
from kleiber_topics.schedules.forms import FORMS

from .planted import PLANTED, ROLES, curves, fit


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_form_and_its_parameters_are_found(name):
    record = fit(curves(form=name))
    assert record["form"] == name and not record["refused"]
    form, values = PLANTED[name]
    assert [record["params"][each] for each in form.params][:3] == pytest.approx(values[:3], rel=0.03)
    assert [record["params"][each] for each in form.params][3:] == pytest.approx(values[3:], rel=0.3)
    assert record["residual_rms"] < 1e-3


def test_the_slopes_of_the_objective_are_its_derivatives():
    found = read_curves(curves(("cosine", "wsd")), ROLES)
    for form in FORMS.values():
        problem, noise = _Problem(form, points_of(found), 3e-4), Noise(2e-3, 5.0)
        at = problem.median + 0.1
        step = 1e-6
        numeric = [
            (problem.objective(at + step * unit, noise) - problem.objective(at - step * unit, noise)) / (2 * step)
            for unit in np.eye(len(at))
        ]
        assert problem.jacobian(at, noise) == pytest.approx(np.column_stack(numeric), abs=1e-6)


def test_the_noise_of_a_curve_counts_correlated_rows_as_one():
    rng = np.random.default_rng(0)
    white = rng.normal(size=(4, 2000)) * 1e-3
    averaged = [np.convolve(row, np.ones(9) / 3, "valid") for row in white]
    alone, together = estimate_noise(list(white), 5), estimate_noise(averaged, 5)
    assert alone.inflation == pytest.approx(1.0, abs=0.3) and together.inflation == pytest.approx(9.0, rel=0.3)
    assert alone.sd == pytest.approx(1e-3, rel=0.1) and together.sd == pytest.approx(1e-3, rel=0.1)


@pytest.mark.slow
def test_spikes_of_a_loss_do_not_move_the_fit():
    table = curves()
    spiked = table.copy()
    spiked.loc[spiked.index[40::60], "loss"] += 1.0
    clean, robust = (fit(rows, bootstrap=0)["params"]["E"] for rows in (table, spiked))
    assert robust == pytest.approx(clean, rel=2e-3)


def test_long_curves_are_averaged_finely_where_the_loss_falls_fast():
    steps = np.arange(1.0, 10_001.0)
    group = groups_of_rows(steps, 100)
    assert np.all(np.diff(group) >= 0) and 60 <= group.max() + 1 <= 100
    sizes = np.bincount(group)
    assert sizes[0] == 1 and sizes[-1] > 100
    table = curves(("constant", "cosine"), every=2)
    assert all(len(each.logs) <= 200 for each in points_of(read_curves(table, ROLES)))
