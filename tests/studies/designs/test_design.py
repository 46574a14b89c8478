"""Cells as combinations of levels, and the base run that a later round starts from."""

from collections import Counter
from math import prod

import numpy as np
import pytest
import yaml
from fake_run import write_summary
from hypothesis import given
from hypothesis import strategies as st

from kleiber.records.catalog import read_runs
from kleiber.studies.designs.design import (
    Level,
    as_list,
    combine,
    find_base_run,
    parse_lines,
    rank_of,
    seed_levels,
    shortfall,
)
from kleiber.studies.laws.catalog import find

VALUES = st.one_of(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))


def factor(prefix):
    """Levels that set up to two keys with this prefix."""
    keys = st.sampled_from([f"{prefix}.a", f"{prefix}.b"])
    return st.lists(st.dictionaries(keys, VALUES, max_size=2).map(Level), min_size=1, max_size=3)


def number(level):
    return prod(len(as_list(value)) for value in level.values.values())


@pytest.mark.slow
@given(factor("x"), factor("y"), factor("z"))
def test_every_level_meets_every_level_of_the_other_factors_whatever_varies_slowest(x, y, z):
    cells = combine(x, y, z)
    assert len(cells) == prod(sum(map(number, levels)) for levels in (x, y, z))
    by_line = [Counter(map(tuple, combine(x, y, z, slow=slow))) for slow in (0, 1, 2)]
    assert by_line[0] == by_line[1] == by_line[2] == Counter(map(tuple, cells))


@pytest.mark.slow
@given(factor("x"), factor("y"))
def test_overrides_stand_in_the_order_of_the_factors_and_slow_factors_come_one_level_after_another(x, y):
    for slow, blocks in ((0, [combine([level], y) for level in x]), (1, [combine(x, [level]) for level in y])):
        cells = combine(x, y, slow=slow)
        assert cells == [cell for block in blocks for cell in block]
        for cell in cells:
            prefixes = [line[0] for line in cell]
            assert prefixes == sorted(prefixes)


@given(st.dictionaries(st.sampled_from("abc"), VALUES), st.dictionaries(st.sampled_from("bcd"), VALUES))
def test_a_later_level_decides_about_the_keys_of_both(first, second):
    decided = {**first, **second}
    cells = (Level(first) | Level(second)).cells()
    assert len(cells) == len({tuple(cell) for cell in cells}) == number(Level(decided))
    for cell in map(parse_lines, cells):
        assert list(cell) == list(decided)
        assert all(value in map(str, as_list(decided[key])) for key, value in cell.items())


def test_values_are_written_as_overrides_and_the_last_key_varies_fastest():
    assert Level({"a": [1, 2], "b": [None, True]}).cells() == [
        ["a=1", "b=null"], ["a=1", "b=True"], ["a=2", "b=null"], ["a=2", "b=True"],
    ]  # fmt: skip
    assert Level({"a": [[1, None], "x"]}).cells() == [["a=[1,null]"], ["a=x"]]
    assert Level({"a": [1, 2], "b": lambda cell: 10 * cell["a"]}).cells() == [["a=1", "b=10"], ["a=2", "b=20"]]
    with pytest.raises(ValueError, match=r"model.KEY"):
        Level({"model": {"depth": 1}}).cells()


def test_placeholders_have_the_text_of_their_seed():
    starts = Level({"init.path": "{base}/{seed}/{other}"})
    cells = combine([starts], seed_levels(2, {"base": ["P", "Q", "R"]}), slow=1)
    assert cells == [["init.path=P/0/{other}", "seed=0"], ["init.path=Q/1/{other}", "seed=1"]]


def finish(folder, overrides, status="finished"):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    write_summary(folder, status=status)


def test_arms_are_no_bases_and_two_candidates_are_refused(tmp_path):
    base = ["data.domain=docs", "seed=0"]
    finish(tmp_path / "arm", [*base, "init=checkpoint", "init.path=x"])
    assert find_base_run(read_runs(tmp_path), base) is None
    finish(tmp_path / "one", base)
    result = find_base_run(read_runs(tmp_path), base)
    assert result is not None and result.name == "one"
    finish(tmp_path / "two", [*base, "optimizer.lr=1"])
    with pytest.raises(ValueError, match="one, two"):
        find_base_run(read_runs(tmp_path), base)


def test_a_key_that_the_command_line_took_over_is_looked_past(tmp_path):
    bases = [["data.domain=docs", "seed=0"], ["data.domain=docs", "seed=1"]]
    finish(tmp_path / "one", ["data.domain=code", "seed=0"])
    result = find_base_run(read_runs(tmp_path), bases[0], bases)
    assert result is not None and result.name == "one"
    assert find_base_run(read_runs(tmp_path), bases[1], bases) is None, "seeds were not taken over: that one is missing"
    finish(tmp_path / "two", bases[0], "failed")
    assert find_base_run(read_runs(tmp_path), bases[0], bases) is None, "its own run is there, and failed"


LAW = find("chinchilla")


def grid(sizes: int, lengths: int) -> dict[str, np.ndarray]:
    N, D = np.meshgrid(np.geomspace(1e5, 1e6, sizes), np.geomspace(1e6, 1e7, lengths))
    return {"N": N.ravel(), "D": D.ravel()}


def test_a_grid_of_three_sizes_and_three_lengths_determines_the_law():
    assert rank_of(LAW, grid(3, 3)) == len(LAW.params) and shortfall(LAW, grid(3, 3)) is None


@pytest.mark.parametrize(("sizes", "lengths", "missing"), [(1, 9, "model sizes"), (9, 1, "token counts")])
def test_a_line_of_points_does_not_and_the_missing_variation_is_named(sizes, lengths, missing):
    why = shortfall(LAW, grid(sizes, lengths))
    assert why is not None and f"add {missing}" in why


def test_repeated_points_count_once():
    inputs = {name: np.repeat(column, 9) for name, column in grid(2, 2).items()}
    assert "4 points" in str(shortfall(LAW, inputs))
