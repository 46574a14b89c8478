"""The package in examples/extension: each of its classes trains, is opened again, and needs the reader's permission."""

import csv
import importlib
import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from clean_environment import Environment
from small_run import REPOSITORY, TINY
from studies.arm_runs import write

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.cross_checks import check_compatibility
from kleiber.config.errors import ConfigError
from kleiber.evals.evaluation import Results, Score
from kleiber.evals.measure import Measurement, scores_by_key
from kleiber.launch.cli import main as main_command
from kleiber.launch.main import main
from kleiber.models import Transformer
from kleiber.nn import interleaved_moe
from kleiber.objectives import CLM
from kleiber.runs.open import open_model
from kleiber.types.batch import Batch
from kleiber.types.score import values_of

SOURCE = REPOSITORY / "examples/extension"


def test_the_example_is_short():
    files = [path for path in SOURCE.rglob("*") if path.suffix in (".py", ".yaml", ".toml", ".md")]
    assert len(files) > 10 and sum(len(path.read_text().splitlines()) for path in files) <= 380


@pytest.fixture
def mylab(monkeypatch, tmp_path):
    """The working folder contains the package, and the reader allows it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mylab").symlink_to(SOURCE / "src/mylab")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLEIBER_EXTENSIONS", "mylab")
    return tmp_path


@pytest.fixture
def table(tmp_path):
    with open(tmp_path / "table.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["number", "text"])
        rows.writerows([i, f"Row {i} of this table says that {i} + {i} is {2 * i}. " * 4] for i in range(300))
    return [*(word for word in TINY if not word.startswith("data")), "data=csv", "data.path=table.csv"]


def logged(folder: Path) -> dict[str, float]:
    """The last value of every metric of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {name: value for row in rows for name, value in row.items()}


@pytest.mark.slow
def test_a_model_an_objective_and_data_train_and_open_and_start_a_run_with_a_retention_method(mylab, table):
    run = [*table, "model=gru", "model.width=16", "objective=smoothed", "objective.smoothing=0.3"]
    assert main([*run, "root=first"]) == 0
    (folder,) = Path("first").glob("*/*")
    values = logged(folder)
    assert values["train/total"] > values["train/loss"], "smoothing adds to what is trained, not to what is reported"
    opened = open_model(folder)
    model, rows = opened.model, torch.randint(0, 200, (2, 12))
    expected = model(Batch(rows)).hidden
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), rows], 1)
    real = torch.arange(15).expand(2, 15) >= 3
    caches = model.new_caches(20)
    first = model(Batch(padded[:, :9], real[:, :9]), caches).hidden
    second = model(Batch(padded[:, 9:]), caches).hidden
    torch.testing.assert_close(torch.cat([first, second], 1)[:, 3:], expected)
    method = ["retention=sparse", "retention.sparse.strength=1", "optimizer.lr=0.001"]
    assert main([*run, *method, "init=checkpoint", f"init.path={folder}", "root=later"]) == 0
    (later,) = Path("later").glob("*/*")
    start, end = dict(model.named_parameters()), dict(open_model(later).model.named_parameters())
    unchanged = [float((end[name] == start[name]).float().mean()) for name in start]
    assert max(unchanged) > 0.5 and min(unchanged) < 1


def test_without_smoothing_the_loss_is_that_of_clm_also_with_experts_and_marked_targets(mylab):
    sys.path.insert(0, str(mylab))
    smoothed = importlib.import_module("mylab.objective").Smoothed(smoothing=0.0)
    torch.manual_seed(0)
    model = Transformer(64, depth=1, width=16, context=16, num_heads=2, mlp=partial(interleaved_moe, num_experts=4))
    tokens, weights = torch.randint(0, 64, (4, 17)), torch.zeros(4, 17)
    weights[:, -2:] = 1
    for batch in (Batch(tokens), Batch(tokens, weights=weights)):
        ours, expected = smoothed(model, batch), CLM()(model, batch)
        torch.testing.assert_close((ours.total, ours.tokens), (expected.total, expected.tokens))
        torch.testing.assert_close(ours.metrics, expected.metrics)


