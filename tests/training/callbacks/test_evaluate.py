"""Scores during training, and the warning about scores of a part of the rows."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tables import folder
from torch import nn

from kleiber.records.summary import StageRecord
from kleiber.training.callbacks import evaluate
from kleiber.training.step import Diverged
from kleiber.types.score import Score


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = [{"text": f"{'good' if i % 3 else 'bad'} {i}", "label": i % 2} for i in range(60)]
    return f"data.path={folder(tmp_path / 't', train=rows, validation=rows[:20])}"


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(evaluate.log, "warning", lambda line, *values: lines.append(line % values))
    return lines


@pytest.mark.slow
def test_a_score_of_a_part_of_the_rows_is_warned_about(launch, table: str, messages: list[str]) -> None:
    launch("data=labelled", table, "objective=classify", "eval.tokens=60")
    (message,) = messages
    assert all(text in message for text in ("7 of 20", "eval.tokens=60", "eval.tokens=null"))


@pytest.mark.slow
def test_all_rows_and_a_part_of_a_text_need_no_warning(launch, table: str, messages: list[str]) -> None:
    launch("data=labelled", table, "objective=classify", "eval.tokens=null")
    launch("data.max_bytes=100K", "eval.tokens=64", root="text")
    assert messages == []


@pytest.mark.parametrize(("stage", "seconds"), [("trunk", 5.0), ("branch", 0.0)])
def test_a_branch_has_the_curve_of_its_trunk_but_not_the_seconds_that_it_took(stage: str, seconds: float) -> None:
    trunk, record = StageRecord(name="trunk"), StageRecord(name=stage)
    trunk.evaluation_seconds = 5.0
    trunk.add_row(4, {"val/docs/loss": 2.0})
    trunk.add_scores({"val/docs/loss": Score(2.0, n=8, unit="nats", better="lower", label="loss on docs")})
    saved = evaluate.Evaluate(trunk, [], every=0, tokens=None, rows=1).state_dict()
    evaluate.Evaluate(record, [], every=0, tokens=None, rows=1).load_state_dict(saved)
    assert record.curve == trunk.curve and record.evaluation_seconds == seconds
    assert record.scores == trunk.scores


def test_the_peak_memory_of_a_stage_is_that_of_its_steps_and_not_of_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device whose peak can be reset, as that of a GPU."""
    record, peak = StageRecord(name="main"), SimpleNamespace(bytes=0)
    monkeypatch.setattr(evaluate, "peak_memory_bytes", lambda device: peak.bytes)
    monkeypatch.setattr(evaluate, "reset_peak_memory", lambda device: setattr(peak, "bytes", 1))
    monkeypatch.setattr(evaluate, "score_tasks", lambda *_: setattr(peak, "bytes", 90) or {})
    module = SimpleNamespace(model=torch.nn.Linear(1, 1), device=torch.device("cpu"))
    callback = evaluate.Evaluate(record, [], every=1, tokens=None, rows=1)
    for step, of_step, expected in ((1, 50, 50), (2, 40, 50), (3, 60, 60)):
        peak.bytes = max(peak.bytes, of_step)
        trainer = SimpleNamespace(global_step=step, max_steps=3, loggers=[])
        callback.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
        assert record.peak_memory_bytes == expected


def test_a_validation_loss_that_is_not_finite_ends_the_run_as_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is logged first; the loss of another stage's task and a metric that is no loss may be nan."""
    scores = {"val/docs/loss": 2.0, "val/docs/auc": math.nan, "val/later/loss": math.nan}
    monkeypatch.setattr(evaluate, "score_tasks", lambda *_: {key: Score(value) for key, value in scores.items()})
    docs, later = SimpleNamespace(name="docs"), SimpleNamespace(name="later")
    record = StageRecord(name="main")
    callback = evaluate.Evaluate(record, [docs], every=1, tokens=None, rows=1, later=[later])
    trainer = SimpleNamespace(global_step=3, max_steps=9, loggers=[])
    module = SimpleNamespace(model=nn.Linear(1, 1), device=torch.device("cpu"))
    callback.on_train_batch_end(trainer, module)
    for loss in (math.nan, math.inf):
        scores["val/docs/loss"] = loss
        with pytest.raises(Diverged, match=f"step 3: the validation loss of docs is {loss:g}"):
            callback.on_train_batch_end(trainer, module)
    assert len(record.curve) == 3
