"""The hooks that Lightning skips, and those that a callback or the model defines."""

import inspect
import io
import logging

import lightning.pytorch as pl
import pytest
import torch

from kleiber.config.errors import Interrupted
from kleiber.training import step
from kleiber.training.lightning import (
    HooksDisabled,
    LeanCallback,
    LeanModule,
    callbacks_of,
    count_skipped_step,
    end_fit,
    fit,
    silence,
    stop_after_this_step,
)
from kleiber.training.lit import LitLM
from kleiber.training.trainer import Local

EVERY_BATCH = [name for name in vars(HooksDisabled) if name.startswith("on_")]


class Counting(LeanCallback):
    """Counts the only hook that it has."""

    calls = 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.calls += 1


class Foreign(pl.Callback):
    """A callback of somebody else, with a hook that none of ours has."""

    calls = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.calls += 1


class Linear(LeanModule):
    def __init__(self):
        super().__init__()

        self.weight = torch.nn.Parameter(torch.ones(2))

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        self.manual_backward((self.weight * batch).sum())
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)


def test_messages_of_a_later_run_are_printed_where_the_stderr_of_the_first_is_closed(monkeypatch, capsys):
    ours = logging.getLogger("kleiber")
    monkeypatch.setattr(ours, "handlers", [])
    with io.StringIO() as first, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", first)
        silence(rank_zero=True)
        ours.warning("a message of the first run")
        assert first.getvalue() == "a message of the first run\n"
    silence(rank_zero=True)
    logging.getLogger("kleiber.data").info("a message of the second run")
    assert capsys.readouterr().err == "a message of the second run\n"


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*may be a bottleneck", "ignore:The `srun` command")
def test_a_hook_is_called_where_a_callback_has_it_and_nowhere_else():
    counting, foreign = Counting(), Foreign()
    trainer = Local().trainer([counting, foreign, LeanCallback()], [], max_steps=3)
    trainer.fit(Linear(), torch.utils.data.DataLoader(torch.ones(5, 2)))
    assert counting.calls == foreign.calls == trainer.global_step == 3


class Steps(LeanCallback):
    """Collects the numbers of the steps, skips counted ones and stops where it is told."""

    def __init__(self, stop: int | None = None, skip: int | None = None) -> None:
        self.stop, self.skip = stop, skip
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps.append(trainer.global_step)
        if trainer.global_step == self.stop:
            stop_after_this_step(trainer)
        if trainer.global_step == self.skip:
            count_skipped_step(trainer)


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*may be a bottleneck", "ignore:The `srun` command")
@pytest.mark.parametrize(
    ("start", "options", "steps"),
    [(0, {}, [1, 2, 3, 4, 5, 6]), (4, {}, [5, 6]), (0, {"stop": 2}, [1, 2]), (2, {"skip": 3}, [3, 5, 6])],
)
def test_a_fit_counts_steps_from_its_start_to_the_last_one(start, options, steps):
    callback = Steps(**options)
    trainer = Local().trainer([callback], [], max_steps=6)
    assert callback in callbacks_of(trainer)
    fit(trainer, Linear(), torch.utils.data.DataLoader(torch.ones(9, 2)), start)
    assert callback.steps == steps and trainer.global_step == steps[-1]


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*may be a bottleneck", "ignore:The `srun` command")
def test_a_keyboard_interrupt_ends_a_fit_as_interrupted():
    class Pressed(Linear):
        def training_step(self, batch, index):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        fit(Local().trainer([], [], max_steps=3), Pressed(), torch.utils.data.DataLoader(torch.ones(5, 2)), 0)


class Moved(Linear):
    """Notes where it is moved."""

    def __init__(self):
        super().__init__()
        self.moves = []

    def to(self, *places, **options):
        self.moves.append(places[0])
        return super().to(*places, **options)

    def cpu(self):
        self.moves.append("home")
        return super().cpu()


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*may be a bottleneck", "ignore:The `srun` command")
def test_a_module_is_on_the_device_of_the_trainer_after_a_fit_and_where_no_step_is_left():
    """Lightning moves it to the CPU at the end of a fit, and a run goes on to score it."""
    trainer, module = Local().trainer([], [], max_steps=2), Moved()
    fit(trainer, module, torch.utils.data.DataLoader(torch.ones(5, 2)), 0)
    assert module.moves[-2:] == ["home", trainer.strategy.root_device]
    trainer, module = Local().trainer([], [], max_steps=2), Moved()
    end_fit(trainer, module, 2)
    assert module.moves == [trainer.strategy.root_device]


def test_hooks_that_are_skipped_do_nothing_in_lightning():
    """A hook that Lightning renames or gives a meaning has to be looked at again."""
    for owner in (pl.Callback, pl.LightningModule):
        for name in EVERY_BATCH:
            body = inspect.getsource(getattr(owner, name)).rpartition('"""')[2]
            assert body.strip() in ("", "pass"), f"{owner.__name__}.{name} does something: {body}"
    assert not callable(LitLM.on_train_batch_end)


def test_a_seed_gives_the_numbers_of_manual_seed():
    torch.manual_seed(3)
    expected = torch.rand(4)
    step.seed_generators(3)
    assert torch.equal(torch.rand(4), expected)


def test_seeding_keeps_no_trace_of_the_stack(monkeypatch):
    def refuse(*_):
        raise AssertionError("a stack was formatted, which takes longer than the rest of a small step's bookkeeping")

    monkeypatch.setattr("traceback.format_stack", refuse)
    step.seed_generators(3)
