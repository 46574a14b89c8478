"""The built wheel in a clean environment and an empty folder does what the first pages promise, without the sources."""

import json
import signal
from pathlib import Path

import pytest
from clean_environment import Environment
from processes import PATIENCE, alive, wait_for
from small_run import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.process]
SMOKE = ["experiment=smoke", "logger=csv", "trainer.threads=1"]
OBJECTIVE = '''
from kleiber.objectives import CLM

class Doubled(CLM):
    """Twice the loss of next tokens, which an optimizer such as Adam hardly notices."""

    def __call__(self, model, batch):
        loss = super().__call__(model, batch)
        loss.total = 2 * loss.total
        return loss
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Environment:
    return Environment(tmp_path_factory.mktemp("wheel") / "env", REPOSITORY)


@pytest.fixture
def work(tmp_path) -> Path:
    """An empty folder."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_what_runs_is_the_wheel(installed, work):
    code = "import kleiber, hydra_plugins.kleiber as p; print(kleiber.__file__, p.__file__, kleiber.__version__)"
    package, plugins, version = installed.run("python", "-c", code, cwd=work).split()
    site = str(installed.python.parents[1])
    assert package.startswith(site) and plugins.startswith(site) and version[0].isdigit()
    assert "kleiber train" in installed.run("kleiber", "train", "--help", cwd=work)
    assert installed.run("python", "-m", "kleiber", "--help", cwd=work)
    assert not [*work.iterdir()], "asking for help writes nothing"


@pytest.mark.long
def test_train_generate_plot_and_evaluate(installed, work):
    installed.run("kleiber", "train", *SMOKE, "model=moe", cwd=work)
    (folder,) = work.glob("multirun/runs/*")
    assert summary(folder)["status"] == "finished" and [path.name for path in work.iterdir()] == ["multirun"]
    assert "the" in installed.run("kleiber", "generate", folder, "--prompt", "the", "--tokens", "8", cwd=work)
    installed.run("kleiber", "eval", folder, "--evals", "perplexity", "--json", "eval.json", cwd=work)
    assert json.loads((work / "eval.json").read_text())
    installed.run("kleiber", "plot", folder, "--out", "curve.png", cwd=work)
    assert (work / "curve.png").stat().st_size > 1000
    assert "finished" in installed.run("kleiber", "runs", "multirun", cwd=work)


@pytest.mark.long
def test_a_sweep_a_report_and_a_comparison(installed, work):
    arms = "design.arms={plain: {}, wide: {model.width: 96}}"
    few = ["design.lrs=[0.005,0.01,0.02,0.04,0.08]", "design.seeds=2", "launcher.workers=2", "name=cmp"]
    tiny = ["budget.steps=6", "eval.tokens=2048"]
    code = installed.start("kleiber", "train", "study=compare", arms, *few, *SMOKE, *tiny, cwd=work)
    out, err = code.communicate(timeout=PATIENCE)
    assert code.returncode in (0, 3, 5), out + err
    study = work / "multirun/cmp"
    assert len([*study.glob("*/summary.json")]) == 20 and (study / "report.html").stat().st_size > 10_000
    decision = json.loads((study / "findings.json").read_text())["decision"]
    assert {"supported": 0, "undecided": 3, "not tested": 3, "contradicted": 5}[decision] == code.returncode
    installed.run("kleiber", "report", study, "--out", "page.html", cwd=work, code=code.returncode)
    assert (work / "page.html").is_file()
    compared = installed.start("kleiber", "compare", study, "--arm", "model.width", "--json", "c.json", cwd=work)
    compared.communicate(timeout=PATIENCE)
    assert compared.returncode in (0, 3, 5) and json.loads((work / "c.json").read_text())["estimates"]


def test_a_killed_run_resumes_with_the_same_command(installed, work):
    words = ["train", "logger=csv", "trainer.threads=1", "model.depth=1", "model.context=64", "data.max_bytes=200000",
             "budget.steps=300", "callbacks.checkpoints.every=20", "eval.every_steps=0", "eval.tokens=4K"]  # fmt: skip
    run = installed.start("kleiber", *words, cwd=work)
    wait_for(lambda: [*work.glob("multirun/runs/*/stages/main/checkpoints/step-????????/meta.json")])
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=PATIENCE)
    (folder,) = work.glob("multirun/runs/*")
    assert "killed" in installed.run("kleiber", "runs", "multirun", cwd=work) and alive(work) == {}
    assert "resuming at step" in installed.run("kleiber", *words, cwd=work)
    assert summary(folder)["status"] == "finished" and summary(folder)["stages"][0]["steps"] == 300


def test_an_objective_of_ones_own_in_the_working_folder(installed, work):
    (work / "mine.py").write_text(OBJECTIVE)
    words = ["train", *SMOKE, "objective._target_=mine.Doubled"]
    assert "KLEIBER_EXTENSIONS=mine" in installed.run("kleiber", *words, cwd=work, code=2)
    installed.run("kleiber", *words, cwd=work, KLEIBER_EXTENSIONS="mine")
    (folder,) = work.glob("multirun/runs/*")
    assert summary(folder)["status"] == "finished"
