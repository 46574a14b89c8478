"""The callback looks at its steps, from the checkpoint that the stage began with, also after a resume."""

from types import SimpleNamespace

import pytest
import torch
from retention.toys import NEW, TASKS, learned, train

from kleiber import checkpoint
from kleiber.callbacks.drift import Drift


class Trainer(SimpleNamespace):
    global_rank, world_size, max_steps = 0, 1, 10
    precision_plugin = SimpleNamespace(val_step_context=lambda: torch.no_grad())


def test_it_measures_from_the_stages_start(tmp_path):
    start = checkpoint.save(tmp_path, 0, learned(), {}, "")
    net, rows = learned(), []
    train(net, NEW, 5)
    lit = SimpleNamespace(model=net, device=torch.device("cpu"))
    logger = SimpleNamespace(log_metrics=lambda values, step: rows.append((step, values)))
    look = Drift(start, TASKS, every=5, tokens=None, rows=50)
    look.on_fit_start(Trainer(), lit)
    for step in (4, 5):
        look.on_train_batch_end(Trainer(global_step=step, loggers=[logger]), lit)
    ((step, found),) = rows
    assert step == 5 and set(found) == {"drift/l2", "drift/relative", "drift/old/kl"} and min(found.values()) > 0
    again = Drift(start, TASKS, every=5, tokens=None, rows=50)
    again.load_state_dict(look.state_dict())
    again.on_fit_start(Trainer(), lit)
    assert again.look(Trainer(), lit) == pytest.approx(found) and again.curve == [{"step": 5, **found}]
