"""A study continues from runs.jsonl.gz alone: its finished runs are trained again only where weights are needed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from fake_run import fake_stage, write_summary

import kleiber.runs.run
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.launch.main import main
from kleiber.launch.price import finished_cells
from kleiber.records import archive
from kleiber.records.catalog import archived_runs, read_runs
from kleiber.records.folder import config_hash
from kleiber.runs.inherit import locate_stage

BASE = "design.base={data.domain: docs, data.tokenizer: bpe}"
METHODS = ["-m", "launcher=basic", "name=s", "design=methods", BASE, "design.lrs=[0.01]", "design.seeds=1"]
METHODS += ["design.arms={none: {retention: null}, l2sp: {retention: l2sp}}"]


def sweep(root: Path, *overrides: str) -> int:
    return main([*METHODS, f"root={root}", *overrides])


@contextmanager
def training_nothing() -> Iterator[list]:
    """Finishes cells at once in this process, and yields the list of the configs of cells that ran, in order."""
    ran = []

    def train(config, folder, overrides):
        ran.append(config)
        (folder / "tokenizer").mkdir(exist_ok=True)
        data = {"tokenizer_hash": "bpe/1" if config["data"]["tokenizer"] == "bpe" else "tokenizer/1"}
        write_summary(folder, [fake_stage(data=data)], seed=config["seed"], overrides=overrides)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kleiber.runs.run, "train", train)
        yield ran


@pytest.fixture
def trained() -> Iterator[list]:
    with training_nothing() as ran:
        yield ran


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A finished study of a base and two arms that start from it."""
    root = tmp_path_factory.mktemp("one")
    with training_nothing() as ran:
        assert sweep(root) == 0 and len(ran) == 3
    return root / "s"


@pytest.fixture
def moved(study, tmp_path) -> Path:
    """The archive of the study in another folder, below the root `tmp_path`."""
    (tmp_path / "s").mkdir()
    shutil.copy(study / archive.NAME, tmp_path / "s")
    return tmp_path / "s"


@pytest.mark.slow
def test_dry_run_counts_archived_runs_as_finished(moved, monkeypatch):
    planned = []
    monkeypatch.setattr("kleiber.launch.price.print_price", planned.append)
    assert sweep(moved.parent, "design.seeds=2", "dry_run=true") == 0
    (runs,) = planned
    finished = finished_cells(runs)
    assert len(runs) == 6 and {where.name for where, config in runs.items() if config["seed"] == 0} == finished
    assert [file.name for file in moved.iterdir()] == [archive.NAME]


def rewrite(file: Path, rows) -> None:
    file.unlink()
    archive.append(file, rows)


@pytest.mark.slow
def test_finished_runs_of_a_moved_study_are_not_trained_again(trained, study, moved, tmp_path, capsys):
    assert sweep(tmp_path) == 0
    assert trained == [] and "runs.jsonl.gz" in capsys.readouterr().out
    assert [run.name for run in read_runs(moved)] == [run.name for run in read_runs(study)]
    assert not [path for path in moved.iterdir() if path.is_dir()]


def test_the_base_of_a_missing_cell_is_trained_again(trained, moved, tmp_path):
    gone = next(run.name for run in archived_runs(moved / archive.NAME) if run.config["init"])
    rewrite(moved / archive.NAME, [row for row in archive.read(moved / archive.NAME) if row["run"] != gone])
    assert sweep(tmp_path, "trainer.threads=1") == 0
    base, arm = trained
    assert base["init"] is None and base["data"]["tokenizer"] == "bpe" and base["root"] == str(tmp_path)
    start = Path(arm["init"]["path"]).parent
    assert start in [run.folder for run in read_runs(moved)] and start == Path(arm["data"]["tokenizer"]).parent
    assert [run.status for run in read_runs(moved)] == ["finished"] * 3


