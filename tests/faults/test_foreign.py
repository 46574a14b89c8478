"""A stranger's run folder, study or table runs no code, leaks nothing and writes nowhere else, through any door."""

import pickle
from pathlib import Path

import pytest
import yaml
from small_run import SHAPE, TINY

from kleiber.launch.cli import main as kleiber
from kleiber.launch.main import main as train
from kleiber.records import archive
from kleiber.records.catalog import archive_runs


class Payload:
    """Unpickling it creates the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def hostile_nodes(tmp_path: Path) -> dict[str, dict]:
    """Nodes whose building would create the file `tmp_path/ran`, by what they use."""
    mark, file, code = tmp_path / "ran", tmp_path / "payload.pkl", tmp_path / "code.py"
    file.write_bytes(pickle.dumps(Payload(mark)))
    code.write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef law():\n    pass\n")
    moved = {
        "_target_": "kleiber.records.folder.set_aside",
        "folder": {"_target_": "pathlib.Path", "_args_": [str(file)]},
    }
    return {
        "pandas": {"_target_": "pandas.read_pickle", "filepath_or_buffer": str(file)},
        "torch": {"_target_": "torch.load", "f": str(file), "weights_only": False},
        "builtin": {"_target_": "builtins.exec", "_args_": [code.read_text()]},
        "law_file": {"_target_": "kleiber.studies.laws.law.from_file", "name": f"{code}:law"},
        "law_find": {"_target_": "kleiber.studies.laws.catalog.find", "name": f"{code}:law"},
        "set_aside": moved,
    }


NODES = ("pandas", "torch", "builtin", "law_file", "law_find", "set_aside")
DOORS = {
    "eval": lambda run, out: kleiber(["eval", str(run), "--evals", "perplexity"]),
    "export": lambda run, out: kleiber(["export", str(run), str(out)]),
    "teacher": lambda run, out: train([*TINY, *SHAPE, "objective=distill", f"objective.teacher={run}", f"root={out}"]),
    "init": lambda run, out: train([*TINY, *SHAPE, "init=checkpoint", f"init.path={run}", f"root={out}"]),
    "resume": lambda run, out: train([*TINY, *SHAPE, f"resume={run}", "budget.steps=4"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("door", DOORS)
def test_a_foreign_config_that_names_code_is_refused_at_every_door(foreign, tmp_path, capsys, door, node):
    value = hostile_nodes(tmp_path)[node]
    run = foreign("data.max_bytes" if node == "pandas" else "model.norm_eps", value)
    assert DOORS[door](run, tmp_path / "out") == 2
    assert value["_target_"] in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and (tmp_path / "payload.pkl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("place", ["study.yaml", "config.yaml"])
def test_a_foreign_study_that_names_code_is_refused_by_its_report(foreign, tmp_path, capsys, place, node):
    value = hostile_nodes(tmp_path)[node]
    study = {"_target_": "kleiber.studies.Scaling", "law": value}
    run = foreign("study", study if place == "config.yaml" else None)
    if place == "study.yaml":
        (run.parent / "study.yaml").write_text(yaml.safe_dump(study))
    assert kleiber(["report", str(run.parent)]) == 2
    assert value["_target_"] in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and (tmp_path / "payload.pkl").exists()


@pytest.mark.parametrize("door", DOORS)
def test_the_environment_is_not_revealed_to_a_foreign_config(foreign, tmp_path, capsys, monkeypatch, door):
    monkeypatch.setenv("SECRET", "hunter2")
    run = foreign("data.text", "${oc.env:SECRET}")
    assert DOORS[door](run, tmp_path / "out") == 2
    shown = capsys.readouterr()
    assert "data.text" in shown.err and "hunter2" not in shown.out + shown.err
    assert not any("hunter2" in path.read_text(errors="replace") for path in tmp_path.rglob("*.*") if path.is_file())


def test_the_environment_is_not_revealed_to_a_report(foreign, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    run = foreign("name", "study")
    (run.parent / "study.yaml").write_text("{_target_: kleiber.studies.Scaling, law: '${oc.env:SECRET}'}")
    assert kleiber(["report", str(run.parent)]) == 2
    shown = capsys.readouterr()
    assert "law" in shown.err and "hunter2" not in shown.out + shown.err


def test_rows_of_a_stranger_reveal_nothing_either(foreign, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    run = foreign("name", "study")
    archive_runs(run.parent)
    rows = archive.read(run.parent / archive.NAME)
    rows[0]["config"]["study"] = {"_target_": "kleiber.studies.Scaling", "law": "${oc.env:SECRET}"}
    alone = tmp_path / archive.NAME
    archive.append(alone, rows)
    assert kleiber(["report", str(alone)]) == 2
    shown = capsys.readouterr()
    assert "study.law" in shown.err and "hunter2" not in shown.out + shown.err


@pytest.mark.slow
@pytest.mark.parametrize("content", ["a: &a [1]\nb: *a\n", "[" * 10_000, "!!python/object/apply:os.getcwd []"])
def test_a_config_that_is_a_bomb_is_refused_at_every_door(foreign, tmp_path, capsys, content):
    run = foreign("name", "study")
    (run / "config.yaml").write_text(content)
    for name, door in DOORS.items():
        assert door(run, tmp_path / "out") == 2, name
        assert "config.yaml" in capsys.readouterr().err, name
    assert kleiber(["runs", str(run.parent)]) == 0
