"""The Python API: it returns what the commands print and write, and imports heavy packages only when it is used."""

import json
import os
import runpy
import subprocess
import sys

import pandas as pd
import pytest
from small_run import TINY

import kleiber
from kleiber.launch.cli import main
from kleiber.launch.main import TrainResult
from kleiber.studies import fitted_law
from kleiber.studies.laws.law import Array, Exponent, Part


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> TrainResult:
    root = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLEIBER_CACHE", str(tmp_path_factory.getbasetemp() / "token-cache"))
        return kleiber.train([*TINY, f"root={root}"])


@pytest.mark.slow
def test_train_returns_the_code_and_the_folder_also_of_a_finished_run_and_a_sweep(trained, tmp_path, cache_dir):
    assert trained.code == 0 and (trained.folder / "summary.json").is_file()
    assert kleiber.train([*TINY, f"root={trained.folder.parents[1]}"]) == trained, "it is finished already"
    sweep = kleiber.train([*TINY, "-m", "seed=1,2", "launcher=basic", "trainer.max_steps=1", f"root={tmp_path}"])
    assert sweep == (0, tmp_path / "runs") and len(kleiber.runs(sweep.folder)) == 2
    assert kleiber.train([*TINY, "dry_run=true", f"root={tmp_path}"]) == (0, None)
    with pytest.raises(ValueError, match="modl"):
        kleiber.train(["modl=moe"])


def test_an_opened_run_has_the_metrics_of_its_summary_and_generates_what_the_command_prints(trained, capsys):
    run = kleiber.open(trained.folder)
    (stage,) = json.loads((trained.folder / "summary.json").read_text())["stages"]
    assert run.metrics == stage["metrics"] and run.config["batch"]["tokens"] == 512
    text = run.generate("a", tokens=5, seed=3)
    assert main(["generate", str(trained.folder), "--prompt", "a", "--tokens", "5", "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"a{text}\n"
    assert run.generate("a", tokens=5, temperature=0, seed=1) == run.generate("a", tokens=5, temperature=0, seed=2)
    with pytest.raises(ValueError, match="nowhere"):
        kleiber.open("nowhere")


def test_runs_is_the_table_of_runs_and_stays_a_package(trained):
    from kleiber.runs import open as opener

    table = kleiber.runs(trained.folder.parent)
    assert list(table["status"]) == ["finished"] and table["run"][0] == trained.folder.name
    assert table["loss"][0] == kleiber.open(trained.folder).metrics["val/tiny/loss"]
    assert kleiber.runs.open is opener
    with pytest.raises(FileNotFoundError):
        kleiber.runs("nowhere")


def test_fit_and_load_law_are_those_of_the_studies(tmp_path):
    loss = pd.DataFrame({"N": [1e7, 1e8, 1e9, 1e10], "L": [3.0, 2.5, 2.2, 2.0]})

    def line(N: Array, *, c: Part, a: Exponent) -> Array:
        return c * N**-a

    law = kleiber.fit(loss, line, bootstrap=0)
    assert law.record == fitted_law.fit(loss, line, bootstrap=0).record
    kleiber.fit(loss.rename(columns={"N": "C"}), "power", bootstrap=0).write(tmp_path / "laws.json")
    assert kleiber.load_law(tmp_path / "laws.json").record == fitted_law.load(tmp_path / "laws.json").record


def test_compose_returns_the_checked_config():
    assert kleiber.compose(["model=moe", "model.depth=3"])["model"]["depth"] == 3
    with pytest.raises(ValueError, match="depht"):
        kleiber.compose(["model.depht=3"])


@pytest.mark.process
def test_importing_kleiber_imports_no_other_package():
    code = "import sys; before = {*sys.modules}; import kleiber; print(*({*sys.modules} - before))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in modules} - sys.stdlib_module_names == {"kleiber"}


@pytest.mark.slow
@pytest.mark.process
def test_a_script_without_a_guard_can_start_a_sweep(tmp_path):
    """Each cell would import the script again and start the sweep once more."""
    words = [*TINY, "-m", "seed=1,2", "trainer.max_steps=1", "launcher.workers=1", f"root={tmp_path}"]
    (tmp_path / "script.py").write_text(f"import kleiber\nprint(kleiber.train({words!r}).code)\n")
    ended = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout.splitlines()[-1] == "0" and list(kleiber.runs(tmp_path)["status"]) == ["finished"] * 2


@pytest.mark.parametrize(("mine", "kept"), [(None, "10000"), ("7", "7")])
def test_waiting_threads_yield_unless_the_user_says_otherwise(mine, kept, monkeypatch):
    if mine is None:
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    else:
        monkeypatch.setenv("GOMP_SPINCOUNT", mine)
    runpy.run_path(kleiber.__file__)
    assert os.environ["GOMP_SPINCOUNT"] == kept
