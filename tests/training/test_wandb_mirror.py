"""W&B without a server, read back from its offline record: every option of the logger has an effect."""

import json
import re

import pytest
import wandb
from fake_run import fake_stage
from wandb_records import read

from kleiber.launch.main import main
from kleiber.records import wandb_run
from kleiber.runs.evaluate import first_scores
from kleiber.studies.laws import table
from kleiber.training.wandb_mirror import WandbMirror, wandb_logger

OFFLINE = ["logger=wandb", "logger.wandb.mode=offline", "callbacks.samples=null", "callbacks.log.every=2"]
TREE = ["stages=trunk_and_cooldowns", "stages.branches=[4K,8K]"]


def logged(folder):
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return read(path)


@pytest.mark.slow
def test_tags_and_costs_and_axes_arrive(launch):
    folder = launch("model=moe", *OFFLINE, "logger.wandb.tags=[baseline,small]")
    record, stage = logged(folder), json.loads((folder / "summary.json").read_text())["stages"][0]
    assert record["run"]["tags"] == ["baseline", "small"] and record["run"]["type"] == "train"
    summary = record["summary"]
    assert summary["total/tokens"] == stage["tokens"] and summary["total/steps"] == stage["steps"]
    assert summary["total/flops/model"] == pytest.approx(stage["flops"]["model"])
    assert summary["params/active"] == stage["params"]["active"] and summary["status"] == "finished"
    assert record["axes"]["*"] == "trainer/global_step"
    data = record["artifacts"].pop(f"tiny-{stage['data']['hash']}")
    assert data["used"] and data["metadata"] == stage["data"], "what it is trained on"
    assert [(name, entry["type"], entry["used"]) for name, entry in record["artifacts"].items()] == [
        (f"{folder.name}-run", "run", False)
    ]
    mirrored, own = table.read(folder / "wandb").iloc[-1], table.read(folder).iloc[-1]
    columns = ["active", "tokens", "flops", "loss", "lr"]
    assert mirrored[columns].tolist() == pytest.approx(own[columns].tolist())


@pytest.mark.slow
def test_stages_have_names_of_their_own_and_tokens_of_the_whole_run(launch):
    folder = launch(*OFFLINE, "logger.wandb.axis=tokens", *TREE)
    record = logged(folder)
    stages = {stage["name"]: stage for stage in json.loads((folder / "summary.json").read_text())["stages"]}
    assert record["axes"]["*"] == "tokens"
    for name, stage in stages.items():
        rows = [row for row in record["history"] if f"train/loss/{name}" in row]
        assert rows and all(row["tokens"] == row["trainer/global_step"] * 512 for row in rows)
        assert rows[-1]["tokens"] == stage["tokens"]
        assert record["summary"][f"val/tiny/loss/{name}"] == pytest.approx(stage["metrics"]["val/tiny/loss"])


@pytest.mark.slow
def test_the_model_is_an_artifact_when_it_is_asked_for(launch):
    folder = launch(*OFFLINE, "logger.wandb.artifacts=[model]")
    artifacts = logged(folder)["artifacts"]
    stage = json.loads((folder / "summary.json").read_text())["stages"][0]
    model = artifacts[folder.name]
    assert model["type"] == "model" and set(model["aliases"]) == {"latest", "main"}
    assert model["metadata"]["scores"] == stage["scores"] and model["metadata"]["metrics"] == stage["metrics"]
    assert model["paths"] == {"model.safetensors", "meta.json", "config.yaml"}


@pytest.mark.slow
def test_a_run_that_starts_from_another_one_uses_it(launch):
    base = launch("logger=csv")
    folder = launch(*OFFLINE, "init=checkpoint", f"init.path={base}", "seed=1")
    used = logged(folder)["artifacts"][f"{base.name}-run"]
    run_id = json.loads((base / "summary.json").read_text())["run_id"]
    assert used["used"] and used["type"] == "run" and used["metadata"] == {"run": base.name, "run_id": run_id}


