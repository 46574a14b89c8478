"""Patching restores exactly what is planted, pairs are of equal length, and every key has its effect."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evals.attribution.test_methods import tiny
from evals.subjects import subject_on_tables

from kleiber.data.tokenizers import Bytes
from kleiber.evals.patching.evaluation import Patching, ratio_score, restored
from kleiber.evals.patching.pairs import collate, pair_of_prompts, pair_of_sentences, read_pairs
from kleiber.evals.patching.patch import Patcher, sites
from kleiber.models.transformer import Transformer
from kleiber.types.batch import Batch

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


@pytest.mark.parametrize("kind", ["dense", "moe", "lstm"])
def test_a_patch_of_everything_is_the_clean_run(kind):
    model = tiny(kind)
    pairs = [pair for pair in read_pairs(Bytes(), [{**row, "clean": row["clean"]} for row in PROMPTS], "", 9) if pair]
    named = sites(model, True)
    with torch.no_grad():
        patcher = Patcher(model, collate(pairs, "cpu"), named)
        everywhere = patcher.pairs.offsets >= -99
        for layer in range(len(model.blocks) + 1):
            values = patcher.patched(f"stream/layer{layer}", everywhere)
            assert torch.allclose(values, patcher.clean, atol=1e-5)
    assert ("head/layer0" in named) == (kind != "lstm") and not torch.allclose(patcher.clean, patcher.corrupted)


def test_pairs_have_equal_length_and_a_common_ending():
    assert pair_of_sentences([1, 2, 3], [1, 2, 3, 4], 9) is None
    assert pair_of_sentences([1, 2, 3], [1, 2, 9], 9) is None, "nothing is left to predict"
    assert pair_of_sentences([1, 2, 3], [1, 2, 3], 9) is None
    assert pair_of_sentences([1, 2, 3, 4, 5], [1, 7, 3, 8, 5], 3) is None
    pair = pair_of_sentences([1, 2, 3, 4, 5, 6], [1, 7, 3, 8, 5, 6], 9)
    assert pair is not None and (pair.first, pair.reads, pair.targets) == (1, [3, 4], [5, 6])
    prompts = pair_of_prompts(([1, 2, 3], [4, 5]), ([1, 9, 3], [6]), 9)
    assert prompts is not None and (prompts.first, prompts.reads, prompts.targets, prompts.foil) == (1, [2], [4], 6)
    assert pair_of_prompts(([1, 2], [4]), ([1, 3], [4]), 9) is None


def test_the_value_is_the_log_probability_of_the_common_ending():
    model = tiny("dense")
    rows = [{"sentence_good": "cats eat", "sentence_bad": "cots eat"}, {"sentence_good": "a b", "sentence_bad": "c b"}]
    pairs = [pair for pair in read_pairs(Bytes(), rows, "", 9) if pair]
    batch = collate(pairs, "cpu")
    assert batch.offsets[1].tolist()[:3] == [-1, 0, 1] and (batch.offsets[1, 3:] == -1).all()
    with torch.no_grad():
        values = batch.values(model, batch.clean)
        ids = torch.tensor([[Bytes.eos, *b"cats eat"]])
        log_p = model.head(model(Batch(ids[:, :-1])).hidden).log_softmax(-1)[0]
        expected = sum(float(log_p[place, ids[0, place + 1]]) for place in range(2, 8))
    assert float(values[0]) == pytest.approx(expected, abs=1e-4)


def test_the_restored_share_is_a_ratio_over_pairs_that_the_model_knows():
    values = {
        "clean": np.array([3.0, 1.0, 0.0]), "corrupted": np.array([1.0, 0.0, 5.0]),
        "stream/layer0/offset0": np.array([2.0, 1.0, 9.0]), "stream/layer0/offset1": np.array([np.nan, 0.5, 9.0]),
    }  # fmt: skip
    scores = restored(values, "x")
    assert scores["stream/layer0/offset0"].value == pytest.approx(2 / 3)
    assert scores["stream/layer0/offset1"].value == 0.5 and scores["stream/layer0/offset1"].n == 1
    assert scores["clean_is_likelier"].value == pytest.approx(2 / 3)
    same = ratio_score(np.ones(5), 2 * np.ones(5))
    assert (same.lo, same.value, same.hi) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="no pair of x"):
        restored({"clean": np.zeros(2), "corrupted": np.ones(2)}, "x")


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
    results = {"scores": {"rows": {name: vars(score) for name, score in scores.items()}}}
    assert set(Patching().figures(results, None)) == {"positions_rows", "heads_rows"}
