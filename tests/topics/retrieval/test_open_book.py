"""Questions with passages that are looked up: answers of a reader that is known, the store, and what is refused."""

import re
from types import SimpleNamespace

import pytest
import torch
from evals.subjects import subject_of
from tables import folder

from kleiber.data.task import Task, task_rows
from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.objectives.sft import SFT
from kleiber.types.batch import Batch
from kleiber_topics.retrieval import open_book
from kleiber_topics.retrieval.open_book import OpenBook, read_store

FACTS = {"tarn": "4", "brook": "7", "fen": "9", "mere": "2", "beck": "5", "weir": "8"}
PROMPT = "{context} Depth of {question}?"


def row(name: str, words: str = "lies") -> dict[str, str]:
    return {"context": f"{name} {words} {FACTS[name]} deep.", "question": name, "answer": FACTS[name]}


def read(model, prompts, tokens, eos, **options):
    """Answers with the number that the prompt has beside the name that it asks for; else with x."""
    texts = [re.match(r"(.*) Depth of (.*)\?$", Bytes().decode(prompt), re.DOTALL) for prompt in prompts]
    found = [re.search(rf"{text[2]} \w+ (\d)", text[1]) for text in texts]
    return [[*f" {fact[1] if fact else 'x'}".encode()] for fact in found]


@pytest.fixture
def subject(tmp_path, monkeypatch):
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    held_out = [
        row("fen"),
        row("mere"),
        {**row("beck"), "question": "the beck"},
        {**row("weir"), "context": "It is 8."},
    ]
    path = folder(tmp_path / "t", train=[row("tarn"), row("brook"), row("brook")], validation=held_out)
    corpus = Task(path, prompt=PROMPT, target="{answer}", passage="context").prepare(64)
    torch.manual_seed(0)
    return subject_of(Transformer(272, depth=1, width=32, context=64), corpus, SFT(corpus))


def test_a_reader_answers_what_its_passage_says(subject, monkeypatch):
    monkeypatch.setattr("kleiber.evals.generation.continuations", read)
    results = OpenBook().evaluate(subject)
    scores = {name: score.value for name, score in results.scores["t"].items()}
    # weir stands in no passage, and the reader does not know that "the beck" is beck; BM25 finds its passage
    assert scores["closed/exact_match"] == 0
    assert scores["given/exact_match"] == scores["bm25/exact_match"] == 0.5
    assert scores["bm25/recall_1"] == scores["bm25/recall_5"] == 0.75
    assert scores["bm25/exact_match_difference"] == 0.5 and scores["bm25/store_bytes"] > 0
    assert results.details["t"] == {"questions": 4, "passages": 6}
    difference = results.scores["t"]["given/exact_match_difference"]
    assert difference.n == 4 and difference.lo < difference.value < difference.hi


def test_dense_retrieval_finds_the_nearest_mean_state(subject, tmp_path, monkeypatch):
    monkeypatch.setattr("kleiber.evals.generation.continuations", read)
    rows, order = task_rows(subject.samples("t"))
    other = Transformer(272, depth=1, width=16, context=32)
    monkeypatch.setattr(open_book, "open_model", lambda path: SimpleNamespace(model=other, tokenizer=Bytes()))
    for retriever, model in ((None, subject.model), ("run", other)):
        evaluation = OpenBook(methods=["dense"], retriever=retriever, top=2)
        items = [rows.texts_of(i) for i in order]
        store = read_store(rows, items, "context", None, 0)
        places, _ = evaluation.find(subject, "dense", store, ["fen", "mere"])
        texts = [torch.tensor([[*text.encode()][: model.context]]) for text in [*store.passages, "fen", "mere"]]
        states = [model(Batch(text)).hidden.mean(1) for text in texts]
        vectors = torch.nn.functional.normalize(torch.cat(states), dim=1).detach()
        nearest = (vectors[-2:] @ vectors[:-2].T).argsort(1, descending=True)
        assert [found[:2] for found in places] == nearest[:, :2].tolist()


def test_the_store_has_the_passages_of_the_questions_and_others_once(subject):
    rows, order = task_rows(subject.samples("t"))
    items = [rows.texts_of(i) for i in order]
    store = read_store(rows, items, "context", 5, 0)
    assert len({*store.passages}) == len(store.passages) == 5
    assert [store.passages[number] for number in store.numbers] == [item.inputs["context"] for item in items]
    assert len(read_store(rows, items, "context", None, 0).passages) == 6
    with pytest.raises(ValueError, match=r"evals.open_book.passages=3"):
        read_store(rows, items, "context", 3, 0)


def test_several_passages_stand_in_the_prompt_the_best_one_first(subject, monkeypatch):
    prompts: list[str] = []

    def keep(model, given, tokens, eos, **options):
        prompts.extend(Bytes().decode(prompt) for prompt in given)
        return [[] for _ in given]

    monkeypatch.setattr("kleiber.evals.generation.continuations", keep)
    rows, order = task_rows(subject.samples("t"))
    item = rows.texts_of(int(order[0]))
    OpenBook(top=2).answer(subject, rows, [item], [f"{item.inputs['context']}\n{'long ' * 40}"])
    assert prompts[0].startswith(item.inputs["context"] + "\nlong long")
    assert prompts[0].endswith(f" Depth of {item.inputs['question']}?") and len(prompts[0]) == 64 - rows.kept


def test_data_without_passages_and_a_retriever_that_is_not_used_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    path = folder(tmp_path / "t", train=[row("tarn")], validation=[row("fen")])
    corpus = Task(path, prompt=PROMPT, target="{answer}").prepare(64)
    model = Transformer(272, depth=1, width=32, context=64)
    with pytest.raises(ValueError, match=r"data.passage"):
        OpenBook().evaluate(subject_of(model, corpus, SFT(corpus)))
    with pytest.raises(ValueError, match=r"evals.open_book.retriever=run"):
        OpenBook(retriever="run")
