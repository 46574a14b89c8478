"""runs.jsonl.gz: what is appended is read back whole, whatever a kill left of it, and its runs are runs like others."""

import gzip
import json
import threading
from itertools import pairwise

import pytest
import yaml
from fake_run import fake_run

from kleiber.config.errors import ConfigError
from kleiber.records import archive
from kleiber.records.archive import archive_rows
from kleiber.records.catalog import Run, archive_run, archive_runs, archived_runs, find_run, read_run, read_runs
from kleiber.records.metrics import MOST_ROWS, condense
from kleiber.records.regular_files import DamagedFile

ROW = {"run": "a", "config": {}, "summary": {"status": "finished"}, "rows": []}


def leave(folder, stages, status="finished", seconds=3.5, logged=(), config=None, **summary):
    """What a run leaves in its folder."""
    settings = {"status": status, "seconds": seconds, "rows": logged, "overrides": ["seed=0"], **summary}
    return fake_run(folder, stages, config={"seed": 0, **(config or {})}, **settings)


def stage(name="main", parent=None, loss=2.5):
    return {"name": name, "parent": parent, "trunk": parent, "status": "finished", "metrics": {"val/docs/loss": loss}}


TREE = [stage("trunk"), stage("1M", "trunk", 2.4), stage("2M", "trunk", 2.3)]
LOGGED = [{"stage": name, "step": step, "train/loss": 3.0} for name in ("trunk", "1M", "2M") for step in (1, 2)]


def content(run: Run):
    """All that an analysis can learn of a run."""
    return (
        run.name,
        run.status,
        run.config,
        run.overrides,
        run.rows,
        run.leaf_rows(),
        run.stages,
        run.summary["seconds"],
    )


def test_what_is_appended_is_read_back_in_order_and_by_any_gzip(tmp_path):
    file = tmp_path / archive.NAME
    assert archived_runs(file) == []
    for number in range(3):
        archive.append(file, [{**ROW, "run": f"r{number}-{leaf}"} for leaf in range(2)])
    names = [row["run"] for row in archive.read(file)]
    assert names == ["r0-0", "r0-1", "r1-0", "r1-1", "r2-0", "r2-1"]
    assert [json.loads(line)["run"] for line in gzip.decompress(file.read_bytes()).splitlines()] == names


def test_a_member_that_was_cut_anywhere_is_passed_over_and_removed_by_the_next_append(tmp_path):
    file = tmp_path / archive.NAME
    archive.append(file, [ROW])
    first = file.stat().st_size
    archive.append(file, [{**ROW, "run": "b"}, {**ROW, "run": "b", "rows": [{"step": 1, "x": 0.123}]}])
    whole = file.read_bytes()
    for length in range(first, len(whole)):
        file.write_bytes(whole[:length])
        assert [row["run"] for row in archive.read(file)] == ["a"]
        archive.append(file, [{**ROW, "run": "c"}])
        assert [row["run"] for row in archive.read(file)] == ["a", "c"]
        assert file.read_bytes()[:first] == whole[:first]


def test_damage_before_the_end_is_refused_with_its_place(tmp_path):
    file = tmp_path / archive.NAME
    archive.append(file, [ROW])
    first = file.stat().st_size
    archive.append(file, [ROW])
    file.write_bytes(file.read_bytes()[:first] + b"rubbish, and more of it than a header has")
    with pytest.raises(ValueError, match=f"truncate -s {first}"):
        archive.read(file)
    file.write_bytes(gzip.compress(b'{"run": "a"}\n'))
    with pytest.raises(ValueError, match="line 1"):
        archive.read(file)


@pytest.mark.parametrize(
    "content", [b"# My notes\n", b"tokens,loss\n1,2\n", b"", gzip.compress(b"x" * 99, mtime=0)[:12] + bytes(40)]
)
def test_no_advice_empties_a_file(tmp_path, content):
    file = tmp_path / "notes.md"
    file.write_bytes(content)
    if not content:
        assert archived_runs(file) == []
        return
    with pytest.raises(ConfigError) as refused:
        archived_runs(file)
    assert "notes.md" in str(refused.value) and "truncate" not in str(refused.value)
    assert ("not gzip" in str(refused.value)) == (content[:2] != b"\x1f\x8b")


