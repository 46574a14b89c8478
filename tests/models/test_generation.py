"""Sampling with and without a cache, contexts that are full, and the sampling options."""

from functools import partial

import numpy as np
import pytest
import torch

from kleiber.models.generation import continuations, generate, left_padded, sample
from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.latent import LatentAttention
from kleiber.nn.mlp import ReLU2
from kleiber.nn.moe import interleaved_moe
from kleiber.nn.patterns import NoMixing, layer_pattern
from kleiber.nn.routers.hash import Random
from kleiber.nn.window import WindowAttention
from kleiber.types.batch import Batch

CASES = {
    "gpt": {},
    "moe": {"mlp": interleaved_moe},
    "random routing": {"mlp": partial(interleaved_moe, router=Random)},
    "gqa": {"num_heads": 2, "num_kv_heads": 1, "qk_norm": False},
    "window": {"attention": partial(WindowAttention, window=3)},
    "none": {"attention": NoMixing},
    "alibi": {"positions": "alibi", "attention": partial(layer_pattern, window=partial(WindowAttention, window=3))},
    "learned": {
        "positions": "learned",
        "num_heads": 2,
        "num_kv_heads": 1,
        "attention": partial(FullAttention, soft_cap=2.0, value_residual=True),
    },
    "latent": {"attention": LatentAttention},
    "hybrid": {"attention": partial(layer_pattern, pattern=["delta", "full"])},
    "sandwich": {"norm": "sandwich", "attention": partial(FullAttention, positions="none"), "mlp": ReLU2},
}


def build(**options) -> Transformer:
    """A model whose likeliest token hangs on all it reads: a fresh tied one would only repeat the last."""
    torch.manual_seed(0)
    model = Transformer(40, **{"width": 32, "context": 12, "tied": False} | options)
    torch.nn.init.normal_(model.embedding.weight, std=0.1)
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize("length", [0, 12])
@pytest.mark.parametrize("case", CASES)
def test_cached_logits_equal_uncached_ones(case, length):
    model, ids = build(**CASES[case]), torch.randint(40, (2, 12))
    caches = model.new_caches(length)
    parts = [model(Batch(part), caches).hidden for part in ids.split([4, 1, 1, 2, 4], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(Batch(ids)).hidden, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_greedy_decoding_equals_reading_everything_anew(case):
    model, prompt = build(**CASES[case]), torch.randint(40, (3, 4))
    ids = prompt
    for _ in range(8):
        ids = torch.cat([ids, model.head(model(Batch(ids)).hidden[:, -1:]).argmax(-1)], 1)
    assert torch.equal(generate(model, prompt, 8, temperature=0.0), ids)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_prompts_of_unequal_length_are_decoded_as_each_alone(case):
    model, prompts = build(**CASES[case]), [[3], [5, 1, 7, 2], [8, 9]]
    ids, real = left_padded(prompts)
    logits = [model.head(model(Batch(torch.tensor([p]))).hidden[:, -1]) for p in prompts]
    together = model.head(model(Batch(ids, real=real), model.new_caches(12)).hidden[:, -1])
    torch.testing.assert_close(together, torch.cat(logits), atol=1e-5, rtol=1e-5)
    generated = generate(model, ids, 18, temperature=0.0, real=real)  # beyond the context, at another step in each row
    for row, prompt in zip(generated, prompts, strict=True):
        alone = generate(model, torch.tensor([prompt]), 18, temperature=0.0)
        assert row[4 - len(prompt) :].tolist() == alone[0].tolist()


def test_a_step_writes_one_position_and_moves_none():
    model = build()
    caches = model.new_caches(12)
    with torch.no_grad():
        model(Batch(torch.randint(40, (2, 5))), caches)
        keys = caches.layers[0].keys
        place, held = keys.data_ptr(), keys[:, :, :5].clone()
        model(Batch(torch.randint(40, (2, 1))), caches)
    keys = caches.layers[0].keys
    assert keys.data_ptr() == place and keys.shape[2] == 12 and len(caches) == 6
    assert torch.equal(keys[:, :, :5], held)


def test_a_row_that_has_ended_stays_ended_and_all_stop_with_the_last():
    model, prompt = build(), torch.randint(40, (3, 4))
    free = generate(model, prompt, 8, temperature=0.0)
    eos = int(free[0, 5])
    generated = generate(model, prompt, 8, temperature=0.0, eos=eos)
    for row, whole in zip(generated[:, 4:].tolist(), free[:, 4:].tolist(), strict=True):
        end = whole.index(eos) + 1 if eos in whole else len(whole)
        assert row[:end] == whole[:end][: len(row)] and set(row[end:]) <= {eos}
    assert generate(model, prompt[:1], 8, temperature=0.0, eos=eos).shape[1] == 4 + free[0, 4:].tolist().index(eos) + 1


def test_what_is_made_can_enter_a_gradient():
    model = build()
    ids = generate(model, torch.zeros(1, 1, dtype=torch.long), 3)
    model(Batch(ids)).hidden.sum().backward()


def test_beyond_the_context_it_goes_on_from_the_last_half():
    model, prompt = build(), torch.randint(40, (1, 20))
    ids = generate(model, prompt, 30, temperature=0.0)
    assert ids.shape == (1, 50) and torch.equal(ids[:, :20], prompt)
    # The first new token reads the last 12; the second starts over from the last 6, which then fill up to 12 again.
    starts = [8] + [15] * 7 + [22] * 7
    wanted = [model.head(model(Batch(ids[:, a:n])).hidden[:, -1]).argmax(-1) for n, a in enumerate(starts, start=20)]
    assert ids[0, 20:35].tolist() == torch.cat(wanted).tolist()


def test_a_prompt_beside_a_longer_one_than_the_context_keeps_its_beginning():
    model, prompts = build(), [[3, 1, 4], [i % 40 for i in range(1, 90, 6)]]
    ids, real = left_padded(prompts)
    alone = [generate(model, torch.tensor([prompt]), 12, temperature=0.0)[0, len(prompt) :] for prompt in prompts]
    assert torch.equal(generate(model, ids, 12, temperature=0.0, real=real)[:, ids.shape[1] :], torch.stack(alone))


def test_the_generator_decides_and_the_mode_is_restored():
    model, prompt = build().train(), torch.zeros(2, 1, dtype=torch.long)
    draws = [generate(model, prompt, 10, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2]) and model.training


def test_top_k_and_top_p_cut_what_they_say():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    assert set(sample(logits, top_k=2).tolist()) == {0, 1}
    assert set(sample(logits, top_p=0.4).tolist()) == {0}
    assert set(sample(logits, top_p=0.6).tolist()) == {0, 1}
    assert set(sample(logits).tolist()) == {0, 1, 2, 3}
    share = (sample(logits, temperature=0.5) == 0).float().mean()
    assert float(share) == pytest.approx(0.25 / (0.25 + 0.09 + 0.0225 + 0.0025), abs=0.04)


def test_senseless_requests_are_refused():
    model, prompt = build(), torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="not causal"):
        generate(build(causal=False), prompt, 1)
    for options in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            generate(model, prompt, 1, **options)
    with pytest.raises(ValueError, match="empty"):
        generate(model, prompt[:, :0], 1)


def test_draws_decide_each_row_alone_and_follow_the_distribution():
    model, prompts = build(), torch.randint(40, (6, 3))
    draws = torch.rand(6, 8)
    rows = generate(model, prompts, 8, draws=draws)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        assert torch.equal(generate(model, prompts[part], 8, draws=draws[part]), rows[part])
    assert not torch.equal(generate(model, prompts, 8, draws=1 - draws), rows)

    logits = torch.tensor([[0.0, -torch.inf, 1.0, 2.0]])
    grid = (torch.arange(10_000) + 0.5) / 10_000
    tokens = sample(logits.expand(10_000, 4), draws=grid)
    torch.testing.assert_close(tokens.bincount(minlength=4) / 10_000, logits.softmax(-1)[0], atol=2e-4, rtol=0)
    ends = sample(torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, 3), draws=torch.tensor([0.0, 1 - 2**-24]))
    assert ends.tolist() == [1, 1], "a token of probability 0 is never drawn"


