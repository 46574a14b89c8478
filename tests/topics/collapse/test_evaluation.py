"""Degeneration of planted models: looping, uniform, and held-out text against itself."""

import json
from dataclasses import replace

import pytest
import torch

from kleiber.data.evaluation_sets import DataSet
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.retention.memory import GeneratedSamples
from kleiber.types.batch import Batch
from kleiber_topics.collapse.evaluation import Degeneration, next_token_entropy, passes
from kleiber_topics.collapse.texts import KINDS

SENTENCE = "the same again, "
TEXT = "the a cat dog sat ran on under mat tree slowly and then home, it was late. she said yes"
WORDS = TEXT.split()


def held_out(rows: int, time: int = 97, seed: int = 0) -> GeneratedSamples:
    """Samples of words in a random order."""
    generator = torch.Generator().manual_seed(seed)
    texts = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (time,), generator=generator)) for _ in range(rows)]
    return GeneratedSamples(torch.tensor([Bytes().encode(text)[:time] for text in texts]), Bytes().token_bytes)


def subject(model: Transformer, rows: int = 40, **options) -> Subject:
    samples = held_out(rows)
    return Subject(model, Bytes(), CLM(), CLM(), [DataSet("words", lambda: samples)], **options)


def new_model(**options) -> Transformer:
    torch.manual_seed(0)
    return Transformer(Bytes().vocab_size, **{"width": 32, "depth": 1, "context": 96} | options)


