"""Base classes: hooks without an effect, and the memory of a retention method, which is saved and moved."""

from pathlib import Path

import pytest
import torch

from kleiber.models.transformer import Transformer
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Adapter, Objective, Samples, Scorer
from kleiber.types.model import Model
from kleiber.types.retention import Retention


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(16, depth=1, width=16, context=8, num_heads=2)


class Length(Objective):
    """The number of tokens as a loss."""

    def __call__(self, model: Model, batch: Batch) -> Loss:
        count = torch.tensor(float(batch.tokens.numel()))
        return Loss(count, count, {"ce": count})


def test_an_objective_leaves_its_batches_alone_and_predicts_nothing(model):
    objective, batches = Length(), [Batch(torch.zeros(2, 3, dtype=torch.long))]
    assert objective.prepare_step(model, batches) is batches and objective.targets(model, batches[0]) == 6
    assert (objective.metric, objective.higher_is_better, objective.unit) == ("loss", False, "nats/token")
    assert not objective.outputs and not objective.has_predictions
    with pytest.raises(NotImplementedError, match="objective=Length"):
        objective.predictions(model, batches[0])


def test_a_scorer_returns_the_loss_and_no_metric(model):
    scorer = Length().scorer()
    assert type(scorer) is Scorer
    assert scorer.add(model, Batch(torch.zeros(2, 3, dtype=torch.long))).total.item() == 6.0
    assert scorer.compute() == {} and scorer.pairs() == {} and scorer.confusion() is None


def test_a_retention_method_changes_nothing_by_default(model):
    method, samples, batch = Retention(), Samples(), Batch(torch.zeros(1, 4, dtype=torch.long))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    method.begin_stage(model, [], 0)
    assert method.data(samples, [], Length()) is samples and method.penalty_counts(model, batch, 0) == []
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


def test_merging_an_adapter_makes_every_parameter_trainable(model):
    model.requires_grad_(False)
    Adapter().merge(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_samples_are_no_conversations_unless_they_say_so():
    assert Samples().question(0) is None and Samples.sides == 1 and not Samples.padded
