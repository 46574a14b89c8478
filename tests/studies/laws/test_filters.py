"""Row filters: precedence, lists, quotes and units, and errors that name the column."""

import pandas as pd
import pytest

from kleiber.studies.laws.filters import keep, number

TABLE = pd.DataFrame({"loss": [1.0, 2.0, 3.0, 4.0], "params": [1e6, 1e7, 1e8, 1e9], "family": ["a", "b", "d=1 x", "b"]})


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("loss < 3", [0, 1]),
        ("loss <= 3 and N >= 1e7", [1, 2]),
        ("loss = 1 or loss > 3 and family == b", [0, 3]),
        ("(loss = 1 or loss > 3) and family == b", [3]),
        ("not loss < 3", [2, 3]),
        ("not (loss < 3 or family = b)", [2]),
        ("family in [a, 'd=1 x']", [0, 2]),
        ("loss not in [1, 2]", [2, 3]),
        ("params >= 10M and params < 1B", [1, 2]),
        ("family != b", [0, 2]),
    ],
)
def test_rows_kept(text, rows):
    assert keep(TABLE, text, {"N": "params"}).nonzero()[0].tolist() == rows


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("los < 3", "'los'.*'loss'"),
        ("loss < three", "'loss'.*'three'"),
        ("family < b", "'family'.*<"),
        ("loss <", "the end"),
        ("(loss < 3", r"\).*the end"),
        ("loss < 3 loss > 1", "'loss'$"),
        ("__import__('os').system('true')", "'__import__'"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused_with_its_place(text, named):
    with pytest.raises(ValueError, match=named):
        keep(TABLE, text)


@pytest.mark.parametrize("opened", ["(", "not "])
def test_a_filter_that_is_nested_too_deeply_is_refused_by_its_text(opened):
    closed = ")" if opened == "(" else ""
    assert keep(TABLE, opened * 50 + "loss < 3" + closed * 50).sum() == 2
    assert keep(TABLE, " and ".join([f"{opened}loss < 3{closed}"] * 500)).sum() == 2
    with pytest.raises(ValueError, match=r"--where .*100 parentheses"):
        keep(TABLE, opened * 5000 + "loss < 3" + closed * 5000)


def test_numbers_take_units():
    assert [number(text) for text in ("20M", "1.5B", "2e7", "-3", "x", "1e")] == [20e6, 1.5e9, 2e7, -3.0, None, None]
