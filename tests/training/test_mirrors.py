"""Loggers that mirror a run: names, the axis over stages, failures, and what TensorBoard, MLflow and others hold."""

import csv
import json
from importlib.util import find_spec

import pytest
from lightning.pytorch.loggers import Logger

from kleiber.config import cross_checks
from kleiber.training.loggers import StageAxis
from kleiber.training.mirrors import Mirror

TREE = ["stages=trunk_and_cooldowns", "stages.branches=[4K,8K]", "callbacks.log.every=2", "callbacks.samples=null"]


class Recorder(Logger):
    """A logger that keeps what it gets, or fails."""

    name, version = "recorder", ""

    def __init__(self, error: Exception | None = None):
        super().__init__()
        self.rows, self.params, self.status, self.error = [], [], [], error

    def log_metrics(self, metrics, step=None):
        if self.error:
            raise self.error
        self.rows.append((step, metrics))

    def log_hyperparams(self, params):
        self.params.append(params)

    def finalize(self, status):
        self.status.append(status)


@pytest.mark.parametrize(("axis", "places"), [("steps", [3, 7]), ("tokens", [300, 1000])])
def test_stages_of_a_chain_follow_one_another_on_the_axis(axis, places):
    mirror = Mirror(recorder := Recorder(), "tool", {}, axis)
    mirror.begin("first", 0, StageAxis(0, 0, 100))
    mirror.log_metrics({"train/loss": 2.0}, 3)
    mirror.begin("second", 0, StageAxis(5, 500, 250))
    mirror.log_metrics({"train/loss": 1.0}, 2)
    assert recorder.rows == [(places[0], {"first/train/loss": 2.0}), (places[1], {"second/train/loss": 1.0})]


def test_a_run_of_one_stage_has_plain_names():
    mirror = Mirror(recorder := Recorder(), "tool", {})
    mirror.begin(None, 0, StageAxis(batch_tokens=100))
    mirror.log_metrics({"train/loss": 2.0}, 3)
    assert recorder.rows == [(3, {"train/loss": 2.0})]


def test_a_failure_is_printed_once_and_the_run_goes_on(capsys):
    mirror = Mirror(recorder := Recorder(OSError("no route\nto host")), "tool", {})
    for step in range(3):
        mirror.log_metrics({"train/loss": 2.0}, step)
    mirror.finish(0)
    assert capsys.readouterr().err == "tool: no route; this run is no longer logged there\n"
    assert recorder.status == []


@pytest.mark.parametrize(("code", "status"), [(0, "success"), (1, "failed"), (75, "failed")])
def test_the_tool_gets_config_and_outcome(code, status):
    mirror = Mirror(recorder := Recorder(), "tool", {"seed": 3})
    mirror.log_config()
    mirror.log_hyperparams({"seed": 4})  # by Lightning, of which there is one a stage
    mirror.finish(code)
    assert (recorder.params, recorder.status) == ([{"seed": 3}], [status])


@pytest.mark.slow
def test_any_logger_of_lightning_writes_into_the_run_beside_others(launch):
    """CSVLogger, and two loggers at once."""
    plain = "+logger.plain={_target_: lightning.pytorch.loggers.CSVLogger, name: plain}"
    folder = launch(plain, "callbacks.samples=null", *TREE)
    (file,) = folder.glob("plain/version_0/metrics.csv")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    ours = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for stage in ("trunk", "4K", "8K"):
        expected = {row["step"]: row["train/loss"] for row in ours if row["stage"] == stage and "train/loss" in row}
        found = {int(row["step"]): float(row[f"{stage}/train/loss"]) for row in rows if row[f"{stage}/train/loss"]}
        assert found == pytest.approx(expected) and found
    assert (folder / "metrics.csv").is_file()
    assert "seed" in (file.parent / "hparams.yaml").read_text()


@pytest.mark.parametrize(("group", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_package_is_named_with_the_extra_that_has_it(launch, monkeypatch, capsys, group, package):
    monkeypatch.setattr(cross_checks, "find_spec", lambda name: None if name == package else find_spec(name))
    launch(f"logger={group}", code=2)
    assert f"pip install 'kleiber[{package}]'" in capsys.readouterr().err


def test_a_logger_without_its_package_is_refused_with_its_key(launch, capsys):
    if find_spec("comet_ml"):
        pytest.skip("comet_ml is installed")
    launch("+logger.comet={_target_: lightning.pytorch.loggers.CometLogger}", code=2)
    assert "logger.comet needs a package" in capsys.readouterr().err


def events(folder):
    """Scalars by tag and texts of the event files in a folder, without those that a resumed stage hides."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    texts = {tag: read.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in read.Tags()["tensors"]}
    return scalars, texts


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra tensorboard")
@pytest.mark.parametrize("axis", ["steps", "tokens"])
def test_tensorboard_holds_the_rows_of_every_stage(launch, axis):
    folder = launch("logger=[csv,tensorboard]", f"logger.tensorboard.axis={axis}", *TREE)
    ours = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    unit = 1 if axis == "steps" else 512
    for stage in ("trunk", "4K", "8K"):
        scalars, texts = events(folder / "tensorboard" / stage)
        rows = [row for row in ours if row["stage"] == stage and "train/loss" in row]
        expected = {row["step"] * unit: row["train/loss"] for row in rows}
        assert dict(scalars["train/loss"]) == pytest.approx(expected, rel=1e-6) and expected
        assert json.loads(texts["config/text_summary"].strip("`json\n"))["seed"] == 0
        assert any(tag.startswith("final/val/") for tag in scalars)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra tensorboard")
def test_a_resumed_run_hides_the_events_after_its_checkpoint(launch, interrupted):
    options = ("logger=tensorboard", "callbacks.checkpoints.every=5", "callbacks.log.every=1")
    with interrupted(2):
        folder = launch(*options, code=130)
    assert launch(*options) == folder
    scalars, texts = events(folder / "tensorboard")
    assert [step for step, _ in scalars["train/loss"]] == list(range(1, 21))
    assert "continuation" in texts["samples/text_summary"]


@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra mlflow, which is large")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_config_rows_and_status_and_a_resumed_run_continues(launch, interrupted):
    from mlflow.tracking import MlflowClient

    options = ("logger=mlflow", "name=group-a", "callbacks.checkpoints.every=5", "+logger.mlflow.tags={team: a}")
    with interrupted(2):
        folder = launch(*options, code=130)
    launch(*options)
    client = MlflowClient(f"sqlite:///{folder.parents[1] / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("group-a")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == folder.name
    assert run.data.params["seed"] == "0" and run.data.tags["team"] == "a"
    losses = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train/loss")}
    ours = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx({row["step"]: row["train/loss"] for row in ours if "train/loss" in row})
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["samples.md"]
