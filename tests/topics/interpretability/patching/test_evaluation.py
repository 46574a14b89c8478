"""Patching restores exactly what is planted, and every key has its effect."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evals.subjects import subject_on_tables

from kleiber.models.transformer import Transformer
from kleiber_topics.interpretability.patching.evaluation import Patching, restored

PROMPTS = [
    {"clean": f"{a}bcd", "corrupted": f"{b}bcd", "answer": a, "wrong_answer": b} for a, b in ["xy", "yx", "uv", "vu"]
]


def one_head(head: int = 1) -> Transformer:
    """A model of one layer in which only one head writes to the stream, and no MLP."""
    torch.manual_seed(1)
    model = Transformer(272, depth=1, width=32, context=24, num_heads=2, qk_norm=False).eval()
    with torch.no_grad():
        block, size = model.blocks[0], 16
        block.attention.out.weight[:, (1 - head) * size : (2 - head) * size] = 0
        block.attention.out.weight[:, head * size : (head + 1) * size].normal_()
        block.mlp.down.weight.zero_()
    return model


def test_the_head_that_moves_the_answer_restores_all_of_it_and_the_other_nothing():
    results = Patching(offsets=3).evaluate(subject_on_tables(one_head(), prompts=PROMPTS)).scores["prompts"]
    assert results["clean_is_likelier"].value > 0 and results["difference"].n == 4
    expected = {
        "stream/layer0/offset0": 1.0, "stream/layer0/offset1": 0.0, "stream/layer0/end": 0.0,
        "stream/layer1/offset0": 0.0, "stream/layer1/end": 1.0,
        "head/layer0/head0": 0.0, "head/layer0/head1": 1.0, "attention/layer0": 1.0, "mlp/layer0": 0.0,
    }  # fmt: skip
    assert {name: results[name].value for name in expected} == pytest.approx(expected, abs=1e-4)


def test_the_restored_share_is_a_ratio_over_pairs_that_the_model_knows():
    values = {
        "clean": np.array([3.0, 1.0, 0.0]), "corrupted": np.array([1.0, 0.0, 5.0]),
        "stream/layer0/offset0": np.array([2.0, 1.0, 9.0]), "stream/layer0/offset1": np.array([np.nan, 0.5, 9.0]),
    }  # fmt: skip
    scores = restored(values)
    assert scores["stream/layer0/offset0"].value == pytest.approx(2 / 3)
    assert scores["stream/layer0/offset1"].value == 0.5 and scores["stream/layer0/offset1"].n == 1
    assert scores["clean_is_likelier"].value == pytest.approx(2 / 3)
    unknown = restored({"clean": np.zeros(2), "corrupted": np.ones(2), "stream/layer0/end": np.ones(2)})
    assert set(unknown) == {"difference", "clean_is_likelier"} and unknown["clean_is_likelier"].value == 0


@pytest.mark.slow
def test_the_keys_have_their_effect():
    rows = [{"sentence_good": f"{a} cat is", "sentence_bad": f"{b} cat is"} for a, b in ["ab", "ba", "cd", "dc", "ac"]]
    rows += [{"sentence_good": "longer", "sentence_bad": "long"}]
    case = subject_on_tables(one_head(), rows=rows)
    scores = Patching(offsets=2).evaluate(case).scores["rows"]
    assert scores["equal_length"].value == pytest.approx(5 / 6) and scores["difference"].n == 5
    assert "stream/layer0/offset2" not in scores and "stream/layer0/offset2" in Patching().evaluate(case).scores["rows"]
    assert Patching(pairs=4).evaluate(case).scores["rows"]["difference"].n == 4
    assert not any(name.startswith("head") for name in Patching(heads=False).evaluate(case).scores["rows"])
    assert Patching(prefix="").evaluate(case).scores["rows"]["difference"] != scores["difference"]
    assert Patching().evaluate(replace(case, limit=2)).scores["rows"]["equal_length"].n == 2
    with pytest.raises(ValueError, match="needs pairs of equal length"):
        Patching().evaluate(subject_on_tables(one_head(), rows=rows[-1:]))