@pytest.mark.slow
def test_values_that_do_not_fit_the_classes_of_the_example_are_refused(mylab):
    streamed = ["retention=sparse", "data=text", "data.path=README.md", "data.streaming=true"]
    for words in (streamed, ["model=moe", "model/router=tempered", "model.mlp.capacity_factor=1.25"]):
        check_compatibility(resolve_config(Composer().compose(words))[0])
    for words in (["objective=smoothed", "model=bert"], ["objective=smoothed", "model.future=1"]):
        with pytest.raises(ConfigError, match="objective=smoothed"):
            check_compatibility(resolve_config(Composer().compose(words))[0])


@pytest.mark.slow
def test_a_router_and_a_callback_act_in_a_mixture(mylab, launch):
    folder = launch("model=moe", "model/router=tempered", "callbacks=weight_norm", "callbacks.weight_norm.every=1")
    assert logged(folder)["train/weight_norm"] > 0
    router = open_model(folder).model.blocks[0].mlp.router
    assert type(router).__name__ == "Tempered" and router.temperature == 2.0


@pytest.mark.slow
def test_an_mlp_of_a_given_size_trains_and_is_counted(mylab, launch):
    folder = launch("model/mlp=reglu", "model.mlp.hidden=24")
    mlp = open_model(folder).model.blocks[0].mlp
    assert type(mlp).__name__ == "ReGLU" and mlp.gate.out_features == 24
    (stage,) = json.loads((folder / "summary.json").read_text())["stages"]
    assert stage["params"]["total"] == sum(p.numel() for p in open_model(folder).model.parameters())


@pytest.mark.slow
def test_an_evaluation_scores_a_run_and_the_curve_of_its_training(mylab, launch, capsys):
    folder = launch("evals=[confidence]")
    (stage,) = json.loads((folder / "summary.json").read_text())["stages"]
    during = stage["metrics"]["eval/confidence/tiny/confidence"]
    right = stage["scores"]["eval/confidence/tiny/accuracy"]
    assert (right["better"], right["label"]) == ("higher", "accuracy of the most probable token on tiny")
    assert right["lo"] < right["value"] < right["hi"] and stage["scores"].keys() == stage["metrics"].keys()
    assert main_command(["eval", str(folder), "--evals", "confidence"]) == 0 and 0 < during < 1
    assert f"confidence  {during:.4g}  [" in capsys.readouterr().out


@pytest.mark.parametrize(("metric", "code"), [("accuracy", 0), ("confidence", 2)])
def test_a_metric_of_its_evaluation_is_compared_in_the_direction_that_the_class_declares(mylab, capsys, metric, code):
    """The second arm has the higher values; of the confidence neither direction is better."""
    sys.path.insert(0, str(mylab))
    evaluation, key = importlib.import_module("mylab.evaluation").Confidence(), f"eval/confidence/docs/{metric}"
    for folder in (write(mylab / "low", {}, "low", 3.0), write(mylab / "high", {}, "high", 3.0)):
        for path in folder.glob("*/summary.json"):
            summary = json.loads(path.read_text())
            for stage in summary["stages"][1:]:
                value = 1 / stage["metrics"]["val/docs/loss"] + 0.1 * (folder.name == "high")
                results = Results({"docs": {metric: Score(value)}})
                scores = scores_by_key("confidence", Measurement("confidence", evaluation, []).describe(results))
                stage["scores"] |= {name: score.to_json() for name, score in scores.items()}
                stage["metrics"] |= values_of(scores)
            path.write_text(json.dumps(summary))
    assert main_command(["compare", "low", "high", "--measure", key]) == code
    printed = capsys.readouterr()
    if code:
        assert "--better" in printed.err
    else:
        text = " ".join(printed.out.split())
        assert (
            "accuracy of the most probable token on docs is higher with high than with low" in text
            and "supported" in text
        )


def test_the_study_is_planned_and_its_arms_are_those_of_the_file(mylab):
    config = Composer().compose(["study=smoothing", "hydra.mode=MULTIRUN"])
    assert config.design.arms == {"plain": {}, "smoothed": {"objective": "smoothed"}}


