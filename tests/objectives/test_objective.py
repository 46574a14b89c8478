"""What objectives share: auxiliary losses, names of heads, tables of samples, and references that are computed once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tables import folder

from kleiber.data.preference import PairRows, Preference, PreferenceCorpus
from kleiber.models.transformer import Transformer
from kleiber.objectives.objective import (
    SampleTable,
    fingerprint,
    head_name,
    loss_with_auxiliary,
    rescale_auxiliary,
    set_reference,
)
from kleiber.types.batch import Batch, Output
from kleiber.types.model import Model


def model(seed: int = 0, **options) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(272, depth=1, width=32, context=64, **options)


def test_the_auxiliary_loss_is_trained_and_reported_and_not_part_of_the_metrics_before() -> None:
    total, metrics = torch.tensor(6.0, requires_grad=True), {"ce": torch.tensor(6.0)}
    loss = loss_with_auxiliary(total, 3, metrics, {"loss": torch.tensor(0.5), "load/0": torch.ones(4)})
    assert loss.total.item() == 6.5 and loss.tokens.item() == 3.0
    assert set(loss.metrics) == {"ce", "loss", "load/0"} and loss.metrics["ce"].item() == 6.0
    assert loss_with_auxiliary(total, torch.tensor(2.0), metrics, {}).total is total


def test_rescaled_sums_are_means_per_token_after_division_by_the_count() -> None:
    auxiliary = {"loss": torch.tensor(8.0), "load/0": torch.ones(4)}
    output = Output(torch.zeros(2, 5, 3), auxiliary)
    tokens = torch.zeros(2, 5, dtype=torch.long)
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    assert rescale_auxiliary(output, Batch(tokens), 2)["loss"].item() / 2 == pytest.approx(8 / 10)
    rescaled = rescale_auxiliary(output, Batch(tokens, real), 2)
    assert rescaled["loss"].item() / 2 == pytest.approx(8 / 8) and rescaled["load/0"] is auxiliary["load/0"]
    assert rescale_auxiliary(Output(torch.zeros(2, 5, 3)), Batch(tokens), 2) == {}


def test_a_head_is_named_by_its_task_and_the_meaning_of_its_outputs() -> None:
    assert head_name("a.b", "x") == head_name("a.b", "x") != head_name("a.b", "y")
    assert head_name("a.b", "x").startswith("a_b-")


def test_a_table_has_each_sample_once_in_the_order_of_numbers() -> None:
    table = SampleTable()
    table.add(torch.tensor([3, 1]), score=torch.tensor([30.0, 10.0]))
    table.add(torch.tensor([2, 3]), score=torch.tensor([20.0, 30.0]))
    assert table.gather()["score"].tolist() == [10.0, 20.0, 30.0]


def test_the_fingerprint_depends_on_weights_and_on_settings_without_weights() -> None:
    assert fingerprint(model()) == fingerprint(model().train())
    assert len({fingerprint(net) for net in (model(), model(1), model(soft_cap=0.5))}) == 3


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch) -> PreferenceCorpus:
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    table = [{"prompt": f"{i}", "chosen": "good", "rejected": "bad" * (i % 2 + 1)} for i in range(6)]
    return Preference(folder(tmp_path / "t", train=table, validation=table[:4])).prepare(64)


def count_rows(calls: list[int], net: Model, rows: PairRows) -> np.ndarray:
    """Stands for a reference: two numbers per row that tell the weights apart; counts the rows it was called for."""
    calls.append(len(rows))
    return np.full((len(rows), 2), float(net.embedding.weight.detach().sum()), np.float32)


def test_a_reference_is_computed_once_for_the_same_weights_and_data(corpus, tmp_path) -> None:
    calls: list[int] = []
    begin = partial(set_reference, corpus=corpus, rows=corpus.rows(), compute=partial(count_rows, calls))
    begin(model(), folder=tmp_path / "a")
    assert calls == [6, 4] and corpus.train.reference.shape == (6, 2)
    begin(model(), folder=tmp_path / "a")  # the same stage again
    begin(model(), folder=tmp_path / "b")  # another run from the same weights
    assert calls == [6, 4]
    begin(model(1), folder=tmp_path / "a")  # the start point was trained again
    assert calls == [6, 4, 6, 4]


def test_a_resumed_stage_keeps_the_reference_of_its_beginning(corpus, tmp_path) -> None:
    begin = partial(set_reference, corpus=corpus, rows=corpus.rows(), compute=partial(count_rows, []))
    stage = tmp_path / "stage"
    begin(model(0), folder=stage)
    reference = corpus.train.reference.copy()
    (stage / "checkpoints/step-00000005").mkdir(parents=True)
    corpus.train.reference = None
    begin(None, folder=stage)
    assert np.array_equal(corpus.train.reference, reference)
    intact = (stage / "reference.npz").read_bytes()
    for damaged in (b"cut off", intact[: len(intact) // 2]):
        (stage / "reference.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"reference\.npz.*resume=never"):
            begin(model(1), folder=stage)
