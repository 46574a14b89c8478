"""Models that read a prompt in both directions, against a slow attention with the mask written out."""

from functools import partial

import pytest
import torch

from kleiber.data.tokenizers import Bytes
from kleiber.evals.likelihood import log_likelihoods
from kleiber.models.generation import continuations
from kleiber.models.hf_twin import to_hf
from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.mup import Site
from kleiber.objectives.clm import next_token_inputs, prompt_tokens
from kleiber.objectives.sft import SFT
from kleiber.types.batch import Batch

CASES = {
    "full": {},
    "gqa": {"num_heads": 2, "num_kv_heads": 1},
    "alibi": {"positions": "alibi"},
    "capped": {"attention": partial(FullAttention, prefix=True, soft_cap=3.0)},
    "learned": {"positions": "learned"},
}


def build(**options) -> Transformer:
    torch.manual_seed(0)
    attention = partial(FullAttention, prefix=True)
    model = Transformer(40, **{"width": 32, "context": 24, "tied": False, "attention": attention} | options)
    torch.nn.init.normal_(model.embedding.weight, std=0.3)
    torch.nn.init.normal_(model.head.weight)
    return model.eval()


def alone(model, ids, length) -> torch.Tensor:
    """Hidden states of a row whose first `length` tokens are the prompt, by masks written out."""
    reference = build_mask(len(ids), length)
    for block in model.blocks:
        block.attention.mask = lambda *_, **__: reference[None, None]
    hidden = model(Batch(torch.tensor([ids]))).hidden[0]
    for block in model.blocks:
        del block.attention.mask
    return hidden


def join(rows: list[list]) -> list:
    return [value for row in rows for value in row]


def build_mask(time, length) -> torch.Tensor:
    """mask[i, j]: whether token i reads token j."""
    return torch.tensor([[j <= i or (i < length and j < length) for j in range(time)] for i in range(time)])


