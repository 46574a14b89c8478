"""Columns by role: optional roles may be numbers, and errors name row and column."""

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws.table_laws import check_range, constant_or_column, numbers, required, row_of

FRAME = pd.DataFrame({"a": [1.0, 2.0, np.nan], "text": ["x", "2", "3"]}, index=[4, 6, 9])


def test_an_optional_role_is_a_number_or_a_column():
    assert constant_or_column(FRAME[:2], {"floor": "a"}, "floor") == pytest.approx([1.0, 2.0])
    assert constant_or_column(FRAME, {"floor": "0.25"}, "floor") == pytest.approx([0.25] * 3)
    assert constant_or_column(FRAME, {}, "floor") is None


def test_errors_name_the_row_of_the_file_and_the_column():
    with pytest.raises(ValueError, match=r"nan in row 9, column 'a'"):
        numbers(FRAME, "a")
    with pytest.raises(ValueError, match=r"must be < 2, but it is 2 in row 6"):
        check_range(FRAME, "a", np.array([1.0, 2.0, 0.0]), "a must be < 2", np.array([True, False, True]))
    with pytest.raises(ValueError, match="'x'"):
        numbers(FRAME, "text")
    with pytest.raises(ValueError, match="--map N=size"):
        required(FRAME, {"N": "size"}, "N")
    assert row_of(FRAME, 1) == "row 6"