def test_appends_at_one_time_lose_none(tmp_path):
    file = tmp_path / archive.NAME
    threads = [threading.Thread(target=archive.append, args=(file, [{**ROW, "run": str(n)}])) for n in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(int(row["run"]) for row in archive.read(file)) == list(range(16))


@pytest.mark.parametrize("stages", [TREE, [stage()], [stage("a"), stage("b", "a")]], ids=["tree", "single", "chain"])
def test_a_run_is_the_same_from_its_folder_and_from_its_rows(tmp_path, stages):
    logged = LOGGED if stages is TREE else [{"step": 1, "train/loss": 3.0}, {"step": 1, "moe/dead/0": 1.0}]
    run = read_run(leave(tmp_path / "a" / "cell", stages, logged=logged, R={"tasks": ["docs"]}))
    rows = archive_rows(run)
    assert len(rows) == len(run.leaves) and all(row.keys() == archive.KEYS for row in rows)
    assert [row["summary"]["stages"][-1] for row in rows] == run.leaves
    archive.append(tmp_path / archive.NAME, rows)
    (kept,) = archived_runs(tmp_path / archive.NAME)
    assert content(kept) == content(run) and kept.summary == run.summary
    assert kept.archived is not None and kept.folder == tmp_path / "cell"


def test_a_run_without_a_leaf_has_one_row_all_the_same(tmp_path):
    for name, stages in (("none", []), ("trunk", [stage("trunk")])):
        run = read_run(leave(tmp_path / name, stages, "failed", error="ValueError: no"))
        archive_run(run.folder)
        (kept,) = [one for one in archived_runs(tmp_path / archive.NAME) if one.name == name]
        assert content(kept) == content(run) and kept.summary["error"] == "ValueError: no"


def test_of_a_run_that_ended_twice_the_last_row_counts_and_a_finished_one_first(tmp_path):
    ends = [("failed", 1.0), ("finished", 2.0), ("finished", 3.0), ("failed", 4.0)]
    for status, seconds in ends:
        leave(tmp_path / "cell", TREE, status, seconds, LOGGED)
        archive_run(tmp_path / "cell")
        archive_run(tmp_path / "cell")
    (kept,) = archived_runs(tmp_path / archive.NAME)
    assert (kept.status, kept.summary["seconds"], len(kept.leaves), kept.rows) == ("finished", 3.0, 2, LOGGED)
    (read,) = read_runs(tmp_path)
    assert read.summary["seconds"] == 3.0, "the folder holds a run that failed"
    leave(tmp_path / "cell", TREE, "finished", 5.0)
    (read,) = read_runs(tmp_path)
    assert (read.summary["seconds"], read.archived) == (5.0, None)


def test_runs_that_have_ended_are_added_once_and_others_never(tmp_path):
    for status in ("finished", "failed", "diverged", "running", "preempted"):
        leave(tmp_path / status, [stage()], status)
    leave(tmp_path / "cell-0123abcd", [stage()])
    leave(tmp_path / "cell-0123abcd.1", [stage()])  # which resume=never has set aside
    file = tmp_path / archive.NAME
    archive_runs(tmp_path)
    size = file.stat().st_size
    assert {run.name for run in archived_runs(file)} == {"finished", "failed", "diverged", "cell-0123abcd"}
    archive_runs(tmp_path)
    assert file.stat().st_size == size
    leave(tmp_path / "failed", [stage(loss=1.0)], "finished", 9.0)
    archive_runs(tmp_path)
    assert next(run for run in archived_runs(file) if run.name == "failed").status == "finished"
    assert "cell-0123abcd.1" not in {run.name for run in read_runs(tmp_path)}


def test_a_run_that_cannot_be_added_is_reported_and_does_not_fail(tmp_path, capsys):
    leave(tmp_path / "cell", [stage()])
    (tmp_path / archive.NAME).mkdir()
    archive_run(tmp_path / "cell")
    message = capsys.readouterr().err
    assert "cell" in message and archive.NAME in message


def test_folders_and_rows_are_one_table(tmp_path):
    leave(tmp_path / "s" / "a", [stage()])
    archive_run(tmp_path / "s" / "a")
    (tmp_path / "s" / "a" / "config.yaml").unlink()
    (tmp_path / "s" / "a" / "summary.json").unlink()
    leave(tmp_path / "s" / "b", [stage()])
    assert [(run.name, run.archived is None) for run in read_runs(tmp_path)] == [("a", False), ("b", True)]
    assert [run.name for run in read_runs(tmp_path / "s" / archive.NAME)] == ["a"]
    assert find_run(tmp_path / "s" / "c") is None
    found = find_run(tmp_path / "s" / "a")
    assert found is not None and found.status == "finished"


def test_a_renamed_run_stays_one_run_with_rows_that_are_read(tmp_path):
    first = leave(tmp_path / "s" / "cell-0123abcd", [stage()])
    archive_run(first)
    renamed = first.rename(first.with_name("best run (keep)"))
    archive_runs(tmp_path / "s")
    (run,) = read_runs(tmp_path)
    assert (run.folder, run.archived) == (renamed, None)
    assert [run.name for run in archived_runs(tmp_path / "s" / archive.NAME)] == ["cell-0123abcd"]
    leave(tmp_path / "s" / "never archived (yet)", [stage()])
    archive_runs(tmp_path / "s")
    assert {run.name for run in read_runs(tmp_path)} == {"best run (keep)", "never archived (yet)"}


def test_a_run_in_a_hidden_folder_is_not_archived_and_does_not_block_the_study(tmp_path, capsys):
    leave(tmp_path / "a", [stage()])
    leave(tmp_path / ".old-12345678", [stage()])
    archive_runs(tmp_path)
    archive_run(tmp_path / ".old-12345678")
    message = capsys.readouterr().err
    assert message.count(".old-12345678") == 2 and "rename the folder" in message
    assert [run.name for run in archived_runs(tmp_path / archive.NAME)] == ["a"]
    assert {run.name for run in read_runs(tmp_path)} == {"a", ".old-12345678"}


def test_paths_between_runs_of_a_study_follow_it_when_it_is_moved(tmp_path):
    (tmp_path / "new").mkdir()
    config = {
        "init": {"path": "/old/s/base-0123abcd/main"},
        "data": {"path": "/old/texts", "config": "base-0123abcd/x"},
    }
    leave(tmp_path / "s" / "base-0123abcd", [stage()])
    run = leave(tmp_path / "s" / "arm-4567abcd", [stage()], config=config)
    (run / "overrides.yaml").write_text(yaml.safe_dump(["init.path=/old/s/base-0123abcd", "data.path=/old/texts"]))
    archive_runs(tmp_path / "s")
    (tmp_path / "s" / archive.NAME).rename(tmp_path / "new" / archive.NAME)
    arm, _ = read_runs(tmp_path / "new")
    assert arm.config["init"]["path"] == str(tmp_path / "new" / "base-0123abcd" / "main")
    assert arm.config["data"] == config["data"]
    assert arm.overrides == [f"init.path={tmp_path / 'new' / 'base-0123abcd'}", "data.path=/old/texts"]


def test_the_rows_of_a_long_run_are_bounded_and_keep_their_ends_and_kinds():
    count = 10 * MOST_ROWS
    rows = [{"step": step, "train/loss": float(step)} for step in range(count)]
    rows += [{"step": step, "moe/dead/0": 1.0, "moe/load/0/3": 0.1} for step in range(0, count, 1000)]
    kept = condense(rows)
    losses = [row["step"] for row in kept if "train/loss" in row]
    assert len(losses) == MOST_ROWS and (losses[0], losses[-1]) == (0, count - 1)
    assert max(b - a for a, b in pairwise(losses)) <= 11
    assert [row["step"] for row in kept if "moe/dead/0" in row] == [0, 1000]
    assert not any("moe/load/0/3" in row for row in kept), "one key an expert: they grow with the model"
    assert condense(kept) == kept


def test_an_odd_summary_is_refused_with_its_line_and_its_key(tmp_path):
    run = read_run(leave(tmp_path / "a" / "cell", [stage()]))
    archive.append(tmp_path / archive.NAME, archive_rows(run))
    (row,) = archive.read(tmp_path / archive.NAME)
    archive.append(tmp_path / archive.NAME, [{**row, "summary": {**row["summary"], "status": "\x1b[31mfinished"}}])
    with pytest.raises(DamagedFile, match=r"line 2: status"):
        archived_runs(tmp_path / archive.NAME)