@pytest.fixture(scope="module")
def parrot() -> Transformer:
    """A model trained on one repeated sentence."""
    model = new_model()
    ids = torch.tensor(Bytes().encode(SENTENCE * 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    starts = torch.arange(16)
    for _ in range(60):
        rows = torch.stack([ids[start : start + 97] for start in starts.tolist()])
        rows[:, :8] = torch.randint(97, 123, (16, 8))  # whatever the prompt is
        loss = CLM()(model, Batch(rows))
        optimizer.zero_grad()
        (loss.total / loss.tokens).backward()
        optimizer.step()
    return model


@pytest.mark.slow
def test_a_model_that_learned_one_sentence_is_found_out(parrot):
    scores = Degeneration(samples=10, prompt_tokens=8).evaluate(subject(parrot)).scores["words"]
    value = {name: score.value for name, score in scores.items()}
    assert value["greedy/loop_rate"] == 1 and value["human/loop_rate"] == 0
    assert value["greedy/distinct_2"] < 0.3 * value["human/distinct_2"]
    assert value["greedy/seq_rep_4"] > 0.4 > value["human/seq_rep_4"]
    assert value["greedy/self_bleu_4"] > 0.8 > value["human/self_bleu_4"]
    assert value["greedy/longest_repeat"] > 2 * value["human/longest_repeat"]
    assert value["greedy/mauve"] < 0.4 < value["human/mauve"]
    assert value["greedy/unigram_kl"] > 1.0 > value["human/unigram_kl"]
    assert value["greedy/entropy"] < 0.5


@pytest.mark.slow
def test_every_metric_has_an_interval_and_the_number_of_samples():
    result = Degeneration(samples=6, prompt_tokens=8, length=40).evaluate(subject(new_model()))
    names = {name.split("/")[1] for name in result.scores["words"]}
    for kind in KINDS:
        for name in names:
            score = result.scores["words"].get(f"{kind}/{name}")
            if score is not None:
                assert score.lo is not None and score.lo <= score.value <= score.hi and 0 < score.n <= 6
    assert len(names) == 13 and "sampled/mauve" in result.scores["words"]
    assert json.loads(json.dumps(result.details)) == json.loads(json.dumps(result.details, sort_keys=True))


@pytest.mark.slow
def test_the_number_of_rows_per_pass_changes_nothing_and_the_seed_does(parrot, monkeypatch):
    assert passes(100, subject(parrot)) == [slice(0, 64), slice(64, 100)]
    monkeypatch.setattr("kleiber_topics.collapse.evaluation.ROWS", 1)
    evaluation = Degeneration(samples=4, prompt_tokens=8, length=16)
    first = evaluation.evaluate(subject(parrot, rows=40))
    for rows in (1, 3):
        again = evaluation.evaluate(replace(subject(parrot), rows=rows))
        assert again.details == first.details
        for name, score in first.scores["words"].items():
            assert again.scores["words"][name].value == pytest.approx(score.value, rel=1e-5), name
    other = Degeneration(samples=4, prompt_tokens=8, length=16, seed=1).evaluate(subject(parrot))
    assert other.details["samples"]["words"]["human"] != first.details["samples"]["words"]["human"]


def test_the_model_continues_the_prompts_of_the_human_texts(parrot):
    details = (
        Degeneration(samples=5, prompt_tokens=8, length=16, shown=3)
        .evaluate(subject(parrot))
        .details["samples"]["words"]
    )
    assert all(len(details[kind]) == 3 for kind in KINDS)
    prompts = [[sample["prompt"] for sample in details[kind]] for kind in KINDS]
    assert prompts[0] == prompts[1] == prompts[2] and all(len(prompt) == 8 for prompt in prompts[0])
    assert details["greedy"] != details["sampled"] != details["human"]


@pytest.mark.slow
def test_samples_are_as_many_as_the_data_the_tokens_and_the_key_allow():
    def count(evaluation: Degeneration, **options) -> int:
        return evaluation.evaluate(subject(new_model(), **options)).scores["words"]["human/self_bleu_4"].n

    assert count(Degeneration(samples=5, prompt_tokens=8, length=12)) == 5
    assert count(Degeneration(samples=100, prompt_tokens=8, length=12), rows=9) == 4, (
        "the other half is what they are compared with"
    )
    assert count(Degeneration(samples=100, prompt_tokens=8, length=12), tokens=12 * 3) == 3


def test_the_length_of_prompts_and_texts(parrot):
    evaluation = Degeneration(samples=4, prompt_tokens=10, length=20)
    pieces = evaluation.evaluate(subject(parrot)).details["samples"]["words"]["human"][0]["pieces"]
    assert len("".join(text for text, _ in pieces)) == 20


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"prompt_tokens=32 and length=90 must fit into the 97"):
        Degeneration(length=90).evaluate(subject(new_model()))
    with pytest.raises(ValueError, match=r"prompt_tokens=90"):
        Degeneration(prompt_tokens=90).evaluate(subject(new_model()))
    with pytest.raises(ValueError, match=r"words has 3: lower evals"):
        Degeneration().evaluate(subject(new_model(), rows=3))


@pytest.mark.slow
def test_samples_that_are_shorter_are_left_out():
    samples = held_out(12)
    full = samples.gather

    class Padded(GeneratedSamples):
        def gather(self, index, epoch=0):
            batch = full(index, epoch)
            real = torch.ones(batch.tokens.shape, dtype=torch.bool)
            real[batch.samples % 2 == 1, 30:] = False
            return replace(batch, real=real)

    data = DataSet("words", lambda: Padded(samples.tokens, Bytes().token_bytes))
    results = Degeneration(prompt_tokens=8, length=40).evaluate(Subject(new_model(), Bytes(), CLM(), CLM(), [data]))
    assert results.scores["words"]["human/self_bleu_4"].n == 3
    short = Degeneration(prompt_tokens=8, length=20).evaluate(Subject(new_model(), Bytes(), CLM(), CLM(), [data]))
    assert short.scores["words"]["human/self_bleu_4"].n == 6


def test_entropy_is_that_of_the_distributions_of_the_text():
    model, tokens = new_model(context=12), torch.randint(256, (3, 10))
    probabilities = model.head(model(Batch(tokens)).hidden).softmax(-1).double()
    expected = -(probabilities * probabilities.log()).sum(-1)[:, 3:9].mean(1)
    torch.testing.assert_close(next_token_entropy(model, tokens, 4).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_text_of_spaces_alone_has_no_ngrams_and_still_its_other_scores():
    blank = new_model(tied=False)
    with torch.no_grad():
        blank.embedding.weight.fill_(1.0)
        hidden = blank(Batch(torch.zeros(1, 4, dtype=torch.long))).hidden[0, 0]
        blank.head.weight.zero_()
        blank.head.weight[32] = 10 * hidden
    scores = Degeneration(samples=4, prompt_tokens=8, length=40).evaluate(subject(blank)).scores["words"]
    assert "greedy/distinct_1" not in scores and "greedy/rep_2" not in scores and "greedy/unigram_kl" not in scores
    assert scores["greedy/loop_rate"].value == 1 and scores["greedy/self_bleu_4"].value == 0
    assert scores["greedy/mauve"].value < scores["human/mauve"].value
