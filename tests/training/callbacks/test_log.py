"""The callbacks that report on training: which rows they log, when, and over which time."""

import json
import time
from types import SimpleNamespace

import pytest
import torch

from kleiber.records.summary import StageRecord
from kleiber.runs import stage
from kleiber.training.callbacks import log
from kleiber.training.callbacks.log import Log, Throughput, training_metrics


class Rows(list):
    """A logger that keeps the rows."""

    def log_metrics(self, metrics, step):
        self.append((step, metrics))


@pytest.fixture
def trainer():
    rows = Rows()
    return SimpleNamespace(global_step=0, max_steps=10, is_global_zero=True, loggers=[rows], rows=rows)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(log.time, "perf_counter", lambda: now.seconds)
    return now


def module(**last):
    return SimpleNamespace(last={"ce": torch.tensor(2.0), "lr": 1e-3, **last})


def test_the_metrics_of_a_step_have_their_names_in_the_log():
    last = {
        "ce": torch.tensor(2.0), "total": 2.5, "loss": 9.0, "tokens": 512.0, "grad_norm": 0.5, "load/1": torch.ones(4),
        "balance/1": 1.1, "z/1": 3.0, "retention/penalty": 0.2,
    }  # fmt: skip
    assert training_metrics(last) == {
        "train/loss": 2.0, "train/total": 2.5, "train/grad_norm": 0.5, "moe/balance/1": 1.1, "moe/z/1": 3.0,
        "train/retention/penalty": 0.2,
    }  # fmt: skip


def test_a_row_is_logged_every_few_steps_and_at_the_last_one(trainer):
    callback = Log(batch_tokens=100, every=4)
    for trainer.global_step in range(1, 11):
        callback.on_train_batch_end(trainer, module())
    assert [step for step, _ in trainer.rows] == [4, 8, 10]
    assert [row["train/tokens"] for _, row in trainer.rows] == [400.0, 800.0, 1000.0]


def test_the_speed_leaves_out_the_first_step_and_the_time_of_other_callbacks(trainer, clock):
    record = StageRecord("main")
    callback = Throughput(100, record, every=2)
    clock.seconds += 100  # an evaluation of the start
    callback.start_callback().on_train_start(trainer, module())
    for trainer.global_step, seconds in ((1, 5.0), (2, 2.0), (3, 2.0), (4, 1.0)):
        clock.seconds += seconds
        callback.on_train_batch_end(trainer, module())
        clock.seconds += 100  # an evaluation
        callback.start_callback().on_train_batch_end(trainer, module())
    assert record.seconds == 10.0 and record.tokens_per_s == pytest.approx(3 * 100 / 5)
    assert trainer.rows == [
        (2, {"speed/tokens_per_s": 50.0, "speed/seconds": 7.0}),
        (4, {"speed/tokens_per_s": pytest.approx(60.0), "speed/seconds": 10.0}),
    ]


@pytest.mark.slow
def test_the_wait_for_data_is_a_part_of_the_seconds(launch, monkeypatch):
    """50 ms for each batch."""
    batches = stage.Batches.__iter__

    def slow(self):
        for batch in batches(self):
            time.sleep(0.05)
            yield batch

    monkeypatch.setattr(stage.Batches, "__iter__", slow)
    folder = launch("budget.steps=6", "eval.tokens=512")
    (record,) = json.loads((folder / "summary.json").read_text())["stages"]
    assert record["seconds"] >= 6 * 0.05 and record["tokens_per_s"] <= record["batch_tokens"] / 0.05


def test_seconds_are_resumed_and_the_speed_is_of_this_process(trainer, clock):
    record = StageRecord("main")
    callback = Throughput(100, record)
    callback.load_state_dict({"seconds": 30.0})
    callback.start()
    clock.seconds += 4.0
    callback.on_train_batch_end(trainer, module())
    assert record.seconds == 34.0 and record.tokens_per_s is None
    assert callback.state_dict() == {"seconds": 34.0}
