"""Beam search against a slow one that reads everything anew, greedy decoding and transformers."""

import pytest
import torch
from models.test_generation import CASES, build

from kleiber.models.beam_search import beam_search
from kleiber.models.generation import continuations, generate
from kleiber.types.batch import Batch

EOS = 7


def slow_search(model, prompt, new, beams, penalty, stop=None):
    """Beam search of one prompt, which reads each continuation anew."""
    running, finished = [(0.0, [])], []
    for _ in range(new):
        candidates = []
        for score, ids in running:
            logits = model.head(model(Batch(torch.tensor([prompt + ids]))).hidden[0, -1])
            for token, log_prob in enumerate(logits.log_softmax(-1).tolist()):
                candidates.append((score + log_prob, [*ids, token]))
        candidates.sort(key=lambda candidate: -candidate[0])
        running = []
        for rank, (score, ids) in enumerate(candidates[: 2 * beams]):
            if ids[-1] == EOS or (stop and stop(ids)):
                if rank < beams:
                    finished.append((score / len(ids) ** penalty, ids[:-1] if ids[-1] == EOS else ids))
            elif len(running) < beams:
                running.append((score, ids))
        if len(finished) >= beams:
            return max(finished)[1]
    return max(finished + [(score / len(ids) ** penalty, ids) for score, ids in running])[1]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("case", ["gpt", "moe", "learned", "latent", "hybrid"])
def test_prompts_of_unequal_length_are_searched_as_each_alone_without_a_cache(case):
    model, prompts = build(**CASES[case], context=16), [[3], [5, 1, 7, 2], [8, 9]]
    model.head.weight.data[EOS] *= 1.5  # ends some continuations early, and others not
    for beams, penalty in ((3, 0.0), (4, 1.0), (2, 2.0)) if case == "gpt" else ((3, 1.0),):
        expected = [slow_search(model, prompt, 6, beams, penalty) for prompt in prompts]
        together = continuations(model, prompts, 6, EOS, beams=beams, length_penalty=penalty, rows=3)
        assert together == expected
        assert continuations(model, prompts, 6, EOS, beams=beams, length_penalty=penalty) == expected


@torch.no_grad()
def test_a_continuation_ends_where_it_is_told_to():
    model = build()
    stop = lambda ids: 33 in ids  # noqa: E731
    expected = slow_search(model, [3, 4], 6, 3, 1.0, stop)
    assert continuations(model, [[3, 4]], 6, EOS, beams=3, stop=stop) == [expected]
    assert expected != slow_search(model, [3, 4], 6, 3, 1.0)


@pytest.mark.slow
@torch.no_grad()
def test_prompts_whose_search_ends_at_once_leave_the_others_as_they_are():
    model, prompts = build(), [[3, 4], [5, 1], [7, 2], [8, 9]]
    alone = [continuations(model, [prompt], 6, EOS, beams=2)[0] for prompt in prompts]
    firsts = {token for prompt in prompts[:2] for token in _first_tokens(model, prompt, 2)}
    stop = lambda ids: len(ids) == 1 and ids[0] in firsts  # noqa: E731
    expected = [slow_search(model, prompt, 6, 2, 1.0, stop) for prompt in prompts]
    assert continuations(model, prompts, 6, EOS, beams=2, stop=stop) == expected
    assert [len(ids) for ids in expected[:2]] == [1, 1] and len(alone[2]) > 1


def _first_tokens(model, prompt, count):
    return model.head(model(Batch(torch.tensor([prompt]))).hidden[0, -1]).topk(count).indices.tolist()


def test_one_beam_is_greedy():
    model, prompts = build(), torch.randint(40, (5, 3))
    greedy = generate(model, prompts, 6, temperature=0.0, eos=EOS)[:, 3:].tolist()
    cut = [row[: row.index(EOS)] if EOS in row else row for row in greedy]
    assert beam_search(model, prompts, None, 6, EOS, 1) == cut


@pytest.mark.slow
@torch.no_grad()
def test_more_beams_are_rarely_less_probable_than_fewer():
    model, prompts = build(), torch.randint(40, (40, 3))

    def score(row, ids):
        whole = torch.cat([prompts[row], torch.tensor([*ids, EOS][:8])])[None]
        logits = model.head(model(Batch(whole[:, :-1])).hidden)[0].log_softmax(-1)
        return float(logits[2:].gather(1, whole[0, 3:, None]).mean())

    greedy, searched = (beam_search(model, prompts, None, 8, EOS, beams) for beams in (1, 4))
    scores = [[score(row, ids) for row, ids in enumerate(each)] for each in (greedy, searched)]
    not_worse = sum(b >= a - 1e-5 for a, b in zip(*scores, strict=True))
    assert not_worse >= 38 and sum(b > a + 1e-5 for a, b in zip(*scores, strict=True)) >= 10


def test_a_vocabulary_smaller_than_the_beams_and_no_new_tokens():
    model = build()
    model.head.weight = torch.nn.Parameter(model.head.weight[:3])
    assert len(beam_search(model, torch.tensor([[1, 2]]), None, 4, 0, 8)[0]) <= 4
    assert beam_search(model, torch.tensor([[1, 2]]), None, 0, 0, 2) == [[]]


def test_a_prompt_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"10 tokens and 3 new ones must fit model.context=12"):
        beam_search(build(), torch.zeros(1, 10, dtype=torch.long), None, 3, EOS, 4)
    with pytest.raises(ValueError, match="not causal"):
        beam_search(build(causal=False), torch.zeros(1, 1, dtype=torch.long), None, 3, EOS, 4)


@pytest.mark.slow
def test_it_finds_what_transformers_finds():
    from transformers import LlamaConfig, LlamaForCausalLM

    from kleiber.models.hf_pretrained import quiet_transformers
    from kleiber.models.hf_twin import from_hf

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, eos_token_id=EOS, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    twin = LlamaForCausalLM(config).eval()
    model = from_hf(twin)
    for penalty in (0.0, 1.0, 2.0):
        with quiet_transformers():
            rows = twin.generate(
                torch.arange(20, 32).view(4, 3),
                max_new_tokens=10,
                num_beams=4,
                early_stopping=True,
                do_sample=False,
                length_penalty=penalty,
            )[:, 3:].tolist()
        expected = [row[: row.index(EOS)] if EOS in row else row for row in rows]
        prompts = torch.arange(20, 32).view(4, 3)
        assert beam_search(model, prompts, None, 10, EOS, 4, penalty) == expected
