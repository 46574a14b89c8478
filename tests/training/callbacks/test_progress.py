"""The progress of a stage: its line, the time that is left, and the lines on validation and expected time."""

from types import SimpleNamespace

import pytest
import torch

from kleiber.objectives.clm import CLM
from kleiber.records.progress import DISPLAY
from kleiber.records.summary import StageRecord
from kleiber.training.callbacks import progress
from kleiber.training.callbacks.progress import Progress, Speed
from kleiber.types.score import Score


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now.seconds)
    return now


@pytest.fixture
def trainer():
    yield SimpleNamespace(global_step=0, max_steps=10, is_global_zero=True)
    DISPLAY.activities.clear()


def evaluate(every: int = 5, targets: int = 600):
    held_out = SimpleNamespace(num_tokens=targets)
    held_out.first = lambda tokens: held_out
    record = StageRecord("main", objective="clm", tasks=["docs"])
    docs = SimpleNamespace(name="docs", held_out=held_out, objective=CLM())
    return SimpleNamespace(record=record, every=every, tokens=None, stage_tasks=[docs], all=[docs])


def module():
    return SimpleNamespace(last={"ce": torch.tensor(2.0), "lr": 1e-3})


def train(callback, trainer, clock, scores_at=(), evaluation=3.0, step_seconds=1.0):
    """Makes all steps; returns the line after each. Evaluations end before the callback is called, as in a run."""
    callback.on_train_start(trainer, module())
    lines = []
    for step in range(1, trainer.max_steps + 1):
        trainer.global_step = step
        clock.seconds += step_seconds
        if step in scores_at:
            clock.seconds += evaluation
            callback.evaluate.record.evaluation_seconds += evaluation
            score = Score(3.5, unit="nats per token", better="lower", label="loss on docs")
            callback.evaluate.record.add_to_row(step, {"val/docs/loss": score})
        callback.on_train_batch_end(trainer, module())
        lines.append(callback.training and callback.training.line)
    callback.on_train_end(trainer, module())
    return lines


def test_the_line_has_loss_validation_speed_and_time_left(trainer, clock, capsys):
    lines = train(Progress(100, evaluate()), trainer, clock, scores_at=(5, 10))
    assert lines[0] == "step 1/10  loss 2.000  lr 0.001"
    # 600 targets at three times 100 tokens/s: two evaluations of 2 s are expected beside 8 steps.
    assert lines[1] == "step 2/10  loss 2.000  100 tokens/s  12 s left  lr 0.001"
    # The first evaluation took 3 s: 4 steps and one evaluation are left.
    assert lines[5] == "step 6/10  loss 2.000  val 3.500  100 tokens/s  7 s left  lr 0.001"
    assert lines[9] == "step 10/10  loss 2.000  val 3.500  100 tokens/s  lr 0.001"
    printed = capsys.readouterr().err.splitlines()
    assert [line for line in printed if "validation docs 3.5000 nats per token" in line] == printed[1:3]
    assert printed[-1] == lines[9]


def test_the_loss_of_a_task_of_another_stage_has_the_unit_of_its_objective(trainer, capsys):
    scored = evaluate()
    values = {"docs/loss": 3.5, "topics/loss": 0.5, "topics/accuracy": 0.9}
    units = {"docs/loss": "nats per token", "topics/loss": "per sample"}
    scores = {f"val/{name}": Score(value, unit=units.get(name, "")) for name, value in values.items()}
    scored.record.add_to_row(10, scores | {"eval/x/docs/loss": Score(1.0)})
    Progress(100, scored)._print_scores(10, 10)
    scores = "docs 3.5000 nats per token; topics 0.5000 per sample, 0.9000 accuracy"
    assert capsys.readouterr().err == f"step 10/10: validation {scores}\n"


def test_one_step_and_one_evaluation_are_no_plural(trainer, clock, capsys):
    trainer.max_steps = 4
    train(Progress(100, evaluate()), trainer, clock)
    expected = [line for line in capsys.readouterr().err.splitlines() if line.startswith("expected time")]
    assert expected == ["expected time 3 s: 1 more step at 100 tokens/s, 1 evaluation of 2 s"]


def test_the_expected_time_is_printed_once_when_steps_were_measured(trainer, clock, capsys):
    train(Progress(100, evaluate()), trainer, clock)
    expected = [line for line in capsys.readouterr().err.splitlines() if line.startswith("expected time")]
    assert expected == ["expected time 11 s: 7 more steps at 100 tokens/s, 2 evaluations of 2 s each"]


def test_an_update_between_two_refreshes_costs_no_synchronization(trainer, clock):
    callback = Progress(100, evaluate(every=0))
    callback.on_train_start(trainer, module())
    for trainer.global_step in range(1, 9):
        clock.seconds += 0.01
        last = {"lr": 1e-3} if trainer.global_step > 1 else module().last
        callback.on_train_batch_end(trainer, SimpleNamespace(last=last))  # reading "ce" would raise KeyError
    callback.on_exception(trainer, module(), ValueError())
    assert DISPLAY.activities == []


def test_only_rank_zero_shows_progress(trainer, clock, capsys):
    trainer.is_global_zero = False
    assert set(train(Progress(100, evaluate()), trainer, clock, scores_at=(5,))) == {None}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("every", "step", "count"), [(5, 0, 3), (5, 5, 2), (5, 9, 2), (5, 10, 1), (5, 11, 1), (0, 3, 1), (5, 12, 0)]
)
def test_the_evaluation_after_the_last_step_counts_too(clock, every, step, count):
    assert Speed(0, evaluate(every), 100).evaluations(step, last=12) == count
