"""The optimal learning rate from losses with a known optimum, with its interval, and optima at the edge."""

import json

import numpy as np
import pytest
from fake_run import fake_run

from kleiber.launch.cli import main
from kleiber.records.catalog import read_runs
from kleiber.studies.claims import decide_together
from kleiber.studies.compare.arms import arm_from_rows
from kleiber.studies.mup_transfer import MupTransfer, edge_warnings, questions

RATES = [0.0025 * 2**k for k in range(7)]


def rows(optima: dict[int, float], seed: int = 0, noise: float = 0.003) -> list[dict]:
    """Parabolas in log2 of the rate, a level a seed, and noise."""
    draw = np.random.default_rng(seed)
    return [
        {"width": width, "lr": lr, "seed": row,
         "loss": 2 + 0.1 * row + 0.03 * np.log2(lr / best) ** 2 + noise * draw.standard_normal()}
        for width, best in optima.items() for lr in RATES for row in (0, 1)
    ]  # fmt: skip


def analyzed(rows: list[dict], name: str = "MuP") -> dict:
    widths = sorted({row["width"] for row in rows})
    arms = {(name, width): arm_from_rows("", [row for row in rows if row["width"] == width]) for width in widths}
    optima, drift = MupTransfer().optima(arms)
    caveats = [caveat for row in optima for caveat in edge_warnings(row)]
    return {"optima": optima, "drift": drift, "caveats": caveats}


def decisions(*drifts):
    return [result.decision for result in decide_together(questions([row for each in drifts for row in each], ""), 0.9)]


def test_without_noise_the_optimum_is_found_between_the_rates_and_seeds_may_differ():
    result = analyzed(rows({32: 0.015, 64: 0.03}, noise=0.0))
    assert [row["lr"] for row in result["optima"]] == pytest.approx([0.015, 0.03])
    assert [row["wider"] for row in result["optima"]] == pytest.approx([0.015, 0.03])
    assert result["drift"][0]["per_doubling"] == pytest.approx(1.0)


def test_ninety_percent_intervals_hold_the_optimum_and_the_drift_in_about_nine_of_ten():
    held, still = [], []
    for seed in range(60):
        result = analyzed(rows({32: 0.018, 64: 0.018, 128: 0.018}, seed))
        held += [row["lo"] <= 0.018 <= row["hi"] for row in result["optima"]]
        still.append(result["drift"][0]["lo"] <= 0 <= result["drift"][0]["hi"])
    assert 0.83 <= np.mean(held) <= 0.97
    assert 0.8 <= np.mean(still) <= 0.98


def test_a_rate_that_falls_with_the_width_transfers_under_neither_name_and_falls_faster_than_one_that_stays():
    result = analyzed(rows({32: 0.04, 64: 0.02, 128: 0.01}), "Standard")
    still = analyzed(rows({32: 0.02, 64: 0.02, 128: 0.02}))
    assert decisions(still["drift"], result["drift"]) == ["supported", "supported"]
    assert decisions(analyzed(rows({32: 0.04, 64: 0.02, 128: 0.01}))["drift"]) == ["contradicted"]
    assert decisions(result["drift"]) == [], "no claim is made about another parametrization alone"
    (drift,) = result["drift"]
    assert drift["cost"] == pytest.approx(0.03 * 4, rel=0.2) and drift["cost_lo"] < 0.03 * 4 < drift["cost_hi"]


def test_an_optimum_at_the_edge_is_none():
    result = analyzed(rows({32: 0.001, 64: 0.02}))
    edge, inside = result["optima"]
    assert (edge["place"], edge["lr"], edge["lo"]) == ("edge", None, None)
    assert inside["place"] == "interior" and result["drift"] == []
    assert result["caveats"][0]["code"] == "edge"


def test_a_rate_that_diverged_bounds_the_optimum_and_enters_no_parabola():
    built = rows({32: 0.02})
    built = [{**row, "status": "diverged" if row["lr"] > 0.05 else "finished"} for row in built]
    (row,) = analyzed(built)["optima"]
    assert row["place"] == "interior" and row["lr"] == pytest.approx(0.02, rel=0.15)


def write_runs(folder, name, optimum):
    for number, row in enumerate(rows({32: optimum, 64: optimum})):
        target = {"MuP": "kleiber.nn.MuP", "Standard": "kleiber.nn.StandardParametrization"}[name]
        model = {"width": row["width"], "parametrization": {"_target_": target}}
        config = {"model": model, "optimizer": {"lr": row["lr"]}, "seed": row["seed"], "study": None}
        stage = {"metrics": {"val/docs/loss": row["loss"]}, "lr": row["lr"]}
        fake_run(folder / f"run{number}", [stage], config=config, seed=row["seed"])


def test_runs_of_one_width_and_several_depths_are_compared_by_depth(tmp_path):
    for number, row in enumerate(rows({2: 0.04, 8: 0.01})):
        model = {"width": 32, "depth": row["width"], "context": 64, "parametrization": {"_target_": "kleiber.nn.MuP"}}
        config = {"model": model, "optimizer": {"lr": row["lr"]}, "seed": row["seed"], "study": None}
        stage = {"metrics": {"val/docs/loss": row["loss"]}, "lr": row["lr"]}
        fake_run(tmp_path / f"run{number}", [stage], config=config, seed=row["seed"])
    findings = MupTransfer().analyze(read_runs(tmp_path))
    assert [row["depth"] for row in findings.tables["Optima"]] == [2, 8]
    (drift,) = findings.tables["Drift of the optimum"]
    assert drift["per_doubling"] == pytest.approx(-1.0, abs=0.15) and drift["depths"] == "[2, 8]"


@pytest.mark.slow
def test_a_plain_sweep_is_read_as_this_study_when_asked_and_two_folders_as_one(tmp_path, capsys):
    write_runs(tmp_path / "mup", "MuP", 0.02)
    write_runs(tmp_path / "sp", "Standard", 0.01)
    (tmp_path / "mup" / "run0" / "summary.json").unlink()
    command = ["report", str(tmp_path / "mup"), "--study", "mup_transfer", "--also", str(tmp_path / "sp")]
    assert main(command) == 3, "a run that was killed leaves every claim untested"
    findings = json.loads((tmp_path / "mup" / "findings.json").read_text())
    assert findings["answer"] in capsys.readouterr().out and findings["missing"] == ["run0 (killed)"]
    optima = {(row["parametrization"], row["width"]): row["lr"] for row in findings["tables"]["Optima"]}
    assert optima["MuP", 64] == pytest.approx(0.02, rel=0.1) and optima["Standard", 64] == pytest.approx(0.01, rel=0.1)
    for name in ("transfer", "optima"):
        assert (tmp_path / "mup" / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "vegaEmbed" in (tmp_path / "mup" / "report.html").read_text()


def test_another_name_is_answered_with_the_nearest(tmp_path, capsys):
    write_runs(tmp_path / "mup", "MuP", 0.02)
    assert main(["report", str(tmp_path / "mup"), "--study", "mup_transfr"]) == 2
    assert "mup_transfer" in capsys.readouterr().err
