"""A stranger's folder of runs: no command waits, fills the memory, writes elsewhere, or prints an escape.

FAULTS 103, 114, 115, 117, 118, 120 and 124; `hostile.py` makes such folders as a function of a seed.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from faults import hostile, hostile_runs

from kleiber.launch.cli import main
from kleiber.records.terminal import CONTROL

LIST = ("runs", "runs --json", "runs --columns", "diff", "clean", "compare")  # commands that draw nothing
QUICK = [seed for seed in range(400) if seed % 17 == 3]


@pytest.fixture
def study(tmp_path) -> Path:
    return hostile.make_study(tmp_path)


@pytest.fixture
def outside(tmp_path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "thesis.txt").write_text("my thesis")
    return folder


@pytest.fixture(autouse=True)
def no_waiting(request):
    """Fails a test that waits for a pipe, or reads a device without an end; forks have a limit of their own."""
    if request.node.get_closest_marker("forks") is not None:
        yield
        return

    def fail(*_: object) -> None:
        raise TimeoutError("a pipe or a device was opened")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run(study: Path, name: str, capsys) -> tuple[int, str]:
    """Exit code and output of a command of `hostile_runs.commands`."""
    code = main(hostile_runs.commands(study)[name])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


@pytest.mark.slow
@pytest.mark.parametrize("file", ["runs.jsonl.gz", "{run}/summary.json", "{run}/metrics.jsonl", "{run}/.lock"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_refused_at_once(study, capsys, file, kind):
    run_folder = min(path.parent for path in study.glob("*/config.yaml"))
    path = study / file.format(run=run_folder.name)
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    for name in ("runs", "diff", "clean"):
        began = time.process_time()
        code, _ = run(study, name, capsys)
        assert code in (0, 2) and time.process_time() - began < 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target"),
    [("report.html", "thesis.txt"), ("findings.json", "nothing.txt"), ("curves.html", "."), ("figures", ".")],
)
def test_a_report_is_never_written_through_a_link(study, outside, capsys, monkeypatch, name, target):
    monkeypatch.setattr("kleiber.records.figures.write_figure", lambda *_: None)
    monkeypatch.setattr("kleiber.studies.report.write_figure", lambda *_: None)
    before = hostile_runs.contents(outside)
    (study / name).symlink_to(outside / target)
    code, shown = run(study, "plot" if name == "curves.html" else "report", capsys)
    assert hostile_runs.contents(outside) == before and name in shown
    assert code == (2 if name == "figures" else 0), "a link in the place of a file is renamed, of a folder refused"


@pytest.mark.parametrize("folder", ["stages", "stages/main", "stages/main/checkpoints", "evals", "ranks", "tokenizer"])
def test_a_run_never_writes_through_a_folder_that_is_a_link(tmp_path, outside, folder):
    from kleiber.evals.measure import Results, save_results
    from kleiber.launch import ranks
    from kleiber.records.regular_files import DamagedFile, make_folder
    from kleiber.training.checkpoint import make_folder_of_stage

    home = tmp_path / "run"
    (home / folder).parent.mkdir(parents=True)
    (home / folder).symlink_to(outside)
    writers = {
        "evals": lambda: save_results(home, "perplexity", Results({}, {}), {}),
        "ranks": lambda: ranks.redirect_output(make_folder(home, "ranks") / "1.txt"),
        "tokenizer": lambda: make_folder(home, "tokenizer"),
    }
    before = hostile_runs.contents(outside)
    with pytest.raises(DamagedFile, match=folder):
        writers.get(folder, lambda: make_folder_of_stage(home / "stages/main/checkpoints"))()
    assert hostile_runs.contents(outside) == before


def test_names_of_any_length_are_ignored(study, capsys):
    run_folder = min(path.parent for path in study.glob("*/config.yaml"))
    for name in (".x.part-" + "9" * 30, "step-00000001.part-" + "1" * 60, ".a.part-0", ".b.part-٣"):
        (run_folder / name).write_text("")
    for command in ("runs", "clean"):
        assert run(study, command, capsys)[0] == 0
    from kleiber.records.locks import locked

    with locked(run_folder):
        pass
    assert (run_folder / (".x.part-" + "9" * 30)).exists()


@pytest.mark.parametrize("name", ["/dev/zero", "../../../x", "weights/../../../x"])
def test_a_checkpoint_that_names_files_elsewhere_is_not_read(study, capsys, name):
    step = min(path.parent for path in study.glob("*/config.yaml")) / "stages/main/checkpoints/step-00000001.part-99999"
    step.mkdir(parents=True)
    (step / "meta.json").write_text(json.dumps({"step": 1, "sha256": {name: "0" * 64}}))
    assert run(study, "clean", capsys)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("place", ["name", "status", "error", "metric", "override", "config", "stage"])
def test_no_escape_reaches_the_terminal(study, capsys, place):
    (study / "runs.jsonl.gz").unlink()
    folder = min(path.parent for path in study.glob("*/config.yaml"))
    summary = json.loads((folder / "summary.json").read_text())
    text = hostile.ESCAPES[1:] if place == "config" else hostile.ESCAPES  # YAML refuses halves of characters
    changes = {
        "name": {"name": text}, "status": {"status": text}, "error": {"status": "failed", "error": text},
        "override": {"overrides": [text]}, "stage": {"stages": [{**summary["stages"][0], "name": text}]},
        "metric": {"stages": [{**summary["stages"][0], "metrics": {f"val/{text}/loss": 2.0}}]},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary | changes.get(place, {})))
    if place == "config":
        (folder / "config.yaml").write_text(json.dumps({"model": {"depth": text, text: text}, "name": text}))
    shown = ""
    for name in LIST:
        shown += run(study, name, capsys)[1]
    main(["runs", str(study), "--columns", "run,status,error,overrides,model.depth"])
    shown += "".join(capsys.readouterr())
    assert "owned" in shown or place in ("name", "stage", "status")
    assert not CONTROL.search(shown)


def test_a_study_yaml_that_names_no_study_is_refused_by_name(study, capsys):
    for text in ("_target_: kleiber.studies.Compare\n_partial_: true", "a: 1", "_target_: kleiber.models.Transformer"):
        (study / "study.yaml").write_text(text)
        code, shown = run(study, "report", capsys)
        assert code == 2 and "Traceback" not in shown and ("study.yaml" in shown or "study" in shown)


@pytest.mark.slow
@pytest.mark.parametrize("seed", QUICK)
def test_the_folder_of_a_seed_is_the_same_each_time(tmp_path, seed):
    made = []
    for number in range(2):
        home = tmp_path / str(number)
        place = hostile.make_study(home)
        made.append((hostile.make_hostile(place, tmp_path / "outside", seed).replace(str(home), ""),
                     sorted(str(path.relative_to(home)) for path in place.rglob("*"))))  # fmt: skip
    assert made[0] == made[1]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.forks
def test_no_folder_of_a_stranger_harms_for_20_seconds(tmp_path):
    failures = hostile_runs.run_attacks(tmp_path, range(10_000, 12_000), time.monotonic() + 20)
    assert not failures, "\n".join(failures)


HOLES = {
    "runs": "{run}/summary.json", "diff": "{run}/metrics.jsonl", "plot a run": "{run}/metrics.jsonl",
    "report": "{run}/metrics.jsonl", "compare": "runs.jsonl.gz", "fit a table": "table.csv", "clean": "{run}/.lock",
    "runs --columns": "{run}/config.yaml", "fit a folder": "{run}/summary.json",
}  # fmt: skip


def limited(study: Path, name: str) -> hostile_runs.Ended:
    """How a command of `hostile_runs.commands` ends, in a fork."""
    return hostile_runs.run_limited(lambda: main(hostile_runs.commands(study)[name]), study.parent / "log.txt")


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.parametrize("name", HOLES)
def test_a_file_of_3_gib_costs_at_most_300_mib(study, name):
    ordinary = limited(study, name)
    for folder in study.glob("*/config.yaml"):
        path = study / HOLES[name].format(run=folder.parent.name)
        path.touch()
        os.truncate(path, hostile.HUGE)
    ended = limited(study, name)
    assert hostile_runs.failure(ended, ordinary, True) == "", ended.output
    assert ended.code == ordinary.code or f"{hostile.HUGE:,}" in ended.output or "damaged" in ended.output


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.parametrize("bomb", [hostile.archive_bomb, hostile.table_bomb])
@pytest.mark.parametrize("seed", [0, 1, 5])  # each kind of either once
def test_a_bomb_costs_at_most_300_mib(tmp_path, study, bomb, seed):
    names = ("runs", "compare") if bomb is hostile.archive_bomb else ("fit a table",)
    ordinary = {name: limited(study, name) for name in names}
    bomb(random.Random(seed), study, tmp_path)
    for name in names:
        ended = limited(study, name)
        assert hostile_runs.failure(ended, ordinary[name], True) == "" and ended.code == 2, ended.output
