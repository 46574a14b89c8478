"""The likeliest ending, against log-probabilities that are computed an ending at a time."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kleiber.data.tokenizers import Bytes
from kleiber.evals import Subject
from kleiber.evals.choice import Question, choose, ending_log_probs, evaluate, parse_question
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
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
    assert choose(net, questions, rows=5) == {"accuracy": plain / 12, "accuracy_per_byte": per_byte / 12}
    assert net.training


def subject(model: Transformer, home: Path | None) -> Subject:
    names = ("name", "config", "hash", "train", "validation")
    corpus: object = SimpleNamespace(tokenizer=Bytes(), **dict.fromkeys(names))
    return Subject(model, corpus, CLM(), task_files=home)  # type: ignore[arg-type]


def asked(tmp_path: Path, **files: list[dict]) -> Path:
    tmp_path.mkdir(exist_ok=True)
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return tmp_path


def test_files_of_questions_are_scored_by_their_columns(tmp_path) -> None:
    torch.manual_seed(0)
    tokenizer, model = Bytes(), Transformer(Bytes().vocab_size, depth=1, width=32, context=24)
    about = [{"ctx": f"the {i} ", "endings": ["a b", "cdef", "g"], "label": str(i % 3)} for i in range(6)]
    pairs = [{"sentence_good": f"who {i}", "sentence_bad": f"{i} whoever", "pair_id": i} for i in range(4)]
    home = asked(tmp_path, about=about, pairs=pairs)
    found = evaluate(subject(model, home))
    first = parse_question(about[0], tokenizer, home)
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
    assert found["about"]["accuracy"] == right / 6 and found["about"]["chance"] == pytest.approx(1 / 3)
    assert found["pairs"]["accuracy"] == sum(a > b for a, b in good) / 4 and found["pairs"]["questions"] == 4
    one = evaluate(subject(model, home / "pairs.jsonl"))
    assert one == {"pairs": found["pairs"]}


def test_what_is_no_question_is_refused_by_its_columns(tmp_path) -> None:
    model = Transformer(Bytes().vocab_size, depth=1, width=32, context=24)
    (tmp_path / "empty").mkdir()
    for place, value in (
        (None, "--task-files"),
        (tmp_path / "missing", "--task-files .*missing"),
        (tmp_path / "empty", "--task-files .*empty"),
        (asked(tmp_path / "a", odd=[{"text": "a"}]), "odd.jsonl has the columns text"),
        (asked(tmp_path / "b", odd=[{"ctx": "a", "endings": ["b"], "label": 1}]), "label=1 "),
    ):
        with pytest.raises(ValueError, match=value):
            evaluate(subject(model, place))
    bidirectional = Transformer(Bytes().vocab_size, depth=1, width=32, context=24, causal=False)
    with pytest.raises(ValueError, match="bidirectional"):
        evaluate(subject(bidirectional, tmp_path))


class Words(Bytes):
    """As SentencePiece: what begins a text gets a mark of its own, and a word has its space in front."""

    def encode(self, text: str) -> list[int]:
        return [7, *super().encode(text)] if text else []


def test_an_ending_is_read_as_it_stands_behind_its_context() -> None:
    row = {"ctx": "a little", "endings": ["girl", "b"], "label": 0}
    asked = parse_question(row, Words(), Path("t"))
    assert asked.context == [Words().eos, 7, *b"a little"] and asked.endings == [list(b" girl"), list(b" b")]


def test_a_context_begins_as_a_document_of_the_training_text() -> None:
    class Begun(Bytes):
        bos, mask = 257, -1

    row = {"ctx": "a", "endings": ["b", "c"], "label": 0}
    assert parse_question(row, Begun(), Path("t")).context == [256, *b"a"]
    assert parse_question(row, Begun().with_separator("bos"), Path("t")).context == [257, *b"a"]


@pytest.mark.parametrize("label", ["", "B", None, 2, -1])
def test_a_label_that_is_no_index_of_an_ending_is_named(label) -> None:
    with pytest.raises(ValueError, match=f"label={label!r} "):
        parse_question({"ctx": "a", "endings": ["b", "c"], "label": label}, Bytes(), Path("t"))


def test_a_line_that_is_no_json_is_named(tmp_path) -> None:
    (tmp_path / "t.jsonl").write_text('{"ctx": "a", "endings": ["b", "c"], "label": 1}\n{"ctx": \n')
    with pytest.raises(ValueError, match=r"t.jsonl, line 2: "):
        evaluate(subject(Transformer(Bytes().vocab_size, depth=1, width=32, context=24), tmp_path))
