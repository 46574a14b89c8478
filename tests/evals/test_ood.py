"""Gaps to the in-domain data: those of planted byte frequencies."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
from evals.planted import planted

from kleiber.data.evaluation_sets import DataSet
from kleiber.data.token_files import TokenFile, ValidationWindows
from kleiber.data.tokenizers import Bytes
from kleiber.evals import OOD, Perplexity
from kleiber.evals.evaluation import Subject
from kleiber.objectives.clm import CLM


def letters(share: float, name: str, own: bool = False) -> DataSet:
    """A text of 2,000 letters, of which this share is b and the others are a."""
    random = np.random.default_rng(hash(share) % 1000)
    ids = np.where(random.random(2001) < share, ord("b"), ord("a")).astype(np.uint16)
    file = TokenFile(ids, 2000, 2000, hashlib.sha256(ids.tobytes()).hexdigest())
    return DataSet(name, lambda: ValidationWindows(file, 16, Bytes()), of_run=own)


def bits(data: DataSet) -> float:
    """p(a) = 1/2 and p(b) = 1/4."""
    targets = data.samples().file.ids[1:]
    return 1 + float((targets == ord("b")).mean())


def subject(own: list[DataSet], data: list[DataSet], tokens: int | None = None) -> Subject:
    return Subject(planted(a=0.5, b=0.25), Bytes(), CLM(), CLM(), data, None, own, tokens)


def test_the_gap_is_the_difference_in_bits_per_byte():
    own, other = letters(0.1, "own", own=True), letters(0.9, "other")
    results = OOD().evaluate(subject([own], [other]))
    scores = results.scores
    assert scores["own"]["bits_per_byte"].value == pytest.approx(bits(own), abs=1e-3) and "gap" not in scores["own"]
    assert scores["other"]["bits_per_byte"].value == pytest.approx(bits(other), abs=1e-3)
    gap = scores["other"]["gap"]
    assert gap.value == pytest.approx(bits(other) - bits(own), abs=1e-3) and gap.n == 2000
    half = 1.645 * math.sqrt(2 * 0.09 / 2000)
    assert gap.hi - gap.lo == pytest.approx(2 * half, rel=0.25) and gap.lo < gap.value < gap.hi
    assert results.details == {"in_domain": ["own"]}


@pytest.mark.parametrize("evaluation", [OOD(), Perplexity(), Perplexity(stride=5)])
def test_resamples_have_the_bytes_of_their_tokens(evaluation):
    """Where every byte costs one bit, the bits per byte do not vary, though the bytes per token do."""
    tokenizer = Bytes()
    tokenizer.token_bytes = tokenizer.token_bytes + (np.arange(len(tokenizer.token_bytes)) == ord("b"))
    ids = letters(0.4, "other").samples().file.ids[:402]
    size = int(tokenizer.token_bytes[ids[1:]].sum())
    file = TokenFile(ids, size, size, "")
    data = [DataSet("other", lambda: ValidationWindows(file, 16, tokenizer))]
    within = letters(0.1, "own", own=True)
    read = replace(subject([within], data), tokenizer=tokenizer)
    score = evaluation.evaluate(read).scores["other"]["bits_per_byte"]
    assert (score.value, score.lo, score.hi) == pytest.approx((1, 1, 1), abs=1e-3)
    lossy = replace(file, num_bytes=2 * size)
    read = replace(read, data=[DataSet("other", lambda: ValidationWindows(lossy, 16, tokenizer))])
    score = evaluation.evaluate(read).scores["other"]["bits_per_byte"]
    assert (score.value, score.lo, score.hi) == pytest.approx((0.5, 0.5, 0.5), abs=1e-3)


def test_the_reference_is_the_mean_of_the_domains_of_the_run():
    own = [letters(share, f"own{share}", own=True) for share in (0.1, 0.4)]
    other = letters(0.9, "other")
    gap = OOD().evaluate(subject(own, [other])).scores["other"]["gap"]
    assert gap.value == pytest.approx(bits(other) - (bits(own[0]) + bits(own[1])) / 2, abs=1e-3)


def test_a_named_data_set_can_be_the_reference():
    sets = [letters(0.2, "a"), letters(0.6, "b")]
    scores = OOD(in_domain="b").evaluate(subject([], sets)).scores
    assert scores["a"]["gap"].value == pytest.approx(bits(sets[0]) - bits(sets[1]), abs=1e-3)
    assert "gap" not in scores["b"]


def test_the_number_of_tokens_is_that_of_the_command():
    scores = OOD().evaluate(subject([letters(0.1, "own", own=True)], [letters(0.9, "other")], tokens=160)).scores
    assert scores["other"]["gap"].n == 160 and scores["own"]["bits_per_byte"].n == 160


def test_what_has_no_gap_is_refused():
    own, other = letters(0.1, "own", own=True), letters(0.9, "other")
    with pytest.raises(ValueError, match=r"evals\.ood\.in_domain"):
        OOD().evaluate(subject([], [other]))
    with pytest.raises(ValueError, match=r"evals\.ood\.in_domain=x must be one of the data sets other"):
        OOD(in_domain="x").evaluate(subject([], [other]))
    with pytest.raises(ValueError, match="needs data beside own"):
        OOD().evaluate(subject([own], [own]))


def test_the_figure_has_a_point_for_each_gap():
    results = OOD().evaluate(subject([letters(0.1, "own", own=True)], [letters(0.9, "other")]))
    scores = {data: {name: score.to_json() for name, score in of.items()} for data, of in results.scores.items()}
    assert set(OOD().figures({"scores": scores, "details": {}}, None)) == {"gap"}