def test_the_mask_is_the_reference_mask_with_padding_and_segments():
    layer, device = FullAttention(Site(16), prefix=True), torch.device("cpu")
    prompt = torch.tensor([[True] * 3 + [False] * 3])
    assert torch.equal(layer.mask(6, 0, device, prompt=prompt)[0, 0], build_mask(6, 3))
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.bool), prompt], 1)
    real = torch.tensor([[False] * 2 + [True] * 6])
    assert torch.equal(layer.mask(8, 0, device, real, prompt=padded)[0, 0, 2:, 2:], build_mask(6, 3))
    assert not layer.mask(8, 0, device, real, prompt=padded)[0, 0, 2:, :2].any()
    segments = torch.tensor([[0] * 6 + [1] * 6])
    packed = layer.mask(12, 0, device, segments=segments, prompt=torch.cat([prompt, prompt], 1))[0, 0]
    expected = torch.block_diag(*[build_mask(6, 3).float()] * 2).bool()
    assert torch.equal(packed, expected)
    assert layer.mask(6, 0, device) is None and FullAttention(Site(16)).mask(6, 0, device, prompt=prompt) is None
    with pytest.raises(ValueError, match="in one pass"):
        layer.mask(3, 3, device, prompt=prompt[:, :3])
    with pytest.raises(ValueError, match=r"model.causal=true"):
        FullAttention(Site(16, causal=False), prefix=True)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_packed_and_padded_rows_are_read_as_each_alone(case):
    model = build(**CASES[case])
    rows, lengths = [[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8, 9, 7], [1, 2]], [4, 3, 1]
    expected = torch.cat([alone(model, ids, length) for ids, length in zip(rows, lengths, strict=True)])
    prompts = [[i < length for i in range(len(ids))] for ids, length in zip(rows, lengths, strict=True)]
    segments = torch.tensor([[i for i, ids in enumerate(rows) for _ in ids]])
    packed = Batch(torch.tensor([join(rows)]), segments=segments, prefix=torch.tensor([join(prompts)]))
    torch.testing.assert_close(model(packed).hidden[0], expected, atol=1e-5, rtol=1e-5)
    for left in (False, True):
        real = torch.tensor([[i >= 8 - len(ids) if left else i < len(ids) for i in range(8)] for ids in rows])
        tokens, prefix = torch.zeros(3, 8, dtype=torch.long), torch.zeros(3, 8, dtype=torch.bool)
        tokens[real], prefix[real] = packed.tokens[0], packed.prefix[0]
        caches = model.new_caches(8) if left else None  # positions count from the first real token of a cached row
        hidden = model(Batch(tokens, real=real, prefix=prefix), caches).hidden
        if not left or case in ("full", "gqa"):
            torch.testing.assert_close(hidden[real], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_generated_text_is_that_of_reading_all_anew(beams):
    model, prompts = build(), [[3], [5, 1, 7, 2, 9], [8, 9, 4]]
    written = continuations(model, prompts, 8, 39, beams=beams)
    assert written == [continuations(model, [prompt], 8, 39, beams=beams)[0] for prompt in prompts]
    if beams == 1:
        for prompt, tail in zip(prompts, written, strict=True):
            ids = [*prompt]
            for _ in tail:
                ids.append(int(model.head(alone(model, ids, len(prompt))[-1]).argmax()))
            assert ids[len(prompt) :] == tail
    causal = build(attention=FullAttention)
    assert written != continuations(causal, prompts, 8, 39, beams=beams)


@torch.no_grad()
def test_likelihoods_are_of_texts_after_a_prompt_that_is_read_in_both_directions():
    model, context = build(), [5, 1, 7, 2, 9, 3, 3, 8]
    texts = [[4, 4], [4, 6, 1], [2]]
    scores = log_likelihoods(model, [[(context, text) for text in texts]], 64, "").log_probs
    for text, score in zip(texts, scores, strict=True):
        hidden = alone(model, [*context, *text[:-1]], len(context))
        rows = model.head(hidden[len(context) - 1 :]).log_softmax(-1)
        assert score == pytest.approx(float(rows.gather(1, torch.tensor(text)[:, None]).sum()), abs=1e-5)


def test_prompts_are_what_is_in_front_of_the_first_target_of_a_segment():
    weights = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1.0, 0]])
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, -1]])
    real = segments >= 0
    tokens = torch.zeros_like(segments)
    prompts = prompt_tokens(Batch(tokens, real=real, weights=weights, segments=segments))[0].int().tolist()
    assert prompts == [1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
    assert prompt_tokens(Batch(tokens, real=real, weights=weights))[0].int().tolist() == [1, 1, *[0] * 10]
    assert next_token_inputs(Batch(tokens, weights=weights)).prefix is None
    assert next_token_inputs(Batch(tokens), prefix=True).prefix is None


def test_the_loss_of_packed_rows_is_the_sum_of_those_of_each_sample():
    from kleiber.data.instruct import InstructCorpus
    from kleiber.types.contracts import Samples

    model, objective = build(), SFT(InstructCorpus("toy", "", "", Bytes(), Samples(), {}, num_answers=2))
    rows, lengths = [[3, 1, 4, 1, 5], [2, 6, 5, 3, 5, 8]], [3, 2]
    marks = [[float(i >= length) for i in range(len(ids))] for ids, length in zip(rows, lengths, strict=True)]
    single = [
        objective(model, Batch(torch.tensor([ids]), weights=torch.tensor([mark])))
        for ids, mark in zip(rows, marks, strict=True)
    ]
    segments = torch.tensor([[0] * 5 + [1] * 6])
    packed = Batch(torch.tensor([join(rows)]), weights=torch.tensor([join(marks)]), segments=segments)
    torch.testing.assert_close(objective(model, packed).total, sum(loss.total for loss in single))
    causal = build(attention=FullAttention)
    assert not torch.allclose(objective(causal, packed).total, objective(model, packed).total)


def test_no_hugging_face_model_can_say_it():
    with pytest.raises(ValueError, match=r"model.attention.prefix=True has no Hugging Face twin"):
        to_hf(build())
