"""Retention methods: hooks without an effect, and their memory, which is saved and moved."""

from pathlib import Path

import torch

from kleiber.models.transformer import Transformer
from kleiber.types.batch import Batch
from kleiber.types.contracts import Objective, Samples
from kleiber.types.retention import Retention


def test_a_retention_method_changes_nothing_by_default():
    model = Transformer(16, depth=1, width=16, context=8, num_heads=2)
    method, samples, batch = Retention(), Samples(), Batch(torch.zeros(1, 4, dtype=torch.long))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    method.begin_stage(model, [], 0)
    assert method.data(samples, [], Objective()) is samples and method.penalty_counts(model, batch, 0) == []
    assert method.gradients(model, 0) == {} and method.end_stage(model, Path) == {}
    method.after_step(model, 0, 0.1)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_memory_of_a_method_is_its_state_and_moves_with_it():
    method, other = Retention(), Retention()
    method.memory = {"seed": 3, "start": {"weight": torch.ones(2)}, "tasks": {"docs": True}}
    other.load_state_dict(method.state_dict())
    assert other.memory["seed"] == 3 and torch.equal(other.memory["start"]["weight"], torch.ones(2))
    moved = method.to(torch.float64)
    assert moved.memory["start"]["weight"].dtype == torch.float64
    assert moved.memory["seed"] == 3 and moved.memory["tasks"] == {"docs": True}
