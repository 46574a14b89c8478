"""A patch of everything is the clean run."""

import pytest
import torch
from evals.small_models import tiny

from kleiber.data.tokenizers import Bytes
from kleiber_topics.interpretability.patching.evaluation import Patcher, sites
from kleiber_topics.interpretability.patching.pairs import collate, read_pairs

PROMPTS = [
    {"clean": f"{a}bcd", "corrupted": f"{b}bcd", "answer": a, "wrong_answer": b} for a, b in ["xy", "yx", "uv", "vu"]
]


@pytest.mark.parametrize("kind", ["dense", "moe", "lstm"])
def test_a_patch_of_everything_is_the_clean_run(kind):
    model = tiny(kind)
    pairs = [pair for pair in read_pairs(Bytes(), PROMPTS, "", 9) if pair]
    named = sites(model, True)
    with torch.no_grad():
        patcher = Patcher(model, collate(pairs, "cpu"), named)
        everywhere = patcher.pairs.offsets >= -99
        for layer in range(len(model.blocks) + 1):
            values = patcher.patched(f"stream/layer{layer}", everywhere)
            assert torch.allclose(values, patcher.clean, atol=1e-5)
    assert ("head/layer0" in named) == (kind != "lstm") and not torch.allclose(patcher.clean, patcher.corrupted)