def test_a_large_mixture_has_at_most_40_panels_and_25_keys_in_its_summary(tmp_path):
    """What the loggers get from 24 layers of 64 experts: rows of training and of routing, and scores of many tasks."""
    rows = {
        f"moe/{name}/{layer}": 0.5 for name in ("balance", "z", "margin", "drop", "cv", "dead") for layer in range(24)
    }
    rows |= {f"moe/load/{layer}/{expert}": 1 / 64 for layer in range(24) for expert in range(64)}
    rows["moe/load/7/3"] = 0.25
    rows |= {f"train/{name}": 1.0 for name in ("loss", "total", "grad_norm", "lr", "tokens")}
    logger = wandb_logger(tmp_path, "id", "name", "group", {}, mode="offline")
    assert isinstance(logger, WandbMirror)
    logger.begin(None, 0)
    for step in (10, 20):
        logger.log_metrics(rows, step)
        logger.log_metrics({"val/docs/loss": 2.0, "speed/seconds": 1.0}, step)
    cost = {"joules": 1.0, "watts": 1.0, "source": "counter", "price": 1.0, "currency": "EUR"}
    metrics = {f"val/task{i}/accuracy": 0.5 for i in range(30)} | {"val/docs/loss": 2.0}
    logger.log_stage(fake_stage(metrics=metrics) | {"cost": cost, "mfu": 0.5}, None)
    logger.finish(0)
    record = logged(tmp_path)
    history = {key: value for row in record["history"] for key, value in row.items()}
    panels = {re.sub(r"/(_type|values|bins|packedBins.*)$", "", key) for key in history if not key.startswith("_")}
    assert {"moe/balance", "moe/load", "moe/load_max_over_mean", "train/loss", "val/docs/loss"} <= panels
    assert len(panels) <= 40
    assert history["moe/load/_type"] == "histogram" and sum(history["moe/load/values"]) == 24 * 64
    assert history["moe/load_max_over_mean"] == 16.0 and history["moe/cv"] == 0.5
    summary = {key for key in record["summary"] if not key.startswith("_")}
    assert {"val/docs/loss", "train/loss", "status", "total/tokens", "params/active"} <= summary and len(summary) <= 25


@pytest.mark.parametrize("chosen", [True, False])
def test_console_and_system_metrics_are_sent_by_choice(tmp_path, monkeypatch, chosen):
    calls = []
    monkeypatch.setattr(wandb, "init", lambda **options: calls.append(options))
    wandb_run.start_run(
        tmp_path, "id", "name", "group", "train", online=False, console=chosen, system_metrics=chosen, entity="team"
    )
    settings = calls[0]["settings"]
    assert (settings.console, settings.x_disable_stats) == (("wrap", False) if chosen else ("off", True))
    assert calls[0]["entity"] == "team" and calls[0]["mode"] == "offline"


@pytest.mark.parametrize(
    "wrong", ["logger.wandb.artifacts=[weights]", "logger.wandb.axis=epochs", "logger.wandb.console=loud"]
)
def test_a_value_that_means_nothing_is_refused(launch, capsys, wrong):
    launch("logger=wandb", wrong, code=2)
    assert wrong.partition("=")[0] in capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluation_is_a_run_of_its_own_job_type_beside_its_run(launch):
    from kleiber.launch.cli import main as cli

    folder = launch(*OFFLINE, "name=group-a", "logger.wandb.project=lab", "logger.wandb.tags=[small]")
    assert cli(["eval", str(folder), "--evals", "perplexity", "--tokens", "1K", "--wandb"]) == 0
    (path,) = folder.glob("wandb/offline-run-*-eval-*/run-*.wandb")
    record, run_id = read(path), json.loads((folder / "summary.json").read_text())["run_id"]
    assert (record["run"]["type"], record["run"]["group"], record["run"]["tags"]) == ("eval", "group-a", ["small"])
    results = json.loads((folder / "evals" / "perplexity.json").read_text())
    assert record["summary"]["eval/perplexity/tiny/loss"] == pytest.approx(results["scores"]["tiny"]["loss"]["value"])
    assert record["config"]["run"] == run_id
    (table,) = path.parent.glob("files/media/table/scores*.table.json")
    content = json.loads(table.read_text())
    assert {row[0] for row in content["data"]} == {f"eval/perplexity/tiny/{name}" for name in results["scores"]["tiny"]}


def test_the_summary_of_an_evaluation_has_at_most_25_keys_of_all_data_sets():
    many = {f"metric{n}": {"value": float(n)} for n in range(30)}
    shown = first_scores({"one": {"a": many, "b": many}, "two": {"c": {"loss": {"value": 2.0}}}})
    assert len(shown) == 25
    assert shown["eval/one/a/metric0"] == shown["eval/one/b/metric0"] == 0 and shown["eval/two/c/loss"] == 2


def test_only_a_run_can_be_evaluated_in_wandb(tmp_path, capsys):
    from kleiber.launch.cli import main as cli

    (tmp_path / "config.json").write_text("{}")  # of a Hugging Face folder
    assert cli(["eval", str(tmp_path), "--evals", "perplexity", "--wandb"]) == 2
    assert "--wandb" in capsys.readouterr().err


@pytest.mark.slow
def test_no_run_without_wandb_imports_its_client(launch, monkeypatch):
    monkeypatch.setattr(wandb_run, "start_run", lambda *_, **__: pytest.fail("started"))
    launch("logger=csv")
    launch("logger=wandb", "logger.wandb.mode=disabled", "seed=1")
    assert main(["--help"]) == 0
