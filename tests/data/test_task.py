"""Tasks of text generation: what is learned and cut, references, leakage, and rows that are refused."""

import logging

import numpy as np
import pytest
from small_run import REPOSITORY
from tables import folder

from kleiber.config.targets import build
from kleiber.data.task import Task, task_rows
from kleiber.data.tokenizers import Bytes

TOKENIZER = Bytes()
ROWS = {  # a row of each task of conf/data/task, its prompt and its references
    "multi30k": ({"en": "a dog", "de": "ein Hund"}, "English: a dog\nGerman:", ["ein Hund"]),
    "aeslc": (
        {"email_body": "Hi", "subject_line": "s", "annotations": ["t", "s", "u"]},
        "E-mail: Hi\nSubject:", ["s", "t", "u"],
    ),
    "scitldr": ({"source": ["We.", "It."], "target": ["x", "y"]}, "Abstract: We.\nIt.\nSummary:", ["x", "y"]),
    "squad": (
        {"context": "c", "question": "q?", "answers": {"text": ["a", "a", "b"], "answer_start": [1, 1, 2]}},
        "Passage: c\nQuestion: q?\nAnswer:", ["a", "b"],
    ),
    "web_questions": ({"question": "q?", "answers": ["a", "b"]}, "Question: q?\nAnswer:", ["a", "b"]),
    "webnlg": (
        {"modified_triples": ["a | b | c", "d | e | f"], "texts": ["t"]},
        "Facts: a | b | c\nd | e | f\nText:", ["t"],
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))


def pairs(*numbers):
    return [{"en": f"number {i}", "de": f"Zahl {i}"} for i in numbers]


def prepare(tmp_path, train, validation, context=64, prompt="Translate: {en}", target="{de}", **options):
    path = folder(tmp_path / "t", train=train, validation=validation)
    return Task(path, prompt=prompt, target=target, **options).prepare(context)


def test_the_target_and_the_end_of_text_are_learned_after_the_prompt(tmp_path):
    corpus = prepare(tmp_path, pairs(1, 2), pairs(3), pack=False)
    batch = corpus.validation["t"].gather(np.array([0]))
    text, learned = b"Translate: number 3 Zahl 3", b" Zahl 3"
    assert batch.tokens[0][batch.is_real[0]].tolist() == [*text, TOKENIZER.eos]
    assert batch.tokens[0][batch.weights[0] == 1].tolist() == [*learned, TOKENIZER.eos]
    assert corpus.validation["t"].question(0) == ([*b"Translate: number 3"], [*learned])
    assert task_rows(corpus.validation["t"])[0].kept == len(learned) + 1
    assert corpus.num_answers == 2 * (len(learned) + 1)


def test_packed_rows_hold_the_same_targets_as_rows_of_one_sample(tmp_path):
    rows = [{"en": "x" * i, "de": "y" * i} for i in range(1, 12)]
    packed, padded = (prepare(tmp_path, rows, rows, pack=pack).train for pack in (True, False))
    assert len(packed) < len(padded) == 11
    learned = [batch.tokens[batch.weights == 1] for batch in (s.gather(np.arange(len(s))) for s in (packed, padded))]
    assert sorted(learned[0].tolist()) == sorted(learned[1].tolist())


def test_the_passage_is_cut_and_never_the_question(tmp_path, caplog):
    rows = [{"context": "p" * 100, "question": "who?", "answers": {"text": ["me"], "answer_start": [0]}}]
    prompt, target = "Passage: {context}\\nQuestion: {question}\\nAnswer:", "{answers[text]}"
    for context in (60, 256):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            corpus = prepare(tmp_path, rows * 2, rows, context, prompt, target, passage="context", target_tokens=10)
        asked, answer = corpus.validation["t"].question(0)
        kept = min(100, context - 10 - len("Passage: \nQuestion: who?\nAnswer:"))
        assert TOKENIZER.decode(asked) == f"Passage: {'p' * kept}\nQuestion: who?\nAnswer:" and answer == [*b" me"]
        assert ("1 passages cut to model.context=60" in caplog.text) == (context == 60) and len(asked) + 10 <= context
        batch = corpus.validation["t"].gather(np.array([0]))
        assert batch.tokens[0][batch.is_real[0]].tolist() == [*asked, *answer, TOKENIZER.eos]


