"""A model that was trained to look facts up in its context answers facts that stand in the datastore alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
from evals.subjects import subject_on_tables, table
from topics.retrieval.facts import draw, training_text
from topics.retrieval.stores import windows

from kleiber.launch.main import main
from kleiber.runs.open import open_model
from kleiber_topics.retrieval.evaluation import Retrieval


@pytest.mark.slow
def test_the_fact_in_the_store_is_answered_and_the_absent_one_is_not(tmp_path, cache_dir):
    file = tmp_path / "lookups.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in training_text(12_000)))
    settings = ["model.width=32", "model.num_heads=2", "model.depth=2", "model.context=64", "batch.tokens=1024"]
    budget = ["optimizer.lr=0.02", "budget.tokens=400K", "logger=csv", "launcher=basic"]
    assert main([*settings, *budget, "data=text", f"data.path={file}", f"root={tmp_path}", "name=lookup"]) == 0
    model = open_model(next(tmp_path.glob("lookup/gpt*"))).model
    facts = draw(np.random.default_rng(99))
    known = [{"prompt": key, "answer": facts[key]} for key in "abcd"]
    absent = [{"prompt": key, "answer": facts[key]} for key in "ef"]
    subject = subject_on_tables(model, known=known)
    subject = replace(
        subject,
        data=[*subject.data, table("absent", absent)],
        train=windows([f"{key} {facts[key]}" for key in "abcd"], 64),
    )
    scores = Retrieval(methods=["bm25", "dense"]).evaluate(subject).scores
    assert scores["known"]["exact_match"].value <= 0.5, "the model has never seen these facts: it guesses 1 of 5"
    assert scores["known"]["bm25/exact_match"].value == scores["known"]["dense/exact_match"].value == 1
    assert scores["known"]["bm25/log_prob"].value > -0.1 > scores["known"]["log_prob"].value + 0.5
    assert scores["absent"]["bm25/exact_match"].value == scores["absent"]["bm25/answer_retrieved"].value == 0
    assert scores["absent"]["bm25/difference"].value == 0