@pytest.mark.slow
def test_an_archived_base_copies_nothing_elsewhere_unless_the_sweep_does(trained, moved, tmp_path, capsys):
    victim = f"file://{tmp_path}/victim"
    rows = archive.read(moved / archive.NAME)
    for row in rows:
        row["config"]["callbacks"]["checkpoints"]["remote"] = victim
    rewrite(moved / archive.NAME, [row for row in rows if not row["config"]["init"]])
    assert sweep(tmp_path) == 2
    assert f"{archive.NAME}: callbacks.checkpoints.remote={victim} " in capsys.readouterr().err and trained == []
    assert sweep(tmp_path, f"callbacks.checkpoints.remote='{victim}'") == 0 and len(trained) == 3


@pytest.mark.slow
def test_cells_may_read_the_data_of_the_other_cells_of_their_sweep(trained, tmp_path):
    """A fine-tune measures what it forgets on the data of its start point, in a process that gets its config alone."""
    urls = ["http://host/a.txt", "http://host/b.txt"]
    words = ["-m", "launcher=basic", "name=s", "data=text", f"data.path='{urls[0]}','{urls[1]}'", "budget.steps=1"]
    assert main([*words, f"root={tmp_path}", "allow_data=['*.txt']"]) == 0
    recorded = [yaml.safe_load(file.read_text()) for file in (tmp_path / "s").glob("*/config.yaml")]
    assert [sorted(config["allow_data"]) for config in recorded] == [["*.txt", *urls]] * 2
    assert main(["-m", "launcher=basic", "name=t", "seed=1,2", f"root={tmp_path}"]) == 0
    recorded = [yaml.safe_load(file.read_text()) for file in (tmp_path / "t").glob("*/config.yaml")]
    assert [config["allow_data"] for config in recorded] == [None] * 2


def test_resume_never_trains_all_cells_again_and_replaces_their_rows(trained, moved, tmp_path):
    assert sweep(tmp_path, "resume=never") == 0
    assert len(trained) == 3 and len(archived_runs(moved / archive.NAME)) == 3
    assert len(archive.read(moved / archive.NAME)) == 6


def test_finished_runs_that_are_not_archived_are_archived_at_the_next_start(trained, study):
    before = archive.read(study / archive.NAME)
    (study / archive.NAME).unlink()
    assert sweep(study.parent) == 0
    assert trained == [] and sorted(before, key=lambda row: row["run"]) == archive.read(study / archive.NAME)


def test_archived_runs_are_found_by_config_and_not_by_folder_name(trained, moved, tmp_path):
    rows = [row for row in archive.read(moved / archive.NAME) if not row["config"]["init"]]
    rewrite(moved / archive.NAME, [{**row, "run": "other-00000000"} for row in rows])
    assert sweep(tmp_path) == 0
    assert [run.name for run in read_runs(moved) if run.config["init"] is None] == ["other-00000000"]
    assert len(trained) == 3, "its arms are missing, and start from it"


def test_a_damaged_archive_ends_the_sweep_before_anything_is_trained(trained, tmp_path, capsys):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / archive.NAME).write_bytes(b"no gzip at all")
    assert sweep(tmp_path) == 2
    assert trained == [] and str(tmp_path / "s" / archive.NAME) in capsys.readouterr().err


def test_missing_weights_are_refused_with_the_fix(moved):
    base = next(run for run in read_runs(moved) if run.config["init"] is None)
    with pytest.raises(ConfigError, match=r"init\.path=.*resume=never"):
        locate_stage(str(base.folder))


def test_config_hashes_do_not_depend_on_the_folder_of_the_study():
    config = resolve_config(Composer().compose(["model=moe"]))[0]
    places = [
        {**config, "root": root, "name": name, "init": {"path": f"{root}/{name}/{base}-0123abcd/main"}}
        for root, name, base in (("/one", "s", "base"), ("/two", "t", "otherwise-worded"))
    ]
    assert config_hash(places[0]) == config_hash(places[1])
    assert config_hash({**places[0], "init": {"path": "/one/s/base-4567abcd/main"}}) != config_hash(places[0])
    assert config_hash({**places[0], "init": {"path": "/two/s/base-0123abcd/main"}}) != config_hash(places[0])


def test_an_archived_run_has_the_overrides_of_its_folder(study):
    for run in archived_runs(study / archive.NAME):
        assert run.overrides == yaml.safe_load((run.folder / "overrides.yaml").read_text())
