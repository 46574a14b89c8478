"""W&B without a server, read back from its offline record: every option of the logger has an effect."""

import json

import pytest
import wandb
from wandb_records import read

from kleiber.launch.main import main
from kleiber.records import wandb_run
from kleiber.studies.laws import table

OFFLINE = ["logger=wandb", "logger.wandb.mode=offline", "callbacks.samples=null", "callbacks.log.every=2"]
TREE = ["stages=trunk_and_cooldowns", "stages.branches=[4K,8K]"]


def logged(folder):
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return read(path)


def test_tags_and_costs_and_axes_arrive(launch):
    folder = launch("model=moe", *OFFLINE, "logger.wandb.tags=[baseline,small]")
    record, stage = logged(folder), json.loads((folder / "summary.json").read_text())["stages"][0]
    assert record["run"]["tags"] == ["baseline", "small"] and record["run"]["type"] == "train"
    summary = record["summary"]
    assert summary["total/tokens"] == stage["tokens"] and summary["total/steps"] == stage["steps"]
    for name in ("model", "executed", "six_nd"):
        assert summary[f"total/flops/{name}"] == pytest.approx(stage["flops"][name])
    assert summary["params/active"] == stage["params"]["active"] and summary["status"] == "finished"
    assert record["axes"]["*"] == "trainer/global_step"
    assert record["artifacts"] == {}, "none unless asked for"
    mirrored, own = table.read(folder / "wandb").iloc[-1], table.read(folder).iloc[-1]
    columns = ["active", "tokens", "flops", "loss", "lr"]
    assert mirrored[columns].tolist() == pytest.approx(own[columns].tolist())


def test_stages_have_names_of_their_own_and_tokens_of_the_whole_run(launch):
    folder = launch(*OFFLINE, "logger.wandb.axis=tokens", *TREE)
    record = logged(folder)
    stages = {stage["name"]: stage for stage in json.loads((folder / "summary.json").read_text())["stages"]}
    assert record["axes"]["*"] == "tokens"
    for name, stage in stages.items():
        rows = [row for row in record["history"] if f"{name}/train/loss" in row]
        assert rows and all(row["tokens"] == row["trainer/global_step"] * 512 for row in rows)
        assert rows[-1]["tokens"] == stage["tokens"] == record["summary"][f"stage/{name}/tokens"]


@pytest.mark.slow
def test_data_and_model_are_artifacts_when_they_are_asked_for(launch):
    folder = launch(*OFFLINE, "logger.wandb.artifacts=[data,model]")
    artifacts = logged(folder)["artifacts"]
    stage = json.loads((folder / "summary.json").read_text())["stages"][0]
    data, model = artifacts[f"tiny-{stage['data']['hash']}"], artifacts[folder.name]
    assert (data["type"], data["paths"]) == ("dataset", {"data.json"})
    assert model["type"] == "model" and set(model["aliases"]) == {"latest", "main"}
    assert model["metadata"]["scores"] == stage["scores"] and model["metadata"]["metrics"] == stage["metrics"]
    assert model["paths"] == {"model.safetensors", "meta.json", "config.yaml"}
    assert set(logged(launch(*OFFLINE, "seed=1", "logger.wandb.artifacts=[data]"))["artifacts"]) == {
        f"tiny-{stage['data']['hash']}"
    }


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


def test_only_a_run_can_be_evaluated_in_wandb(tmp_path, capsys):
    from kleiber.launch.cli import main as cli

    (tmp_path / "config.json").write_text("{}")  # of a Hugging Face folder
    assert cli(["eval", str(tmp_path), "--evals", "perplexity", "--wandb"]) == 2
    assert "--wandb" in capsys.readouterr().err


def test_no_run_without_wandb_imports_its_client(launch, monkeypatch):
    monkeypatch.setattr(wandb_run, "start_run", lambda *_, **__: pytest.fail("started"))
    launch("logger=csv")
    launch("logger=wandb", "logger.wandb.mode=disabled", "seed=1")
    assert main(["--help"]) == 0
