"""A fitted law has what `kleiber fit` prints and writes, is read from laws.json, and refuses what has no effect."""

import json

import numpy as np
import pandas as pd
import pytest

from kleiber.launch.cli import main
from kleiber.studies.fitted_law import FittedLaw, fit, load
from kleiber.studies.laws.law import Array, Part

PARAMS = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.37}


def ladder() -> pd.DataFrame:
    """An exact law at four sizes and five numbers of tokens."""
    n, d = (grid.ravel() for grid in np.meshgrid([1e7, 3e7, 1e8, 3e8], [1e8, 3e8, 1e9, 3e9, 1e10]))
    loss = PARAMS["E"] + PARAMS["A"] * n ** -PARAMS["alpha"] + PARAMS["B"] * d ** -PARAMS["beta"]
    return pd.DataFrame({"params": n, "tokens": d, "loss": loss})


COLUMNS = {"N": "params", "D": "tokens", "L": "loss"}


@pytest.fixture(scope="module")
def law() -> FittedLaw:
    return fit(ladder(), "chinchilla", map=COLUMNS, bootstrap=40)


@pytest.mark.slow
def test_a_law_is_that_of_the_command(law, tmp_path):
    ladder().to_csv(tmp_path / "runs.csv")
    columns = ",".join(f"{role}={column}" for role, column in COLUMNS.items())
    command = ["fit", str(tmp_path / "runs.csv"), "--map", columns, "--bootstrap", "40", "--json"]
    main([*command, str(tmp_path / "laws.json")])
    law.write(tmp_path / "own.json")
    ours, theirs = (json.loads((tmp_path / name).read_text()) for name in ("own.json", "laws.json"))
    assert ours == theirs
    assert {name: estimate["value"] for name, estimate in law.params.items()} == pytest.approx(PARAMS, rel=1e-3)
    at = law.predict(N=1e9, D=2e10)
    expected = PARAMS["E"] + PARAMS["A"] * 1e9 ** -PARAMS["alpha"] + PARAMS["B"] * 2e10 ** -PARAMS["beta"]
    assert at["value"] == pytest.approx(expected, rel=1e-4) and at["run_lo"] < at["value"] < at["run_hi"]
    read = load(tmp_path / "own.json")
    assert read.predict(N=1e9, D=2e10) == at and read.verdicts == law.verdicts and read.rows is None
    assert read.params == law.params and str(read) == str(law) and read.plot("backtests").to_dict()
    (tmp_path / "short.json").write_text(json.dumps({key: ours[key] for key in ours if key != "verdicts"}))
    with pytest.raises(ValueError, match="verdicts"):
        load(tmp_path / "short.json")


@pytest.mark.slow
def test_a_law_is_drawn_and_a_figure_that_it_lacks_is_refused(law):
    assert law.plot().to_dict()["title"] and law.plot("residuals").to_dict() != law.plot("fit").to_dict()
    with pytest.raises(ValueError, match="'x'"):
        law.plot("x")


@pytest.mark.parametrize(
    ("options", "value"),
    [({"boostrap": 3}, "boostrap"), ({"map": {"Q": "loss"}}, "Q=loss"), ({"level": 2.0}, "level 2"),
     ({"delta": 0.1, "loss_fn": "squared"}, "0.1")],
)  # fmt: skip
def test_an_option_that_does_not_exist_or_has_no_effect_is_refused(options, value):
    with pytest.raises(ValueError, match=value):
        fit(ladder(), **{"map": COLUMNS, "bootstrap": 0, **options})


def test_a_function_is_a_law_and_a_point_too_far_is_refused():
    def offset(N: Array, *, c: Part) -> Array:
        return c + 0 * N

    table = ladder().assign(loss=2.0)
    law = fit(table, offset, map=COLUMNS, bootstrap=0)
    assert law.params["c"]["value"] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="max_decades"):
        law.predict(N=1e20)
    assert law.predict(N=1e20, max_decades=99)["value"] == pytest.approx(2.0)
