"""The likeliest ending, against log-probabilities that are computed an ending at a time."""

from __future__ import annotations

import pytest
import torch
from evals.subjects import subject_on_tables, values

from kleiber.data.tokenizers import Bytes
from kleiber.evals.choice import Choice, Question, choose, ending_log_probs, parse_question
from kleiber.models.transformer import Transformer
from kleiber.types.batch import Batch


@pytest.fixture
def net() -> Transformer:
    torch.manual_seed(0)
    return Transformer(64, depth=1, width=32, context=24)


def slow(net: Transformer, context: list[int], ending: list[int]) -> float:
    ids = (context + ending)[-25:]
    logits = net.head(net(Batch(torch.tensor([ids[:-1]]))).hidden)[0].log_softmax(-1)
    return sum(logits[-i, ids[-i]].item() for i in range(1, len(ending) + 1))


def test_endings_of_any_length_in_one_pass(net) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(0, 64, (n,), generator=generator).tolist()  # noqa: E731
    jobs = [(draw(a), draw(b)) for a, b in ((1, 1), (5, 9), (20, 4), (40, 3), (1, 24))]
    with torch.no_grad():
        found = ending_log_probs(net, jobs)
        assert found.tolist() == pytest.approx([slow(net, *job) for job in jobs], abs=1e-4)
    with pytest.raises(ValueError, match=r"25 tokens.*model\.context=24"):
        ending_log_probs(net, [([1], [2] * 25)])


def test_both_scores(net) -> None:
    questions = [Question([1, 2, i], [[3], [4, 5, 6], [7, 8]], [1, 9, 2], i % 3) for i in range(12)]
    plain = per_byte = 0
    with torch.no_grad():
        for q in questions:
            scores = torch.tensor([slow(net, q.context, ending) for ending in q.endings])
            plain += int(scores.argmax()) == q.label
            per_byte += int((scores / torch.tensor(q.num_bytes)).argmax()) == q.label
    net.train()
    found = {name: sum(correct) for name, correct in choose(net, questions, rows=5).items()}
    assert found == {"accuracy": plain, "accuracy_per_byte": per_byte}
    assert net.training


def test_tables_of_questions_are_scored_by_their_columns() -> None:
    torch.manual_seed(0)
    tokenizer, model = Bytes(), Transformer(Bytes().vocab_size, depth=1, width=32, context=24)
    about = [{"ctx": f"the {i} ", "endings": ["a b", "cdef", "g"], "label": str(i % 3)} for i in range(6)]
    pairs = [{"sentence_good": f"who {i}", "sentence_bad": f"{i} whoever", "pair_id": i} for i in range(4)]
    found = Choice().evaluate(subject_on_tables(model, about=about, pairs=pairs)).scores
    first = parse_question(about[0], tokenizer, "about")
    assert first.endings == [tokenizer.encode(text) for text in (" a b", " cdef", " g")] and first.num_bytes == [
        4,
        5,
        2,
    ]
    right = 0
    with torch.no_grad():
        for row in about:
            context = [tokenizer.eos, *tokenizer.encode(row["ctx"].rstrip())]
            scores = [slow(model, context, tokenizer.encode(f" {ending}")) for ending in row["endings"]]
            right += scores.index(max(scores)) == int(row["label"])
        good = [
            [slow(model, [tokenizer.eos], tokenizer.encode(r[k])) for k in ("sentence_good", "sentence_bad")]
            for r in pairs
        ]
    about_scores, pair_scores = values(found["about"]), values(found["pairs"])
    assert about_scores["accuracy"] == right / 6 and about_scores["chance"] == pytest.approx(1 / 3)
    assert pair_scores["accuracy"] == sum(a > b for a, b in good) / 4 and found["pairs"]["accuracy"].n == 4


class Words(Bytes):
    """As SentencePiece: what begins a text gets a mark of its own, and a word has its space in front."""

    def encode(self, text: str) -> list[int]:
        return [7, *super().encode(text)] if text else []


def test_an_ending_is_read_as_it_stands_behind_its_context() -> None:
    row = {"ctx": "a little", "endings": ["girl", "b"], "label": 0}
    asked = parse_question(row, Words(), "t")
    assert asked.context == [Words().eos, 7, *b"a little"] and asked.endings == [list(b" girl"), list(b" b")]


def test_a_context_begins_as_a_document_of_the_training_text() -> None:
    class Begun(Bytes):
        bos, mask = 257, -1

    row = {"ctx": "a", "endings": ["b", "c"], "label": 0}
    assert parse_question(row, Begun(), "t").context == [256, *b"a"]
    assert parse_question(row, Begun().with_separator("bos"), "t").context == [257, *b"a"]


@pytest.mark.parametrize("label", ["", "B", None, 2, -1])
def test_a_label_that_is_no_index_of_an_ending_is_named(label) -> None:
    with pytest.raises(ValueError, match=f"label={label!r} "):
        parse_question({"ctx": "a", "endings": ["b", "c"], "label": label}, Bytes(), "t")
