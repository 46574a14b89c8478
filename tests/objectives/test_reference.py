"""References: computed once for the same weights and data, and kept by a stage that resumes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tables import folder

from kleiber.data.preference import PairRows, Preference, PreferenceCorpus
from kleiber.models.transformer import Transformer
from kleiber.objectives.reference import fingerprint, set_reference
from kleiber.types.model import Model


def model(seed: int = 0, **options) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(272, depth=1, width=32, context=64, **options)


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
