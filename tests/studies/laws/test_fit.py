"""The fitter: recovery, convergence to one optimum, dropped terms, refusals."""

import numpy as np
import pytest
from scipy.optimize import minimize

from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import _nonnegative, depends, fit

from .. import ladders


def random_law(rng):
    return {
        "E": rng.uniform(0.5, 2.5), "A": 10 ** rng.uniform(1.5, 3.2), "B": 10 ** rng.uniform(1.5, 3.5),
        "alpha": rng.uniform(0.2, 0.5), "beta": rng.uniform(0.2, 0.5),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("count", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_random_laws_are_recovered(count):
    rng = np.random.default_rng(5)
    for _ in range(count):
        truth = random_law(rng)
        N, D = 10 ** rng.uniform(7, 10, 60), 10 ** rng.uniform(8.5, 11.5, 60)
        clean = fit("chinchilla", {"N": N, "D": D}, ladders.loss(N, D, **truth))
        for name in ("E", "alpha", "beta"):
            assert clean.params[name] == pytest.approx(truth[name], rel=2e-3), (name, truth)
        noisy = fit("chinchilla", {"N": N, "D": D}, ladders.noisy(ladders.loss(N, D, **truth), 1, 0.002))
        at = {"N": np.array([2e10]), "D": np.array([6e11])}
        assert noisy.predict(at)[0] == pytest.approx(ladders.loss(2e10, 6e11, **truth), rel=0.01), truth


@pytest.mark.slow
@pytest.mark.parametrize("loss_fn", ["huber", "squared", "lad"])
def test_no_other_start_finds_a_lower_objective(loss_fn):
    """Nelder-Mead from the truth, restarted: an optimiser that shares nothing with ours must not do better."""
    table = ladders.twenty()
    L = ladders.noisy(ladders.loss(**table), 2)
    fitted = fit("chinchilla", table, L, loss_fn)

    def cost(t):
        guess = np.exp(t[0]) + np.exp(t[1]) * table["N"] ** -t[3] + np.exp(t[2]) * table["D"] ** -t[4]
        r = np.abs(np.log(guess) - np.log(L))
        huber = np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 5e-4))
        return {"huber": huber, "squared": r**2, "lad": r}[loss_fn].sum()

    at = np.array([np.log(1.69), np.log(406.4), np.log(410.7), 0.34, 0.28])
    for _ in range(4):
        at = minimize(cost, at, method="Nelder-Mead", options={"maxfev": 4000, "xatol": 1e-9, "fatol": 1e-14}).x
    assert fitted.value <= cost(at) * (1 + 1e-6)
    assert fitted.value == pytest.approx(
        cost(np.r_[np.log([fitted.params[k] for k in "EAB"]), fitted.params["alpha"], fitted.params["beta"]])
    )


def test_objective_is_the_unscaled_sum():
    table = ladders.twenty()
    L = ladders.noisy(ladders.loss(**table), 0)
    once = fit("chinchilla", table, L).value
    twice = fit("chinchilla", {k: np.tile(v, 2) for k, v in table.items()}, np.tile(L, 2)).value
    assert twice == pytest.approx(2 * once, rel=1e-6)


def test_a_floor_the_data_put_at_zero_is_dropped():
    table = ladders.twenty()
    N, D = table["N"], table["D"]
    fitted = fit("chinchilla", table, 20 * N**-0.1 + 15 * D**-0.1 - 0.6)
    assert fitted.dropped == ["E"] and fitted.params["E"] == 0.0


def test_the_same_table_gives_the_same_bits():
    table = ladders.twenty()
    L = ladders.noisy(ladders.loss(**table), 4)
    for law in ("chinchilla", "kaplan"):  # starts on a grid, and on low-discrepancy points
        assert fit(law, table, L).theta.tobytes() == fit(law, table, L).theta.tobytes()


def test_refusals_name_the_value():
    table = ladders.twenty()
    L = ladders.loss(**table)
    with pytest.raises(ValueError, match="lacks D"):
        fit("chinchilla", {"N": table["N"]}, L)
    with pytest.raises(ValueError, match=r"5 parameters.*4 rows"):
        fit("chinchilla", {k: v[:4] for k, v in table.items()}, L[:4])
    with pytest.raises(ValueError, match="not finite in row 3"):
        fit("chinchilla", table, np.where(np.arange(20) == 3, np.nan, L))
    with pytest.raises(ValueError, match="target -1 "):
        fit("chinchilla", table, np.where(np.arange(20) == 3, -1.0, L))
    with pytest.raises(ValueError, match="loss-fn 'mse'"):
        fit("chinchilla", table, L, "mse")


def test_a_parameter_fixed_where_the_fit_ends_changes_no_other():
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 1, 0.002)
    free = fit("chinchilla", rows, L)
    held = fit(find("chinchilla").fix({"E": free.params["E"]}), rows, L)
    assert held.value == pytest.approx(free.value, rel=1e-9)
    assert held.params["alpha"] == pytest.approx(free.params["alpha"], rel=1e-6)
    assert held.problem.num_params == 4 and held.noise < free.noise, "one degree of freedom more"


def test_rows_of_one_size_leave_the_terms_of_size_undetermined_and_no_loss_at_that_size():
    """A N^-alpha + E is one number there: two directions of the three parameters change no residual."""
    D = np.geomspace(1e8, 1e11, 12)
    one_size = fit("chinchilla", {"N": np.full(12, 1e8), "D": D}, ladders.noisy(ladders.loss(1e8, D), 0, 0.001))
    points = one_size.undetermined()
    assert points.shape == (4, 5)
    at = {"N": np.array([1e8]), "D": np.array([3e11])}
    assert not depends(one_size.law.predict(at, points)[:, 0])
    assert depends(one_size.law.predict({**at, "N": np.array([1e9])}, points)[:, 0])
    rows = ladders.twenty()
    assert len(fit("chinchilla", rows, ladders.noisy(ladders.loss(**rows), 0, 0.002)).undetermined()) == 0


def test_a_start_whose_terms_overflow_gets_no_weight():
    law = find("chinchilla")
    design = np.stack([np.ones((2, 4)), np.full((2, 4), 1e200), np.linspace(1, 2, 8).reshape(2, 4)], axis=2)
    goal = design[:, :, 0] + 3 * design[:, :, 2]
    parts = _nonnegative(design, goal, np.ones((2, 4)), law, np.ones(len(law.params), bool))
    np.testing.assert_allclose(parts[:, [0, 2]], [[1, 3], [1, 3]], rtol=1e-6)
    assert (parts[:, 1] == 0).all()