def test_every_reference_is_trained_on_and_held_out_rows_keep_all(tmp_path):
    rows = [{"q": "a", "texts": ["x", "y", " "], "title": "z"}, {"q": "b", "texts": [], "title": "w"}]
    corpus = prepare(tmp_path, rows, rows, 32, "{q}", ["{texts}", "{title}"])
    rows, order = task_rows(corpus.validation["t"])
    learned = {tuple(rows.training.question(i)[1]) for i in range(len(rows.training))}
    assert learned == {tuple(b" " + letter) for letter in (b"x", b"y", b"z", b"w")}
    held_out = corpus.validation["t"]
    texts = [rows.texts_of(i) for i in order]
    assert sorted(t.references for t in texts) == [["w"], ["x", "y", "z"]] and len(held_out) == 2
    assert {t.inputs["q"]: held_out.question(i)[1] for i, t in enumerate(texts)} == {"a": [*b" x"], "b": [*b" w"]}


def test_prompts_of_the_training_split_are_counted_in_the_others(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        prepare(tmp_path, pairs(1, 2, 3), [*pairs(2, 8), {"en": "NUMBER  3", "de": "other"}])
    assert "1 prompts are training prompts too, 2 (66.7%)" in caplog.text


def test_rows_and_templates_that_do_not_fit_are_refused(tmp_path):
    good = pairs(1, 2)
    for options, message in (
        ({"prompt": "{english}"}, "data.prompt=english.*en, de"),
        ({"passage": "de"}, "data.passage=de must be a column of data.prompt"),
        ({"target": []}, r"data.target=\[\]"),
        ({"context": 20}, r"train row 0 .*19 tokens, more than the 12 that model.context=20"),
        ({"target_tokens": 64}, "data.target_tokens=64 must be < model.context=64"),
        ({"target": "{en[text]}"}, r"train row 0: \{en\[text\]\}"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(tmp_path, good, good, **options)
    with pytest.raises(ValueError, match=r"validation row 1: data.target=\{de\} is empty"):
        prepare(tmp_path, good, [good[0], {"en": "x", "de": " "}])
    unequal = [{"en": "x", "a": ["1"], "b": ["2", "3"]}]
    with pytest.raises(ValueError, match=r"train row 0: data.target needs lists of equal length"):
        prepare(tmp_path, unequal, unequal, target="{a} {b}")


def test_each_task_reads_the_columns_of_its_data_set():
    import yaml

    files = {file.stem: yaml.safe_load(file.read_text()) for file in (REPOSITORY / "conf/data/task").glob("*.yaml")}
    assert files.keys() == ROWS.keys()
    for name, (row, prompt, references) in ROWS.items():
        task = build(files[name])
        assert task.texts(row) == [prompt, *references], name


@pytest.mark.parametrize("context", [256, 48])
def test_a_prompt_with_its_own_passage_is_that_of_the_row(tmp_path, context):
    """Also where the passage is cut."""
    rows = [{"p": "a passage that is long enough to be cut", "q": f"What is number {n}?", "t": "it"} for n in range(3)]
    task = Task(folder(tmp_path / "t", train=rows), prompt="{p} | {q}", target="{t}", passage="p", target_tokens=4)
    samples = task.prepare(context, tmp_path / "cache").validation["t"].samples
    for i in range(len(samples)):
        inputs = samples.texts_of(i).inputs
        assert task.prompt_ids(inputs, Bytes(), context - 4) == samples.question(i)[0]
    assert (context == 48) == bool(samples.cut.any())
    with pytest.raises(ValueError, match="more than 5 tokens without its passage"):
        task.prompt_ids(inputs, Bytes(), 5)
