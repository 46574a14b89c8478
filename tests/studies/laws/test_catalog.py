"""Every shipped law equals its formula and is recovered from its own noiseless values."""

import math

import numpy as np
import pytest

from kleiber.studies.laws import law as law_module
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.law import LAWS

find("chinchilla")  # enters the shipped laws

CHINCHILLA = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}
TRUTH = {
    "chinchilla": CHINCHILLA,
    "chinchilla_tied": {"E": 1.8, "A": 300.0, "B": 500.0, "alpha": 0.3},
    "no_floor": {"A": 20.0, "B": 15.0, "alpha": 0.1, "beta": 0.09},
    "interaction": {"E": 1.7, "A": 400.0, "B": 410.0, "F": 2e4, "alpha": 0.34, "beta": 0.28},
    "kaplan": {"Nc": 8.8e13, "Dc": 5.4e13, "aN": 0.076, "aD": 0.095},
    "power": {"k": 0.09, "a": 0.5},
    "power_floor": {"E": 1.7, "k": 1e3, "a": 0.15},
    "overtraining": {"E": 1.8, "a": 200.0, "b": 350.0, "eta": 0.136},
    "data_constrained": {**CHINCHILLA, "RN": 5.3, "RD": 15.4},
    "routed": {"a": -0.087, "b": -0.136, "c": 0.012, "d": 1.157, "E_start": 4.2, "E_max": 478.0},
    "granularity": {"c": 0.5, "g": 4.0, "a": 18.0, "b": 30.0, "alpha": 0.115, "beta": 0.147, "gamma": 0.58},
    "joint_moe": {**CHINCHILLA, "delta": -0.1, "gamma": 0.005, "omega": 0.05, "zeta": -0.004},
    "sparsity": {
        "e": 0.9, "a": 400.0, "b": 410.0, "c": 0.1, "d": 5.0,
        "alpha": 0.34, "beta": 0.28, "lam": -0.3, "delta": 0.2, "gamma": 0.12,
    },
    "critical_batch": {"E": 1.9, "A": 600.0, "b": 3.0, "e": 0.4, "beta": 0.3},
    "forgetting": {"E": 0.01, "A": 8.0, "B": 300.0, "alpha": 0.4, "beta": 0.25},
    "transfer": {"E": 1.2, "A": 300.0, "alpha": 0.2, "beta": 0.15},
    "forgetting_power": {"c": 0.3, "a": 0.1, "b": 0.3, "P0": 1e6, "t0": 50.0},
    "forgetting_line": {"s": 2.0, "c": 0.6},
    "replay_curve": {"F0": 0.4, "c": 0.05, "B": 60.0},
    "replay_grid": {"A": 0.02, "c": 0.05, "B": 60.0, "alpha": 0.2, "beta": 0.3},
    "replay_grid_ratio": {"A": 0.02, "c": 0.05, "B": 60.0, "alpha": 0.2, "beta": 0.3, "gamma": 0.15},
    "task_metric": {"e": 0.9, "k": 2.0, "gamma": 0.7},
    "loss_to_loss": {"E": 0.4, "k": 1.1, "Ex": 1.2, "kappa": 0.9},
}  # fmt: skip


def inputs(rows: int = 60) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    N, D = 10 ** rng.uniform(7, 10, rows), 10 ** rng.uniform(9, 12, rows)
    return {
        "N": N, "D": D, "C": 6 * N * D, "M": D / N, "U": D / 2 ** rng.uniform(-1, 6, rows),
        "X": 2.0 ** rng.integers(0, 10, rows),
        "G": 2.0 ** rng.integers(0, 6, rows), "S": 1 - 2.0 ** -rng.uniform(0, 6, rows), "p": rng.uniform(0, 0.3, rows),
        "L0": 2 + 1e3 * N**-0.4, "P": 10 ** rng.uniform(5, 9, rows), "t": 10 ** rng.uniform(0, 4, rows),
        "Lx": rng.uniform(2, 5, rows), "batch": 10 ** rng.uniform(3, 7, rows),
    }  # fmt: skip


def test_every_law_is_covered():
    assert set(TRUTH) == set(LAWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TRUTH))
def test_law_is_recovered_without_noise(name):
    law = LAWS[name]
    at = inputs()
    columns = {role: at[role] for role in law.inputs}
    target = law.predict(columns, np.array([[TRUTH[name][p] for p in law.params]]))[0]
    fitted = fit(law, columns, target)
    np.testing.assert_allclose(fitted.predict(columns), target, rtol=2e-3, atol=2e-3 * np.abs(target).max())


