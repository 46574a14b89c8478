"""A law from the signature and docstring of a function, and what is computed from its parameters."""

import numpy as np
import pytest

from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.law import Array, Exponent, Linear, Part, Signed, describe, from_file


def floor_only(N: Array, *, E: Part, S: Signed, alpha: Exponent) -> Array:
    """Ours: L = E + S N^-alpha.

    Source: a test
    """
    return E + S * N**-alpha


def test_a_law_is_described_by_its_signature_and_docstring():
    law = describe(floor_only)
    assert (law.name, law.inputs, tuple(law.params)) == ("floor_only", ("N",), ("E", "S", "alpha"))
    assert (law.formula, law.source) == ("L = E + S N^-alpha", "a test")
    assert (law.linear, law.shapes, law.log.tolist()) == ([0, 1], [2], [True, False, True])
    assert [(kind.lo, kind.hi) for kind in law.params.values()] == [(0, np.inf), (-np.inf, np.inf), (0.05, 1.6)]


def test_values_are_computed_for_every_draw_and_row():
    law, N = describe(floor_only), np.array([1e6, 1e8])
    draws = np.array([[2.0, 50.0, 0.3], [1.5, -20.0, 0.2]])
    expected = [[E + S * n**-a for n in N] for E, S, a in draws]
    np.testing.assert_allclose(law.predict({"N": N}, draws), expected)
    assert law.named(draws)["S"].tolist() == [50.0, -20.0]


def test_a_fixed_parameter_is_no_longer_fitted_and_still_enters():
    law, N = describe(floor_only), np.array([1e6, 1e8])
    fixed = law.fix({"E": 2.0})
    assert tuple(fixed.params) == ("S", "alpha") and fixed.fixed == {"E": 2.0}
    np.testing.assert_allclose(
        fixed.predict({"N": N}, np.array([[50.0, 0.3]])), law.predict({"N": N}, np.array([[2.0, 50.0, 0.3]]))
    )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"alfa": 0.3}, "did you mean 'alpha'"),
        ({"alpha": 7.0}, r"alpha=7.*\[0\.05, 1\.6\]"),
        ({"E": -1.0}, "E=-1"),
        ({"S": np.nan}, "S=nan"),
        ({"E": 1.0, "S": 1.0, "alpha": 0.3}, "none is left"),
    ],
)
def test_a_value_that_cannot_be_fixed_is_refused_with_its_range(values, named):
    with pytest.raises(ValueError, match=named):
        describe(floor_only).fix(values)


def test_a_law_of_base_ten_logarithms_predicts_in_the_units_of_the_target():
    law = find("routed")
    inputs = {"N": np.array([1e8]), "X": np.array([8.0])}
    values = np.array([[-0.087, -0.136, 0.012, 1.157, 4.2, 478.0]])
    assert law.predict(inputs, values)[0, 0] == pytest.approx(10 ** law.evaluate(inputs, values)[0, 0])


def test_the_search_rules_have_bounds():
    assert (
        Linear().lo == 0.0
        and Linear(signed=True).lo == -Linear().hi
        and Linear(signed=True).log is False
        and Linear().log is True
    )


def test_user_law_from_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from kleiber.studies.laws.law import Array, Exponent, Part\n"
        "def floor_only(N: Array, *, E: Part, A: Part, alpha: Exponent):\n"
        '    """Mine: L = E + A N^-alpha."""\n'
        "    return E + A * N**-alpha\n"
        "def bare(N, *, a: float):\n    return a * N\n"
    )
    law = from_file(f"{path}:floor_only")
    N = np.geomspace(1e6, 1e9, 9)
    assert fit(law, {"N": N}, 2 + 50 * N**-0.3).params["alpha"] == pytest.approx(0.3, abs=1e-4)
    assert law.formula == "L = E + A N^-alpha"
    with pytest.raises(ValueError, match=r"'a' has no annotation"):
        from_file(f"{path}:bare")
    with pytest.raises(ValueError, match="floor_only, bare"):
        from_file(f"{path}:other")
