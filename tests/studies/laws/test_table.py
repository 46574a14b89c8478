"""Tables: float64 columns, derived roles, recorded exclusions, refusals with the column or the row."""

import re

import numpy as np
import pandas as pd
import pytest
from fake_run import fake_run

from kleiber.studies.laws import table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.table import load, read

FRAME = pd.DataFrame(
    {"params": [1439795200] * 3, "tokens": [921468928000] * 3, "loss": [2.0, 3.0, np.nan], "seed": [0, 1, 0]}
)
ROLES = {"N": "params", "D": "tokens", "L": "loss"}


def test_compute_does_not_overflow_int64():
    table = load(FRAME, ROLES)
    assert table.columns["C"][0] == pytest.approx(6 * 1439795200.0 * 921468928000.0, rel=1e-12)
    assert table.columns["M"][0] == pytest.approx(640.0, rel=1e-3)


def test_exclusions_are_recorded_with_row_and_rule():
    table = load(FRAME, ROLES, ["loss < 2.5 or seed = 0"])
    assert table.excluded == [
        {"row": 1, "rule": "where: loss < 2.5 or seed = 0"},
        {"row": 2, "rule": "not finite: L (loss)"},
    ]
    assert table.target.tolist() == [2.0]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_formats_read_alike(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    {"csv": lambda: FRAME.to_csv(path, index=False), "jsonl": lambda: FRAME.to_json(path, orient="records", lines=True),
     "parquet": lambda: FRAME.to_parquet(path)}[suffix]()  # fmt: skip
    assert load(read(path), ROLES).hash() == load(FRAME, ROLES).hash()


def test_hash_follows_the_rows():
    other = FRAME.assign(loss=[2.0, 3.1, np.nan])
    assert load(other, ROLES).hash() != load(FRAME, ROLES).hash()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="no column 'param'; did you mean 'params'"):
        load(FRAME, {"N": "param"})
    with pytest.raises(ValueError, match="column 'loss': 'oops' in row 1"):
        load(FRAME.assign(loss=["2", "oops", "3"]), ROLES)
    with pytest.raises(ValueError, match=r"add --map D=COL"):
        load(FRAME, {"N": "params", "L": "loss"}).inputs(find("chinchilla"))
    with pytest.raises(ValueError, match="none of the 3 rows"):
        load(FRAME, ROLES, ["loss > 9"])
    (tmp_path / "t.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"'\.xlsx'"):
        read(tmp_path / "t.xlsx")


@pytest.mark.parametrize(("role", "value"), [("N", 0), ("N", -5), ("D", 0.0), ("C", -1e9)])
def test_a_size_that_is_not_positive_is_refused_with_its_row_unless_it_is_excluded(role, value):
    frame = FRAME.assign(loss=2.0, flops=1e12)
    roles = {**ROLES, "C": "flops"}
    frame[roles[role]] = frame[roles[role]].astype(float)
    frame.loc[1, roles[role]] = value
    with pytest.raises(ValueError, match=rf"{role} \({roles[role]}\) must be > 0.*{re.escape(f'{value:g}')} in row 1"):
        load(frame, roles, needed=("N", "D"))
    assert len(load(frame, roles, ["seed = 0"], needed=("N", "D"))) == 2
    assert len(load(frame.assign(flops=1e12), roles, needed=("L",))) == 3, "a law without N and D may be fitted"


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.csv", "N,L,N,L,D\n1,2,3,4,5\n"), ("t.jsonl", '{"N": 1, "L": 2, "N": 3, "L": 4, "D": 5}\n')],
)
def test_columns_of_the_same_name_are_refused_by_name(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="'N', 'L'"):
        read(tmp_path / name)


def test_split_by_a_column():
    parts = load(FRAME, ROLES).split("seed")
    assert {name: len(part) for name, part in parts.items()} == {"0": 1, "1": 1}


def test_a_folder_of_runs_goes_through_the_catalog(tmp_path):
    for i in range(3):
        stage = {"params": 10**6 * (i + 1), "tokens": 10**9, "metrics": {"val/builtin/loss": 3.0 - 0.1 * i}}
        fake_run(tmp_path / f"cell-{i}", [stage])
    table = load(read(tmp_path), {"N": "params", "D": "tokens", "L": "val/builtin/loss"})
    assert table.columns["N"].tolist() == [1e6, 2e6, 3e6] and table.target.tolist() == pytest.approx([3.0, 2.9, 2.8])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no runs"):
        read(tmp_path / "empty")


@pytest.mark.parametrize(
    "losses",
    [["val/docs/loss", "val/code/loss"], ["val/docs/loss/trunk", "val/docs/loss/1M"], ["val/a/loss", "val/b/loss/2M"]],
)
@pytest.mark.parametrize("recorded", [{}, {"loss": [None, None]}], ids=["of W&B", "of kleiber"])
def test_runs_with_several_losses_are_refused_with_the_mapping_to_write(losses, recorded):
    frame = pd.DataFrame(
        {"active": [1e6, 2e6], "tokens": [1e7, 2e7], **{name: [3.0, 2.9] for name in losses}, **recorded}
    )
    with pytest.raises(ValueError) as refused:
        load(frame, {"N": "active", "D": "tokens", "L": "loss"})
    assert all(f"--map L={name}" in str(refused.value) for name in losses)
    assert len(load(frame, {"N": "active", "D": "tokens", "L": losses[0]})) == 2


def test_a_column_of_categories_is_read_as_its_numbers_or_refused_with_its_row():
    frame = pd.DataFrame({"N": pd.Categorical(["20", "5", None, "20"])})
    assert np.array_equal(table.numbers_of(frame, "N"), [20.0, 5.0, np.nan, 20.0], equal_nan=True)
    with pytest.raises(ValueError, match="'b' in row 1 is not a number"):
        table.numbers_of(pd.DataFrame({"N": pd.Categorical(["1", "b"])}), "N")
