"""Classes from pool hidden states: padding has no say, a sample counts one, and scores equal their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from kleiber.data.corpus import TextCorpus
from kleiber.data.labelled import Kind, LabelledCorpus
from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import MoE
from kleiber.objectives.classify import (
    Classify,
    class_rows,
    confusion_matrix,
    multi_label_metrics,
    pool,
    regression_metrics,
    single_label_metrics,
)
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples


def corpus(kind: Kind = "single", classes: int = 3, name: str = "toy", **labels) -> LabelledCorpus:
    """A corpus that has labels and no text."""
    settings = {"label": "y", "label_names": [f"c{i}" for i in range(classes)], "kind": kind, **labels}
    return LabelledCorpus(name, "", "", Bytes(), Samples(), {}, **settings)


def samples(rows: int = 6, time: int = 12, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, time + 1, (rows,), generator=generator)
    tokens = torch.randint(0, 50, (rows, time), generator=generator)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return Batch(tokens, torch.arange(time) < lengths[:, None], labels=labels, samples=torch.arange(rows))


def model(objective: Classify, causal: bool = True, **options) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(64, depth=2, width=32, context=32, causal=causal, **options)
    for name, count in objective.outputs.items():
        made.add_head(name, count)
        torch.nn.init.normal_(made.heads[name].weight)
    return made


@pytest.mark.parametrize(
    ("pooling", "causal"), [("mean", True), ("last", True), ("mean", False), ("class-token", False)]
)
def test_padding_has_no_say(pooling, causal) -> None:
    objective = Classify(corpus(), pooling)
    net, batch = model(objective, causal), samples()
    scores, _ = objective.score(net, batch)
    assert batch.real is not None and batch.labels is not None
    for i, length in enumerate(batch.real.sum(1).tolist()):
        alone = Batch(batch.tokens[i : i + 1, :length], labels=batch.labels[i : i + 1])
        assert torch.allclose(objective.score(net, alone)[0], scores[i], atol=1e-5)
    changed = Batch(batch.tokens.where(batch.real, 7), batch.real, labels=batch.labels)
    assert torch.allclose(objective.score(net, changed)[0], scores, atol=1e-6)


def test_poolings_pool_what_they_say() -> None:
    hidden = torch.arange(24.0).view(2, 4, 3)
    real = torch.tensor([[True, True, False, False], [True] * 4])
    assert pool(hidden, real, "class-token").tolist() == hidden[:, 0].tolist()
    assert pool(hidden, real, "last").tolist() == [hidden[0, 1].tolist(), hidden[1, 3].tolist()]
    assert pool(hidden, real, "mean").tolist() == [hidden[0, :2].mean(0).tolist(), hidden[1].mean(0).tolist()]
    assert pool(hidden, None, "last").tolist() == hidden[:, 3].tolist()


def test_a_class_token_of_a_causal_model_and_data_without_labels_are_refused() -> None:
    objective = Classify(corpus(), "class-token")
    with pytest.raises(ValueError, match=r"objective\.pooling=class-token"):
        objective.check(model(objective))
    with pytest.raises(ValueError, match="data=wikitext"):
        Classify(TextCorpus("wikitext", "", "", Bytes(), Samples(), {}))


def test_an_untrained_head_prefers_no_class() -> None:
    objective = Classify(corpus())
    net = model(objective)
    torch.nn.init.zeros_(net.heads[objective.head].weight)
    loss = objective(net, samples())
    assert (loss.total / loss.tokens).item() == pytest.approx(np.log(3), abs=1e-6)


@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_losses_are_sums_over_samples_by_their_definitions(kind) -> None:
    classes = 1 if kind == "regression" else 3
    objective = Classify(corpus(kind, classes, center=1.0, scale=2.0))
    net, batch = model(objective), samples()
    batch.labels = {"single": batch.labels, "multi": torch.tensor([[1.0, 0, 1]] * 6)}.get(kind, torch.arange(6.0))
    scores, loss = objective.score(net, batch)
    assert batch.labels is not None
    if kind == "single":
        wanted = -sum(scores[i].log_softmax(0)[label] for i, label in enumerate(batch.labels.tolist()))
    elif kind == "multi":
        p = scores.sigmoid()
        wanted = -(batch.labels * p.log() + (1 - batch.labels) * (1 - p).log()).sum() / 3
    else:
        wanted = ((1.0 + 2.0 * scores[:, 0] - batch.labels) ** 2).sum() / 4.0
    assert torch.allclose(loss.total, torch.as_tensor(wanted), atol=1e-4)
    assert loss.tokens == 6
    parts = [objective(net, part) for part in batch.split(4)]
    assert torch.allclose(sum(part.total for part in parts), loss.total, atol=1e-4)  # type: ignore[arg-type]


def test_an_auxiliary_loss_weighs_per_token_as_in_pretraining() -> None:
    objective = Classify(corpus())
    net = model(objective, mlp=lambda site: MoE(site, num_experts=4, k=2))
    batch = samples()
    aux = net(Batch(batch.tokens, batch.real)).aux["loss"]
    loss = objective(net, batch)
    assert batch.real is not None
    per_token = aux / batch.real.sum()
    assert torch.allclose((loss.total - loss.metrics["ce"]) / loss.tokens, per_token, atol=1e-6)
    assert per_token > 0


def predictions(rows: int = 400, classes: int = 4):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    logits = torch.randn(rows, classes, generator=generator) + 1.5 * torch.eye(classes)[labels]
    return logits, labels


def test_scores_of_classes_equal_their_definitions() -> None:
    logits, labels = predictions()
    found = single_label_metrics(logits, labels)
    guess, table = logits.argmax(1), confusion_matrix(logits.argmax(1), labels, 4).double()
    assert table[1, 2] == ((labels == 1) & (guess == 2)).sum()
    rows = class_rows(table.long(), list("abcd"))
    assert found["accuracy"] == pytest.approx((table.trace() / table.sum()).item())
    assert found["macro_f1"] == pytest.approx(sum(row.f1 for row in rows) / 4, abs=1e-6)
    assert rows[2].recall == pytest.approx((table[2, 2] / table[2].sum()).item())
    assert rows[2].support == int((labels == 2).sum())
    # Gorodkin's correlation of one-hot truth and guess.
    one, two = torch.eye(4, dtype=torch.float64)[labels], torch.eye(4, dtype=torch.float64)[guess]
    cov = lambda a, b: ((a - a.mean(0)) * (b - b.mean(0))).sum()  # noqa: E731
    assert found["mcc"] == pytest.approx((cov(one, two) / (cov(one, one) * cov(two, two)).sqrt()).item(), abs=1e-5)
    assert "f1" not in found and single_label_metrics(logits[:, :2], labels % 2)["f1"] > 0


def test_calibration_error_by_bins() -> None:
    logits, labels = predictions()
    confidence, guess = logits.softmax(1).max(1)
    error = 0.0
    for b in range(15):
        here = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if here.any():
            gap = (guess[here] == labels[here]).double().mean() - confidence[here].double().mean()
            error += here.double().mean().item() * abs(gap.item())
    assert single_label_metrics(logits, labels)["ece"] == pytest.approx(error, abs=1e-5)


def test_constant_predictions_score_nothing() -> None:
    _, labels = predictions()
    assert single_label_metrics(torch.tensor([[1.0, 0, 0, 0]] * 400), labels)["mcc"] == 0
    uneven = torch.tensor([0] * 70 + [1] * 30)
    for logits in ([[1.0, 0]] * 100, [[0, 1.0]] * 100):
        assert single_label_metrics(torch.tensor(logits), uneven)["mcc"] == 0
    assert single_label_metrics(torch.eye(2)[uneven], torch.zeros(100, dtype=torch.long))["mcc"] == 0
    assert single_label_metrics(torch.eye(2)[uneven], uneven)["mcc"] == 1
    assert regression_metrics(torch.full((9,), 2.5), torch.arange(9.0))["pearson"] == 0
    assert regression_metrics(torch.arange(9.0), torch.full((9,), 2.0))["spearman"] == 0


def test_scores_of_quantities_and_of_several_classes() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 11, (200,), generator=generator) / 2
    values = labels + torch.randn(200, generator=generator)
    found = regression_metrics(values, labels)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(values, labels).statistic, abs=1e-6)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(values, labels).statistic, abs=1e-6)
    assert found["rmse"] == pytest.approx(float(((values - labels) ** 2).mean().sqrt()))
    truth = torch.tensor([[1.0, 0], [1, 1], [0, 0], [1, 0]])
    logits = torch.tensor([[1.0, 1], [1, -1], [-1, -1], [-1, -1]])
    found = multi_label_metrics(logits, truth)
    assert found["accuracy"] == pytest.approx(5 / 8)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert found["macro_f1"] == pytest.approx((0.8 + 0.0) / 2)
    found = multi_label_metrics(logits[:, :1], truth[:, :1])
    assert found["micro_f1"] == found["macro_f1"] == pytest.approx(0.8) and found["accuracy"] == pytest.approx(3 / 4)


def test_a_scorer_sees_every_sample_once_in_one_order_whoever_scored_it(monkeypatch) -> None:
    objective = Classify(corpus())
    net, batch = model(objective), samples(9)
    whole, shares = objective.scorer(), [objective.scorer() for _ in range(2)]
    whole.add(net, batch)
    for scorer, rows in zip(shares, (slice(5, 9), slice(0, 6)), strict=True):  # a rank's share, one sample in both
        scorer.add(net, batch.map(lambda t, rows=rows: t[rows]))
    collected = [(scorer.table.samples, scorer.table.columns) for scorer in shares]

    def gather(parts, mine) -> None:
        parts[:] = collected

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    together = [scorer.compute() for scorer in shares]
    monkeypatch.undo()
    assert together[0] == together[1] == pytest.approx(whole.compute(), abs=1e-6)
    assert whole.report()[0].name == "c0" and int(whole.confusion().sum()) == 9  # type: ignore[union-attr]


@pytest.mark.slow
def test_it_learns_what_the_first_token_says() -> None:
    torch.manual_seed(0)
    objective = Classify(corpus(), "class-token")
    net = model(objective, causal=False)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(30):
        tokens = torch.randint(0, 6, (32, 8), generator=torch.Generator().manual_seed(step))
        batch = Batch(tokens, labels=tokens[:, 0] % 3, samples=torch.arange(32))
        loss = objective(net, batch)
        optimizer.zero_grad()
        (loss.total / loss.tokens).backward()
        optimizer.step()
    assert loss.metrics["accuracy"] / loss.tokens > 0.8


def test_the_output_layer_learns_in_proportion_to_the_scale_of_a_text() -> None:
    """A step of Adam from zero weights: at a scale of 4 it equals one of four times the rate at a scale of 1."""
    scores = []
    for scale, lr in ((4.0, 0.01), (1.0, 0.04)):
        objective, batch = Classify(corpus(), scale=scale), samples()
        net = model(objective)
        head = net.heads[objective.head]
        torch.nn.init.zeros_(head.weight)
        objective(net, batch).total.backward()
        torch.optim.Adam([head.weight], lr=lr).step()
        scores.append(objective.score(net, batch)[0])
        predicted = objective.predictions(net, batch)
        assert torch.allclose(predicted.head(predicted.hidden), scores[-1])
        assert torch.allclose(predicted.hidden.square().mean(1).sqrt(), torch.tensor(scale), rtol=1e-3)
    assert torch.allclose(scores[0], scores[1], atol=1e-4) and not torch.allclose(scores[0], torch.zeros(1), atol=1e-2)


def test_the_distribution_over_classes_is_the_one_that_the_loss_is_of() -> None:
    objective, batch = Classify(corpus()), samples()
    net = model(objective)
    told = objective.predictions(net, batch)
    loss = torch.nn.functional.cross_entropy(told.head(told.hidden), batch.labels, reduction="sum")
    assert loss.item() == pytest.approx(objective(net, batch).total.item(), rel=1e-5)
    assert told.weights.tolist() == [1.0] * len(batch)
    for kind in ("multi", "regression"):
        assert not Classify(corpus(kind)).has_predictions, "no draw from one distribution"


def test_text_of_another_task_is_read_as_far_as_the_context_goes() -> None:
    objective = Classify(corpus())
    net, rows = model(objective), torch.randint(0, 50, (2, 33))
    long, cut = (objective.predictions(net, Batch(tokens)).hidden for tokens in (rows, rows[:, :32]))
    assert torch.equal(long, cut)


def test_a_head_belongs_to_what_its_outputs_stand_for() -> None:
    heads = [
        Classify(corpus(**more)).head
        for more in ({}, {"name": "train"}, {"label": "other"}, {"classes": 2}, {"label_names": ["a", "b", "c"]})
    ]
    assert len(set(heads)) == 5 and Classify(corpus()).head == heads[0]
    for name in ("train", "eval", "values", "half", "a.b c"):  # attributes of the dictionary that holds the heads
        objective = Classify(corpus(name=name))
        assert objective(model(objective), samples()).total.isfinite()