def by_hand(name, p, x):
    """The formulas once more, for one row, in plain floats: a slip in a law would else fit its own values."""
    n, d = x["N"], x["D"]
    if name == "data_constrained":
        unique = min(d, x["U"])
        G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
        enough = min(n, G ** (1 + p["beta"] / p["alpha"]) * unique ** (p["beta"] / p["alpha"]))
        tokens = unique + unique * p["RD"] * (1 - math.exp(-(d / unique - 1) / p["RD"]))
        size = enough + enough * p["RN"] * (1 - math.exp(-(n / enough - 1) / p["RN"]))
        return p["E"] + p["A"] / size ** p["alpha"] + p["B"] / tokens ** p["beta"]
    if name == "routed":
        count = 1 / (1 / (x["X"] - 1 + 1 / (1 / p["E_start"] - 1 / p["E_max"])) + 1 / p["E_max"])
        h, size = math.log10(count), math.log10(n)
        return 10 ** (p["a"] * size + p["b"] * h + p["c"] * size * h + p["d"])
    forms = {
        "chinchilla": lambda E, A, B, alpha, beta: E + A / n**alpha + B / d**beta,
        "chinchilla_tied": lambda E, A, B, alpha: E + A / n**alpha + B / d**alpha,
        "no_floor": lambda A, B, alpha, beta: A / n**alpha + B / d**beta,
        "interaction": lambda E, A, B, F, alpha, beta: E + A / n**alpha + B / d**beta + F / (n**alpha * d**beta),
        "kaplan": lambda Nc, Dc, aN, aD: ((Nc / n) ** (aN / aD) + Dc / d) ** aD,
        "power": lambda k, a: k * x["C"] ** a,
        "power_floor": lambda E, k, a: E + k / x["C"] ** a,
        "overtraining": lambda E, a, b, eta: E + (a * x["M"] ** eta + b / x["M"] ** eta) / x["C"] ** eta,
        "granularity": lambda c, g, a, b, alpha, beta, gamma: c + (g / x["G"] ** gamma + a) / n**alpha + b / d**beta,
        "joint_moe": lambda E, A, B, alpha, beta, delta, gamma, omega, zeta: (
            E
            + A * x["X"] ** delta * n ** (gamma * math.log(x["X"]) - alpha)
            + B * x["X"] ** omega * d ** (zeta * math.log(x["X"]) - beta)
        ),
        "sparsity": lambda e, a, b, c, d_, alpha, beta, lam, delta, gamma: (
            e + a / n**alpha + b / d**beta + c / (1 - x["S"]) ** lam + d_ / ((1 - x["S"]) ** delta * n**gamma)
        ),
        "critical_batch": lambda E, A, b, e, beta: E + A * ((1 + x["batch"] / (b * d**e)) / d) ** beta,
        "forgetting": lambda E, A, B, alpha, beta: x["L0"] + E + A * d**beta / ((1 + B * x["p"]) * n) ** alpha,
        "transfer": lambda E, A, alpha, beta: E + A / (n**alpha * d**beta),
        "forgetting_power": lambda c, a, b, P0, t0: c * (x["P"] / P0) ** a * (1 + x["t"] / t0) ** b - c,
        "forgetting_line": lambda s, c: s - c * x["Lx"],
        "replay_curve": lambda F0, c, B: (F0 + c) / (1 + B * x["p"]) - c,
        "replay_grid": lambda A, c, B, alpha, beta: (A * d**beta / n**alpha + c) / (1 + B * x["p"]) - c,
        "replay_grid_ratio": lambda A, c, B, alpha, beta, gamma: (
            (A * d**beta / n**alpha * x["M"] ** gamma + c) / (1 + B * x["p"]) - c
        ),
        "task_metric": lambda e, k, gamma: e - k * math.exp(-gamma * x["Lx"]),
        "loss_to_loss": lambda E, k, Ex, kappa: E + k * (x["Lx"] - Ex) ** kappa,
    }
    return forms[name](**{"d_" if name == "sparsity" and key == "d" else key: value for key, value in p.items()})


@pytest.mark.parametrize("name", sorted(TRUTH))
def test_law_equals_its_formula_by_hand(name):
    law, at = LAWS[name], inputs(5)
    values = law.predict({role: at[role] for role in law.inputs}, np.array([[TRUTH[name][p] for p in law.params]]))[0]
    for i, value in enumerate(values):
        assert value == pytest.approx(by_hand(name, TRUTH[name], {role: float(at[role][i]) for role in at}), rel=1e-12)


@pytest.mark.parametrize("name", sorted(TRUTH))
def test_docstring_gives_formula_and_source(name):
    law = LAWS[name]
    assert "=" in law.formula and (law.source.startswith("ours") or "arXiv:" in law.source)


def test_sizes_beyond_int64_do_not_overflow():
    N = np.array([1439795200] * 8, dtype=np.int64)
    D = np.array([921468928000 * k for k in range(1, 9)], dtype=np.int64)
    fitted = fit("power", {"C": 6.0 * N * D.astype(float)}, np.asarray(2.0 * (6.0 * N * D.astype(float)) ** -0.05))
    assert fitted.params["a"] == pytest.approx(-0.05, abs=1e-6)


def test_routed_law_has_the_published_ends():
    """Xhat runs from start at one expert to end at infinitely many (Clark et al. 2022, the saturating count)."""
    from kleiber.studies.laws.catalog import saturated

    ends = saturated(np.array([1.0, 1e12]), np.array(4.2), np.array(478.0))
    np.testing.assert_allclose(ends, [4.2, 478.0], rtol=1e-6)


def test_unknown_law_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'chinchilla'"):
        find("chinchila")


def test_a_law_of_an_extension_is_found_by_its_dotted_name(tmp_path, monkeypatch):
    text = "from kleiber.studies.laws.law import Array, Exponent, Part\nlimit = 3\n"
    text += "def floor_only(N: Array, *, E: Part, A: Part, alpha: Exponent):\n    return E + A * N**-alpha\n"
    (tmp_path / "law_lab.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="KLEIBER_EXTENSIONS=law_lab"):
        find("law_lab.floor_only")
    monkeypatch.setenv("KLEIBER_EXTENSIONS", "law_lab")
    law = find("law_lab.floor_only")
    assert law.name == "law_lab.floor_only" and law.inputs == ("N",) and set(law.params) == {"E", "A", "alpha"}
    with pytest.raises(ValueError, match="limit"):
        find("law_lab.limit")


@pytest.mark.process
@pytest.mark.slow
def test_studies_import_neither_torch_nor_lightning():
    import subprocess
    import sys

    code = "import sys, kleiber.studies.fit_command, kleiber.studies.laws.analysis, kleiber.studies.laws.laws_json\n"
    code += "assert not {'torch', 'lightning', 'hydra'} & set(sys.modules), 'heavy'"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}, check=False).returncode == 0
    assert law_module.LAWS
