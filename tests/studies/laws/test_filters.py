"""Row filters: precedence, lists, quotes and units, and errors that name the column."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleiber.studies.laws.filters import keep, number, parse_map, parse_numbers, parse_point, parse_values

TABLE = pd.DataFrame({"loss": [1.0, 2.0, 3.0, 4.0], "params": [1e6, 1e7, 1e8, 1e9], "family": ["a", "b", "d=1 x", "b"]})
TABLE["tied"] = ["true", "false", "null", "true"]  # as `kleiber runs` reads truth values of a config


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
        ("tied == False", [1]),
        ("tied in [True]", [0, 3]),
        ("tied = null", [2]),
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
        ("(loss < 3", r"error at '\('"),
        ("loss < 3 loss > 1", "error at 'loss'"),
        ("family in b", "error at 'b'"),
        ("loss in []", r"error at '\['"),
        ("1 < loss < 3", "error at '1'"),
        ("params > loss * 2", r"error at '\*'"),
        ("__import__('os').system('true')", r"error at '\.system'"),
        ("__import__('os')", "error at '__import__'"),
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
    with pytest.raises(ValueError, match=r"--where .*remove some"):
        keep(TABLE, opened * 5000 + "loss < 3" + closed * 5000)


def test_numbers_take_units():
    assert [number(text) for text in ("20M", "1.5B", "2e7", "-3", "x", "1e")] == [20e6, 1.5e9, 2e7, -3.0, None, None]


NAMES = st.sampled_from(["loss < 3", "params >= 10M", "family = b", "family in [a, 'd=1 x']", "not loss = 2"])
TREES = st.recursive(
    NAMES, lambda part: st.tuples(part, st.sampled_from(["and", "or", "and not", "OR NOT"]), part), max_leaves=6
)


def written(tree):
    """A filter with every part in parentheses."""
    return tree if isinstance(tree, str) else f"({written(tree[0])}) {tree[1]} ({written(tree[2])})"


def rows_of(tree):
    """The mask of a tree, from the masks of its comparisons."""
    if isinstance(tree, str):
        return keep(TABLE, tree)
    left, right = rows_of(tree[0]), rows_of(tree[2])
    right = ~right if tree[1].lower().endswith("not") else right
    return left & right if tree[1].lower().startswith("and") else left | right


@pytest.mark.slow
@given(TREES)
def test_parts_are_combined_as_their_masks_are(tree):
    assert (keep(TABLE, written(tree)) == rows_of(tree)).all()


@given(st.text("loss<>=!()[],'\"` 3ab.andornti\n\t", max_size=20))
def test_any_text_gives_a_mask_or_a_value_error(text):
    try:
        assert keep(TABLE, text).shape == (4,)
    except ValueError as error:
        assert str(error).startswith("--where")


def test_columns_points_and_numbers_are_read_and_contradictions_refused():
    assert parse_map("N=a,D = b", {"L": "c", "C": None}) == {"L": "c", "N": "a", "D": "b"}
    assert parse_values(["E=1.8", "A=2k"], "--fix") == {"E": 1.8, "A": 2000.0}
    assert parse_point("N=7B D=140B") == {"N": 7e9, "D": 140e9}
    assert parse_numbers("1e20,2k", "--backtest") == [1e20, 2000.0]
    for parse, arguments, named in (
        (parse_map, ("N",), "ROLE=COLUMN"), (parse_map, ("N=other", {"N": "params"}), "contradicts N=params"),
        (parse_values, (["E=1", "E=2"], "--fix"), "--fix.*contradicts E=1"), (parse_point, ("",), "missing"),
        (parse_values, (["=1"], "--fix"), "NAME=NUMBER"), (parse_numbers, ("1,x", "--backtest"), "--backtest '1,x'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=named):
            parse(*arguments)