@pytest.mark.slow
@pytest.mark.parametrize("sampled", [False, True])
def test_continuations_are_those_of_each_prompt_alone_up_to_the_end_of_text(sampled):
    model, prompts = build(), [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    draws = np.random.default_rng(0).random((3, 6)) if sampled else None
    whole = [
        generate(
            model, torch.tensor([prompt]), 6, temperature=float(sampled),
            draws=None if draws is None else torch.from_numpy(draws[i : i + 1]),
        )[0, len(prompt) :].tolist()
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip
    eos = whole[1][2]  # a token that one of them gets to
    expected = [row[: row.index(eos)] if eos in row else row for row in whole]
    assert continuations(model, prompts, 6, eos, float(sampled), draws=draws) == expected
    assert len(expected[1]) <= 2
    for rows in (1, 2):
        assert continuations(model, prompts, 6, eos, float(sampled), draws=draws, rows=rows) == expected


def test_a_row_ends_where_it_is_told_to():
    model, prompts = build(), [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    eos = 39  # which none of them gets to
    whole = continuations(model, prompts, 6, eos)
    assert all(len(row) == 6 for row in whole)
    ends = {tuple(row[:length]) for row, length in zip(whole, (2, 6, 4), strict=True)}
    stopped = continuations(model, prompts, 6, eos, stop=lambda ids: tuple(ids) in ends)
    assert stopped == [row[:length] for row, length in zip(whole, (2, 6, 4), strict=True)]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("DefaultCPUAllocator")])
def test_it_goes_on_with_half_the_prompts_when_memory_runs_out(error, caplog):
    model, prompts = build(), [[1, 2, 3], [4], [5, 6, 7, 8, 9], [3, 3], [2]]
    expected, sizes = continuations(model, prompts, 6, 0), []

    def hungry(module, inputs):
        sizes.append(len(inputs[0].tokens))
        if sizes[-1] > 2:
            raise error

    hook = model.register_forward_pre_hook(hungry)
    with caplog.at_level("WARNING"):
        assert continuations(model, prompts, 6, 0) == expected
    assert max(sizes[1:]) == 2 and "2 at a time" in caplog.text
    hook.remove()
    model.register_forward_pre_hook(lambda module, inputs: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        continuations(model, prompts, 6, 0)


def test_beams_with_sampling_are_refused():
    for options in ({"beams": 2, "temperature": 1.0}, {"beams": 0}):
        with pytest.raises(ValueError, match=f"beams={options['beams']}"):
            continuations(build(), [[1]], 2, 0, **options)
