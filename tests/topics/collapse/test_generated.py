"""Text that models write: the right shares of it, written once and kept, and known by the weights that wrote it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Int
from small_run import REPOSITORY
from torch import Tensor

from kleiber.data.batches import stream
from kleiber.data.text import Text
from kleiber.data.tokenizers import Bytes
from kleiber.launch.main import main
from kleiber.models.transformer import Transformer
from kleiber.types.model import Model, hash_weights
from kleiber.types.tokenizer import Tokenizer
from kleiber_topics.collapse.generated import Generated

FILE = REPOSITORY / "tests/data/tiny.txt"


@dataclass
class Scribe:
    """Writes one letter for ever."""

    letter: int
    tokenizer: Tokenizer = field(default_factory=Bytes)
    calls: list[tuple[int, int, float, int]] = field(default_factory=list)

    @property
    def model(self) -> Model:
        torch.manual_seed(self.letter)
        return Transformer(272, width=16, num_heads=2, context=8, depth=1)

    def write(self, rows: int, tokens: int, temperature: float, seed: int) -> Int[Tensor, "rows tokens"]:
        self.calls.append((rows, tokens, temperature, seed))
        return torch.full((rows, tokens), self.letter)


def generated(*scribes: Scribe, **options) -> Generated:
    named = {f"run{n}": scribe for n, scribe in enumerate(scribes)}
    return Generated(named.__getitem__, Text(str(FILE)), list(named), **{"tokens": 4000} | options)


def letters(data: Generated, cache: Path, count: int = 40) -> dict[int, float]:
    """Share of the samples that consist of a letter alone; -1 is any other text."""
    train = data.prepare(16, cache).train
    rows = next(stream(train, 0, 0, count)).tokens.numpy()
    alike = [int(row[0]) if (row == row[0]).all() else -1 for row in rows]
    return {letter: alike.count(letter) / count for letter in set(alike)}


def test_text_of_models_replaces_the_real_text_or_is_mixed_with_it_in_exact_shares(tmp_path):
    a, b = Scribe(97), Scribe(98)
    assert letters(generated(a), tmp_path) == {97: 1.0}
    assert letters(generated(a, b), tmp_path) == {97: 0.5, 98: 0.5}
    assert letters(generated(a, b, real=0.5), tmp_path) == {97: 0.25, 98: 0.25, -1: 0.5}


def test_validation_and_tokenizer_are_those_of_the_real_text(tmp_path):
    real, corpus = Text(str(FILE)).prepare(16, tmp_path), generated(Scribe(97)).prepare(16, tmp_path)
    assert list(corpus.validation) == list(real.validation) and corpus.tokenizer.hash == "bytes/1"
    (held,), (other,) = corpus.validation.values(), real.validation.values()
    assert (held.gather(np.arange(3)).tokens == other.gather(np.arange(3)).tokens).all()
    assert (
        corpus.num_tokens == corpus.train.num_tokens == pytest.approx(corpus.num_bytes, abs=1)
        and corpus.num_tokens >= 4000
    )


def test_text_is_written_once_and_again_for_other_weights_and_settings(tmp_path):
    a = Scribe(97)
    first = generated(a).prepare(16, tmp_path)
    again = generated(a).prepare(16, tmp_path)
    assert len(a.calls) == 1 and again.hash == first.hash
    assert a.calls[0] == (62, 65, 1.0, 0), "streams are 4 contexts or longer"
    hashes = {first.hash}
    for number, options in enumerate([{"seed": 1}, {"temperature": 0.5}, {"tokens": 5000}], start=2):
        hashes.add(generated(a, **options).prepare(16, tmp_path).hash)
        assert len(a.calls) == number
    assert a.calls[1][3] == 1 and a.calls[2][2] == 0.5 and a.calls[3][0] * a.calls[3][1] >= 5000
    hashes |= {generated(Scribe(98)).prepare(16, tmp_path).hash, generated(a, real=0.5).prepare(16, tmp_path).hash}
    # Settings that lead to the same letters have the same content, which is what a hash is of.
    assert len(hashes) == 4


def test_the_manifest_lists_the_content_of_each_model(tmp_path):
    manifest = generated(Scribe(97), Scribe(98)).prepare(16, tmp_path).manifest
    assert {"generated/0", "generated/1"} < set(manifest)
    sums = [manifest[f"generated/{n}"]["files"]["train.bin"]["sha256"] for n in (0, 1)]
    assert sums[0] != sums[1]


def test_unique_limits_the_real_text(tmp_path):
    corpus = generated(Scribe(97), real=0.5, unique=320).prepare(16, tmp_path)
    rows = [next(stream(corpus.train, 0, step, 40)).tokens for step in range(3)]
    real = {tuple(row) for part in rows for row in part.tolist() if set(row) != {97}}
    assert len(real) == 320 // 16


def test_models_that_do_not_fit_are_refused(tmp_path):
    class Other(Bytes):
        hash = "bytes/2"

    with pytest.raises(ValueError, match=r"data.models: run0 has the tokenizer bytes/2.*data.data.tokenizer"):
        generated(Scribe(97, Other())).prepare(16, tmp_path)

    def missing(path: str) -> Scribe:
        raise ValueError(f"{path} is no run")

    with pytest.raises(ValueError, match=r"data.models: nowhere is no run"):
        Generated(missing, Text(str(FILE)), ["nowhere"]).prepare(16, tmp_path)

    class Bidirectional(Scribe):
        def write(self, rows: int, tokens: int, temperature: float, seed: int) -> Int[Tensor, "rows tokens"]:
            raise ValueError("this model is not causal")

    with pytest.raises(ValueError, match=r"data.models: run0: this model is not causal"):
        generated(Bidirectional(99)).prepare(16, tmp_path)


def test_the_hash_of_weights_is_of_every_value():
    torch.manual_seed(0)
    model = Transformer(272, width=16, num_heads=2, context=8, depth=1)
    first = hash_weights(model)
    assert hash_weights(model) == first
    with torch.no_grad():
        next(iter(model.blocks.parameters())).view(-1)[0] += 1e-6
    assert hash_weights(model) != first


@pytest.mark.slow
def test_a_run_learns_from_the_text_of_another_and_a_third_from_both(launch, tmp_path):
    def train(name: str, *models: Path, code: int = 0) -> Path:
        data = [
            f"data.data={{_target_:kleiber.data.Text,path:'{FILE}'}}",
            f"data.models=[{','.join(map(str, models))}]",
        ]
        fixed = ["trainer=smoke", "trainer.threads=1", "logger=csv", "batch.tokens=512", "callbacks.samples=null"]
        options = ["data=generated", "data.tokens=4k", "data.real=0.5", "~data.data", f"+{data[0]}", data[1]]
        assert main([*fixed, *options, "trainer.max_steps=2", f"root={tmp_path}", f"name={name}"]) == code
        return next((tmp_path / name).iterdir())

    first = launch("trainer.max_steps=2")
    second = train("second", first)
    third = train("third", first, second)
    inputs = [json.loads((run / "summary.json").read_text())["inputs"] for run in (second, third)]
    assert inputs[0]["data/generated/0"] == inputs[1]["data/generated/0"] != inputs[1]["data/generated/1"]
    assert inputs[0]["data/tiny"] == inputs[1]["data/tiny"]
    assert train("second", first) == second, "a repeated command is a resume"
