"""Addition problems: the answer is the sum, steps are its columns, and no held-out problem is trained on."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kleiber.data.instruct import Conversations, PackedConversations
from kleiber_topics.reasoning.arithmetic import Arithmetic, answer_text, draw_terms, is_held_out


@pytest.mark.parametrize(
    ("terms", "steps"),
    [
        ((347, 285), "7+5=12 4+8+1=13 3+2+1=6 632"), ((9, 9), "9+9=18 18"), ((99, 1), "9+1=10 9+1=10 100"),
        ((0, 0), "0+0=0 0"), ((99, 99, 99), "9+9+9=27 9+9+9+2=29 297"),
    ],
)  # fmt: skip
def test_steps_are_the_columns_with_their_carries(terms, steps):
    assert answer_text(terms, True) == steps and answer_text(terms, False) == steps.split()[-1]


def problems(rows: Conversations) -> list[tuple[tuple[int, ...], str]]:
    """The terms of each problem, and its answer."""
    texts = []
    for i in range(len(rows)):
        question, answer = (bytes(ids).decode() for ids in (rows.question(i)[0][1:], rows.question(i)[1]))
        texts.append((tuple(map(int, question.removesuffix("=").split("+"))), answer))
    return texts


def read(**options):
    corpus = Arithmetic(problems=400, **options).prepare(128)
    assert isinstance(corpus.train, PackedConversations)
    return problems(corpus.train.samples), {name: problems(rows) for name, rows in corpus.validation.items()}


@pytest.mark.parametrize("steps", [False, True])
def test_answers_are_right_and_held_out_problems_are_new(steps):
    train, held_out = read(digits=[1, 2, 3], steps=steps, held_out=50)
    for terms, answer in [*train, *(problem for part in held_out.values() for problem in part)]:
        assert answer == answer_text(terms, steps) and int(re.findall(r"\d+", answer)[-1]) == sum(terms)
    trained = {tuple(sorted(terms)) for terms, _ in train}
    for name, part in held_out.items():
        assert not {tuple(sorted(terms)) for terms, _ in part} & trained
        assert len({terms for terms, _ in part}) == len(part) <= 50
        assert {len(str(number)) for terms, _ in part for number in terms} == {int(name.removeprefix("digits"))}
    assert [*held_out] == ["digits1", "digits2", "digits3"] and len(held_out["digits3"]) == 50


def test_steps_change_answers_alone():
    (plain, held_out), (steps, with_steps) = read(digits=[2, 3]), read(digits=[2, 3], steps=True)
    assert [terms for terms, _ in plain] == [terms for terms, _ in steps]
    for name in held_out:
        assert sorted(terms for terms, _ in held_out[name]) == sorted(terms for terms, _ in with_steps[name])


@pytest.mark.slow
def test_the_keys_have_their_effect():
    train, _ = read(digits=[4, 2], terms=3, held_out=5)
    sizes = [len(str(terms[0])) for terms, _ in train]
    assert {len(terms) for terms, _ in train} == {3} and sizes.count(2) == sizes.count(4) == 200
    assert [terms for terms, _ in read(seed=1)[0]] != [terms for terms, _ in read()[0]]
    corpora = [Arithmetic(problems=400, max_bytes=limit).prepare(64) for limit in (None, 500)]
    assert corpora[1].num_bytes <= 500 < corpora[0].num_bytes and corpora[0].hash != corpora[1].hash


def test_problems_that_may_exceed_the_context_are_left_out(caplog):
    corpus = Arithmetic(digits=[2, 6], steps=True, problems=10).prepare(64)
    assert [*corpus.validation] == ["digits2"] and "data.digits=[6] left out" in caplog.text
    longest = Arithmetic(digits=[2], steps=True).longest(2)
    assert longest == len("99+99=9+9=18 9+9+1=19 198") + 2
    assert len(Arithmetic(digits=[2], steps=True, problems=300).prepare(longest - 1).train.samples) == 300
    with pytest.raises(ValueError, match=rf"data\.digits=\[2\].*model\.context={longest - 1} or more"):
        Arithmetic(digits=[2], steps=True, problems=10).prepare(longest - 2)


def test_a_tenth_is_held_out_in_whatever_order():
    terms = draw_terms(np.random.default_rng(0), 4000, 2, 3)
    assert terms.min() >= 100 and terms.max() <= 999
    assert is_held_out(terms).mean() == pytest.approx(0.1, abs=0.02)
    assert np.array_equal(is_held_out(terms), is_held_out(terms[:, ::-1]))
