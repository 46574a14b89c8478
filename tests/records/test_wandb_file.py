"""Offline runs of W&B are rows: their config by dotted key, and the last value of each metric."""

import json
import struct

import numpy as np
import pytest
from scipy import stats

from kleiber.launch.cli import main
from kleiber.records.regular_files import DamagedFile
from kleiber.records.wandb_file import BLOCK, HEADER, read_wandb_run, read_wandb_runs
from kleiber.studies.laws.table import read

LONG = "x" * 3 * BLOCK  # its record begins in one block and ends in the fourth


def set_values(items, values):
    for key, value in values.items():
        item = items.add()
        item.key, item.value_json = key, json.dumps(value)


def recorded(name="narrow", width=32, losses=(3.0, 2.0), summary=(), seed=1):
    """The records of a run as W&B's service writes them."""
    from wandb.proto.wandb_internal_pb2 import Record

    run, changed, end = Record(), Record(), Record()
    run.run.run_id, run.run.display_name, run.run.run_group = "0a1b", name, "ladder"
    set_values(run.run.config.update, {"model": {"width": width, "depth": 2}, "note": LONG, "_wandb": {"t": 1}})
    set_values(changed.config.update, {"seed": seed})
    rows = [Record() for _ in losses]
    for step, (row, loss) in enumerate(zip(rows, losses, strict=True)):
        set_values(row.history.item, {"val/docs/loss": loss, "_step": step})
    set_values(end.summary.update, dict(summary))
    return [record.SerializeToString() for record in (run, changed, *rows, end)]


def write(path, records):
    """Writes records to a log of blocks, in pieces where a record does not fit into its block."""
    data = bytearray(b":W&B\0\0\0")
    for record in records:
        begun = False
        while record or not begun:
            if (left := BLOCK - len(data) % BLOCK) < HEADER:
                data += bytes(left)
                left = BLOCK
            piece, record = record[: left - HEADER], record[left - HEADER :]
            kind = (3 if record else 4) if begun else (2 if record else 1)
            data += struct.pack("<IHB", 0, len(piece), kind) + piece
            begun = True
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_run_is_a_row_of_its_config_and_last_values(tmp_path):
    row = read_wandb_run(write(tmp_path / "run-0a1b.wandb", recorded(summary={"params": 1000})))
    assert row.pop("note") == LONG
    assert row == {
        "model.width": 32, "model.depth": 2, "seed": 1, "val/docs/loss": 2.0, "_step": 1, "params": 1000,
        "run": "narrow", "group": "ladder",
    }  # fmt: skip


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_what_a_kill_has_cut_off_is_left_out(tmp_path, cut):
    path = write(tmp_path / "run-0a1b.wandb", recorded(summary={"params": 1000}))
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_wandb_run(path)["val/docs/loss"] in (2.0, 3.0)


def test_a_folder_of_offline_runs_is_a_table(tmp_path):
    for number, width in enumerate((32, 64)):
        write(tmp_path / f"offline-run-{number}" / f"run-{number}.wandb", recorded(f"width{width}", width))
    assert [row["run"] for row in read_wandb_runs(tmp_path)] == ["width32", "width64"]
    assert read(tmp_path)["model.width"].tolist() == [32, 64]


def test_offline_runs_are_compared_as_a_table_of_runs(tmp_path):
    losses = np.random.default_rng(0).normal([[2.0], [1.9]], 0.01, (2, 5))
    for (side, seed), loss in np.ndenumerate(losses):
        path = tmp_path / "wandb" / f"offline-run-{side}-{seed}" / f"run-{side}{seed}.wandb"
        write(path, recorded(f"{side}-{seed}", (32, 64)[side], (3.0, float(loss)), seed=seed))
    out = tmp_path / "out.json"
    columns = "arm=model.width,seed=seed,value=val/docs/loss"
    assert main(["compare", str(tmp_path / "wandb"), "--map", columns, "--json", str(out)]) == 0
    (claim,) = json.loads(out.read_text())["claims"]
    test = stats.ttest_rel(losses[1], losses[0]).confidence_interval(0.9)
    assert [claim["lo"], claim["hi"]] == pytest.approx([test.low, test.high], abs=1e-9)


def test_other_files_and_damage_are_refused_by_name(tmp_path):
    (tmp_path / "a.wandb").write_bytes(b"text")
    with pytest.raises(DamagedFile, match=r"a\.wandb"):
        read_wandb_run(tmp_path / "a.wandb")
    path = write(tmp_path / "b.wandb", [b"\xff" * 9])
    with pytest.raises(DamagedFile, match=r"b\.wandb.*byte 7"):
        read_wandb_run(path)
