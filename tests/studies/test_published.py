"""The published results of ../shared/laws through `kleiber fit`, within the digits its README gives."""

import json

import pytest
from typer.testing import CliRunner

from .test_command import app

SMALL = "cc_mult = 1 and not model in [open_lm_1b, open_lm_7b]"
FIVE = f"train == rpj and ({SMALL} or cc_mult = 16 and model = 'd=96_l=8_h=4')"


@pytest.fixture
def fit(shared, tmp_path):
    folder = shared / "laws"
    if not folder.is_dir():
        pytest.skip("needs ../shared/laws beside the checkout")

    def run(table, *words):
        out = tmp_path / "laws.json"
        done = CliRunner().invoke(app, ["fit", str(folder / table), *words, "--bootstrap", "200", "--json", str(out)])
        assert done.exit_code in (0, 3), done.output
        return json.loads(out.read_text())

    return run


def test_gadre_overtraining(fit):
    runs = [(1439795200.0, 921468928000.0), (6889410560.0, 137788211200.0)]
    at = [word for N, D in runs for word in ("--predict", f"N={N!r},D={D!r}")]
    found = fit("gadre.csv", "--law", "gadre", "--map", "N=N,D=D,L=loss_c4_val", "--where", FIVE, *at)
    value = {name: entry["value"] for name, entry in found["params"].items()}
    assert found["n"] == 5 and found["objective"]["value"] == pytest.approx(4.25648e-4, abs=5e-10)
    assert value["E"] == pytest.approx(1.83665, abs=5e-6) and value["eta"] == pytest.approx(0.136425, abs=5e-7)
    assert value["a"] == pytest.approx(212.24, abs=0.005) and value["b"] == pytest.approx(366.69, abs=0.005)
    measured = _measured(fit)
    off = [one["value"] / loss - 1 for one, loss in zip(found["predictions"], measured, strict=True)]
    assert off[0] == pytest.approx(0.007103, abs=5e-7) and off[1] == pytest.approx(0.007320, abs=5e-7)


def _measured(fit):
    import pandas as pd

    rows = pd.read_csv(fit.__closure__[0].cell_contents / "gadre.csv").query("train == 'rpj'")
    big = rows[(rows.model == "open_lm_1b") & (rows.cc_mult == 32) | (rows.model == "open_lm_7b")]
    return big.sort_values("N").loss_c4_val.tolist()


def test_porian_exponents_by_convention(fit):
    found = fit("porian_opt.csv", "--law", "power", "--map", "C=C,L=N_opt", "--by", "config")
    exponents = [found["laws"][str(config)]["params"]["a"]["value"] for config in range(5)]
    assert exponents == pytest.approx([0.8338, 0.7009, 0.6035, 0.5714, 0.4970], abs=5e-5)
    assert all(law["params"]["a"]["identified"] for law in found["laws"].values())


def test_clark_routed_law_and_its_bias(fit):
    roles = "N=dense_parameter_count,X=num_experts,L=loss_validation,C=flops_per_step"
    found = fit("clark_hash.csv", "--law", "clark", "--map", roles, "--backtest", "1e15")
    value = {name: entry["value"] for name, entry in found["params"].items()}
    for name, published in {"a": -0.0874, "b": -0.1384, "c": 0.0126, "d": 1.1595}.items():
        assert value[name] == pytest.approx(published, abs=5e-5)
    assert value["E_start"] == pytest.approx(4.27, abs=0.005) and value["E_max"] == pytest.approx(427, abs=0.5)
    assert found["residual_rms"] == pytest.approx(0.00298, abs=5e-6)
    test = found["backtests"][0]  # the cut at 1e15 FLOPs a step puts N < 1e9 below and the 1.3B models above
    assert (test["n_train"], test["n_test"]) == (46, 10) and test["bias"] == pytest.approx(-0.019, abs=5e-4)
    assert "biased" in {verdict["code"] for verdict in found["verdicts"]}
