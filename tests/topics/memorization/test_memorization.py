"""A parrot continues its training text and betrays its members; an untrained model does neither."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evals.subjects import subject_of
from topics.memorization.parrot import CONTEXT, Parrot, training_ids, with_canaries

from kleiber.data.batches import stream
from kleiber.data.corpus import TextCorpus
from kleiber.data.mixture import SpreadSamples
from kleiber.data.order import Reading
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.evals.measure import explain_refusal
from kleiber.launch.main import main
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber_topics.memorization.memorization import Memorization, choose_rows, paired_samples


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TextCorpus:
    return with_canaries(tmp_path_factory.mktemp("canaries"), repetitions=[0, 9], count=2, digits=1)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def untrained() -> Transformer:
    torch.manual_seed(0)
    return Transformer(Bytes.vocab_size, depth=1, width=32, num_heads=2, context=CONTEXT)


def parrot(corpus: TextCorpus) -> Subject:
    """The parrot, without canaries, whose candidates need a cache."""
    return replace(subject_of(Parrot(training_ids(corpus)), corpus, CLM()), corpus=None)


def test_a_parrot_continues_its_training_text_and_betrays_its_members(corpus: TextCorpus) -> None:
    results = Memorization(samples=24, prefix=20, continuation=20).evaluate(parrot(corpus))
    scores = results.scores["words"]
    assert scores["extracted/train"].value > 0.8 and scores["extracted/held_out"].value < 0.2
    for attack in ("loss", "min_k", "zlib"):
        assert scores[f"membership_auc/{attack}"].value > 0.9
    assert scores["membership_tpr/loss"].value > 0.5
    blind = scores["membership_auc/blind"]
    assert blind.lo < 0.5 < blind.hi
    assert len(results.details["samples"]["words"]["train"]) == scores["extracted/train"].n == 24


def test_an_untrained_model_remembers_nothing(corpus: TextCorpus) -> None:
    results = Memorization(samples=12, candidates=9).evaluate(subject_of(untrained(), corpus, CLM()))
    scores = results.scores["words"]
    assert scores["extracted/train"].value == scores["extracted/held_out"].value == 0
    assert scores["membership_auc/loss"].lo < 0.5 < scores["membership_auc/loss"].hi
    canaries = results.scores["canaries"]
    assert set(canaries) == {"exposure/0", "exposure/9", "extracted/0", "extracted/9"}
    assert canaries["exposure/9"].n == 2 and results.details["canaries"][0]["exact"]


@pytest.mark.slow
def test_what_the_keys_change(corpus: TextCorpus, tmp_path: Path) -> None:
    subject = parrot(corpus)
    short = Memorization(samples=6, prefix=4, continuation=2).evaluate(subject).scores["words"]
    assert short["extracted/train"].n == 6 and short["extracted/train"].value < 0.5  # 4 tokens are no place of a parrot
    longer = Memorization(samples=6, prefix=20, continuation=2).evaluate(subject).scores["words"]
    assert longer["extracted/train"].value == 1
    few, whole = (Memorization(samples=6, min_k=k).evaluate(subject).scores["words"] for k in (0.05, 1.0))
    assert whole["membership_auc/min_k"].value == 1 >= few["membership_auc/min_k"].value
    limited = Memorization(samples=30).evaluate(replace(subject, tokens=5 * CONTEXT)).scores["words"]
    assert limited["extracted/train"].n == 5
    many = with_canaries(tmp_path, repetitions=[0], count=1, digits=5)  # more candidates than are listed
    ranked = Memorization(samples=6, candidates=3).evaluate(subject_of(untrained(), many, CLM()))
    assert not ranked.details["canaries"][0]["exact"]
    with pytest.raises(ValueError, match="must be <= 65 together"):
        Memorization(samples=6, prefix=40, continuation=40).evaluate(subject)


def test_samples_are_as_long_as_the_context_and_have_no_canaries(corpus: TextCorpus) -> None:
    subject = subject_of(untrained(), corpus, CLM())
    (pair,) = paired_samples(subject)
    texts = [canary.text for canary in corpus.canaries]
    for samples in (pair.train, pair.held_out):
        rows = choose_rows(samples, 40, subject, texts)
        batch = samples.gather(rows)
        assert batch.real is None and len(set(rows.tolist())) == len(rows)
        decoded = [subject.tokenizer.decode(row) for row in batch.tokens.tolist()]
        assert not any(text[i : i + 16] in row for row in decoded for text in texts for i in range(len(text) - 16))


def test_members_are_samples_that_the_run_has_read(corpus: TextCorpus, caplog: pytest.LogCaptureFixture) -> None:
    steps = len(corpus.train) // 8  # of four rows: half of an epoch
    subject = replace(parrot(corpus), reading=Reading(seed=5, rows=4, steps=steps))
    read = {int(n) for batch in itertools.islice(stream(corpus.train, 5, 0, 4), steps) for n in batch.samples}
    (pair,) = paired_samples(subject)
    members = pair.train.gather(choose_rows(pair.train, 1000, subject, []))
    assert len(members) > 0.9 * len(read) and {int(n) for n in members.samples} <= read and not caplog.text
    paired_samples(replace(subject, reading=None))
    assert "is not known" in caplog.text


def test_what_cannot_be_compared_is_refused(corpus: TextCorpus) -> None:
    evaluation, subject = Memorization(samples=4), parrot(corpus)
    with pytest.raises(ValueError, match="needs the training text"):
        evaluation.evaluate(replace(subject, train=None))
    with pytest.raises(ValueError, match="is not divided into words, words"):
        evaluation.evaluate(replace(subject, validation=[*subject.validation, *subject.validation]))
    assert not evaluation.accepts(replace(subject.data[0], of_run=False))
    assert "the training and validation text of a run" in explain_refusal("memorization", evaluation, None)
    spread = SpreadSamples(corpus.train, 1)
    with pytest.raises(ValueError, match="at least 2 samples"):
        evaluation.evaluate(replace(subject, train=spread))


def test_a_warning_says_that_the_samples_are_of_two_distributions(
    corpus: TextCorpus, caplog: pytest.LogCaptureFixture
) -> None:
    class Letters(SpreadSamples):
        """Samples of one letter, which compress well."""

        def gather(self, index: np.ndarray, epoch: int = 0):
            batch = super().gather(index, epoch)
            return replace(batch, tokens=torch.full_like(batch.tokens, ord("a")))

    subject = replace(parrot(corpus), train=Letters(corpus.train, 20))
    with caplog.at_level("WARNING"):
        scores = Memorization(samples=20).evaluate(subject).scores["words"]
    assert scores["membership_auc/blind"].value == 1 and "are not of one distribution" in caplog.text


@pytest.mark.slow
@pytest.mark.long
def test_a_canary_repeated_a_hundred_times_is_extracted_and_one_repeated_once_is_not(tmp_path: Path) -> None:
    overrides = [
        "data=canaries", "data.data.max_bytes=600K", "data.count=5", "data.digits=3", "model.width=64",
        "model.context=128", "batch.tokens=1024", "budget.tokens=700K", "evals=[memorization]",
        "evals.memorization.samples=64", "trainer.threads=1", "logger=csv", "eval.tokens=2048", f"root={tmp_path}",
    ]  # fmt: skip
    assert main(overrides) == 0
    (path,) = tmp_path.glob("runs/*/evals/memorization.json")
    scores = json.loads(path.read_text())["scores"]["canaries"]
    assert scores["extracted/100"]["value"] == 1 and scores["exposure/100"]["value"] > 9.9
    assert scores["extracted/1"]["value"] == 0 and scores["exposure/1"]["value"] < 5
    assert scores["extracted/0"]["value"] == 0 and scores["exposure/0"]["value"] < 3
