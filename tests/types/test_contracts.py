"""Base classes: hooks without an effect."""

import pytest
import torch

from kleiber.models.transformer import Transformer
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Adapter, Objective, Samples, Scorer
from kleiber.types.model import Model
from kleiber.types.score import Metric


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
    assert objective.metric == "loss" and objective.metrics["loss"] == Metric("loss", "lower", "nats per token")
    assert not objective.outputs and not objective.has_predictions
    with pytest.raises(NotImplementedError, match="objective=Length"):
        objective.predictions(model, batches[0])


def test_a_scorer_returns_the_loss_and_no_metric(model):
    scorer = Length().scorer()
    assert type(scorer) is Scorer
    assert scorer.add(model, Batch(torch.zeros(2, 3, dtype=torch.long))).total.item() == 6.0
    assert scorer.compute() == {} and scorer.pairs() == {} and scorer.confusion() is None


def test_merging_an_adapter_makes_every_parameter_trainable(model):
    model.requires_grad_(False)
    Adapter().merge(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_samples_are_no_conversations_unless_they_say_so():
    assert Samples().question(0) is None and Samples.sides == 1 and not Samples.padded