@pytest.mark.slow
def test_a_run_of_the_example_is_refused_to_a_reader_who_does_not_allow_it(mylab, launch, monkeypatch, capsys):
    folder = launch("model=gru", "model.width=16", "callbacks=weight_norm")
    monkeypatch.delenv("KLEIBER_EXTENSIONS")
    with pytest.raises(ValueError, match=r"config\.yaml: model: _target_ mylab\.model\.GRU .*KLEIBER_EXTENSIONS=mylab"):
        open_model(folder)
    assert main([*TINY, "init=checkpoint", f"init.path={folder}", "root=again"]) == 2
    assert "KLEIBER_EXTENSIONS=mylab" in capsys.readouterr().err and not (mylab / "again").exists()


SMOKE = ["experiment=smoke", "logger=csv", "model=gru", "objective=smoothed"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_installed_it_trains_sweeps_uses_two_ranks_and_opens_and_is_refused_where_it_is_not_installed(tmp_path):
    """The entry point allows the installed package; a reader without the package refuses its run by name."""
    both = Environment(tmp_path / "both", REPOSITORY, SOURCE)
    alone = Environment(tmp_path / "alone", REPOSITORY)
    work = tmp_path / "work"
    work.mkdir()
    assert "tempered" in both.run("kleiber", "train", "--help", cwd=work)
    both.run("kleiber", "train", "-m", *SMOKE, "seed=0,1", "name=sweep", cwd=work)
    folder, _ = sorted(work.glob("multirun/sweep/*seed*"))
    both.run("kleiber", "train", *SMOKE, "trainer=ddp", "trainer.devices=2", "name=ranks", cwd=work)
    losses = [json.loads(file.read_text())["stages"][0]["metrics"]["val/builtin/docs/loss"]
              for file in (folder / "summary.json", *work.glob("multirun/ranks/*/summary.json"))]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert "loss" in both.run("kleiber", "eval", folder, "--evals", "perplexity", cwd=work)
    for command in (["eval", folder, "--evals", "perplexity"], ["generate", folder, "--prompt", "a"]):
        assert "KLEIBER_EXTENSIONS=mylab" in alone.run("kleiber", *command, cwd=work, code=2)
    assert "model=gru" in alone.run("kleiber", "train", *SMOKE, cwd=work, code=2)
    beside = SOURCE / "src"
    alone.run("kleiber", "generate", folder, "--prompt", "a", "--tokens", "4", cwd=beside, KLEIBER_EXTENSIONS="mylab")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_a_sweep_and_two_ranks_find_a_package_that_lies_in_the_working_folder(tmp_path):
    alone, work = Environment(tmp_path / "alone", REPOSITORY), tmp_path / "work"
    (work / "mylab").parent.mkdir()
    (work / "mylab").symlink_to(SOURCE / "src/mylab")
    for words in (["-m", "seed=0,1", "name=sweep"], ["trainer=ddp", "trainer.devices=2", "name=ranks"]):
        alone.run("kleiber", "train", *SMOKE, *words, cwd=work, KLEIBER_EXTENSIONS="mylab")
    assert len([*work.glob("multirun/*/*/summary.json")]) == 3


PAGES = [path.read_text() for path in sorted((REPOSITORY / "docs/extending").glob("*.md"))]
SHOWN = [
    block for page in PAGES for block in re.findall(r'```(?:python|yaml) title="(\S+)"\n(.*?)```', page, re.DOTALL)
]
TAUGHT = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]


def test_the_pages_show_the_files_of_the_example_as_they_are():
    assert len(SHOWN) >= 12
    for name, text in SHOWN:
        assert text == (REPOSITORY / name).read_text(), name


def test_the_tests_that_the_pages_teach_pass(mylab):
    passed = []
    sys.path.insert(0, str(mylab))
    for block in TAUGHT:
        names: dict[str, object] = {}
        exec(block, names)
        for name, test in names.items():
            if name.startswith("test_") and callable(test) and "monkeypatch" not in block:
                test(*([mylab] if "tmp_path" in block else []))
                passed.append(name)
    assert len(passed) == 3
