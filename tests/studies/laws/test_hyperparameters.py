"""The law of the swept hyperparameters: its parameters, derived exponents and optima."""

import numpy as np
import pytest

from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.hyperparameters import of_axes


def test_the_law_has_the_parameters_of_its_axes_and_the_optima_of_its_formula():
    law = of_axes(["decay", "lr", "batch"])
    assert list(law.params) == ["c", "a", "b", "d", "e", "g", "h"]
    values = np.array([[2.0, -0.5, 0.3, 4.0, 0.6, 0.1, -0.4]])
    at = {"N": np.array([1e6]), "D": np.array([1e8]), "M": np.array([100.0])}
    best = {axis: law.optimum(axis, at, values)[0, 0] for axis in law.axes}
    assert best == pytest.approx({"lr": 2 * 1e6**-0.5 * 1e8**0.3, "batch": 4 * 1e8**0.6, "decay": 0.1 * 100**-0.4})
    assert {name: value[0] for name, value in law.derive(values).items()} == {
        "lr_N": -0.5, "lr_D": 0.3, "batch_D": 0.6, "decay_M": -0.4,
    }  # fmt: skip


def test_the_catalog_finds_it_and_a_record_chooses_its_axes():
    law = find("hyperparameter")
    assert law.for_params({"c": 0, "a": 0, "b": 0}).params.keys() == {"c", "a", "b"}
    assert "decay*" in law.for_params(["c", "a", "b", "g", "h"]).formula
    with pytest.raises(ValueError, match="did you mean 'hyperparameter'"):
        find("hyperparameters")
