"""Exponents by approach and by counting convention, from ladders of branches and from plain tables."""

import numpy as np
import pytest

from kleiber.studies.laws.allocation_table import accounting, conventions, exponents, exponents_by_approach
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.variance_components import Layout, VarianceComponents

from .. import ladders


def test_three_approaches_agree_on_one_law():
    N, D, C = ladders.isoflop()
    L = ladders.noisy(ladders.loss(N, D, **ladders.TIED), 0, 0.0003)
    fitted = fit("chinchilla", {"N": N, "D": D}, L)
    model = NoiseModel.of(fitted, columns={"C": C})
    compared = exponents_by_approach(model, model.draws(100, 0))
    by_name = {exponent.approach[0]: exponent for exponent in compared}
    assert by_name["2"].a == pytest.approx(0.5, abs=0.03) and by_name["3"].a == pytest.approx(0.5, abs=0.03)
    assert by_name["3"].lo < 0.5 < by_name["3"].hi and len(by_name["2"].points) == 6


def test_envelope_on_a_grid_of_sizes():
    N = np.repeat(np.geomspace(1e7, 1e10, 25), 25)
    D = np.tile(np.geomspace(3e8, 3e11, 25), 25)
    L = ladders.loss(N, D, **ladders.TIED)
    model = NoiseModel.of(fit("chinchilla", {"N": N, "D": D}, L), columns={"C": 6 * N * D})
    exponent = next(e for e in exponents_by_approach(model, None) if e.approach.startswith("1"))
    assert exponent.a == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_a_ladder_of_branches_has_all_approaches_by_interpolation():
    """D on a grid of doublings, no two sizes at one budget: the truth is found.

    And shared noise widens the interval.
    """
    N = np.repeat(np.geomspace(3e4, 1e6, 6), 5)
    D = np.tile(1e6 * 2.0 ** np.arange(5), 6)
    law = {"E": 1.0, "A": 85.0, "B": 85.0 * 30**0.5, "alpha": 0.5, "beta": 0.5}
    loss, trunks = ladders.loss(N, D, **law), np.repeat(np.arange(6), 5)
    layout = Layout(trunks, np.ones(30), np.log(N))

    def by_noise(single, shared):
        noise = VarianceComponents(shared**2, single**2, 50.0, 50.0, 50.0, 0.0, 0.0, 5.0)
        return exponents(N, 6 * N * D, loss, noise, layout, 0.9)

    calm = by_noise(1e-4, 0.0)
    assert [exponent.approach[0] for exponent in calm] == ["1", "2"]
    for exponent in calm:
        assert exponent.a == pytest.approx(0.5, abs=0.04) and len(exponent.points) >= 3
    single, shared = by_noise(0.004, 0.0), by_noise(0.001, 0.004)
    assert all(a.lo < 0.5 < a.hi for a in (*single, *shared))
    assert min(b.hi - b.lo for b in shared) > 3 * max(c.hi - c.lo for c in calm)


def test_leaving_embeddings_out_moves_the_exponent_up(monkeypatch):
    """Nnoemb = N - vocabulary part: small models look smaller than they are, so N_opt grows faster (Porian)."""
    N, D, C = ladders.isoflop()
    N_noemb = N - 40.0 * N**0.7
    L = ladders.loss(N, D, **ladders.TIED)
    fitted = fit("chinchilla", {"N": N, "D": D}, ladders.noisy(L, 0, 0.0003))
    model = NoiseModel.of(fitted, columns={"C": C, "Nnoemb": N_noemb})
    table = accounting(model, model.draws(20, 0), draws=20)
    shift = {(row["convention"], row["approach"][0]): row["shift"] for row in table}
    assert shift["6ND", "3"] == 0 and shift["6ND without embeddings", "3"] > 0.005
    assert accounting(NoiseModel.of(fitted, columns={"C": C}), None) == []
    # Without parabolas under 6ND, those of the other conventions have nothing to be compared with.
    model, compared = NoiseModel.of(fitted, columns={"C": C, "Cexact": 2 * C}), exponents_by_approach

    def none_under_6nd(counted, draws, level):
        return [] if np.array_equal(counted.compute, 6 * N * D) else compared(counted, draws, level)

    monkeypatch.setattr("kleiber.studies.laws.allocation_table.exponents_by_approach", none_under_6nd)
    table = accounting(model, None, draws=0)
    assert table and {row["shift"] for row in table} == {None}
    columns = {"N": N, "D": D, "Nnoemb": N_noemb, "Cexact": 2 * C}
    by_name = conventions(columns)
    np.testing.assert_allclose(by_name["6ND without embeddings"], [N_noemb, 6 * N_noemb * D])
    np.testing.assert_allclose(by_name["N = exact FLOPs / 6D"], [2 * N, 2 * C])
