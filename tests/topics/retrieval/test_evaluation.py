"""Planted truths: what stands in the store is answered and what does not is not; kNN-LM at both of its ends."""

import shutil
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from evals.subjects import values
from topics.retrieval.stores import Copier, on_rows, on_text, random_text, tiny_model, windows

from kleiber.evals.evaluation import Score
from kleiber.evals.measure import plan_measurements
from kleiber.models.lstm import LSTM
from kleiber_topics.retrieval.evaluation import Retrieval

TEXT, OTHER = random_text(640, 0), random_text(640, 1)
FACTS = [f"{letter} {digit}" for letter, digit in zip("abcdefgh", "73915826", strict=True)]
QUESTIONS = [{"prompt": fact[0], "answer": fact[2]} for fact in FACTS]
ABSENT = [{"prompt": letter, "answer": "4"} for letter in "stuvwxyz"]
SMALL = {"chunk_tokens": 8, "stride": 8}


def scores(subject, **options) -> dict[str, Score]:
    return next(iter(Retrieval(**{**SMALL, **options}).evaluate(subject).scores.values()))


@pytest.mark.parametrize("method", ["bm25", "knn"])
def test_a_fact_in_the_store_is_answered_and_an_absent_one_is_not(method):
    options = {"methods": [method], "interpolation": 0.9, "temperature": 0.01, "neighbors": 1}
    known = scores(on_rows(Copier(), QUESTIONS, FACTS), **options)
    absent = scores(on_rows(Copier(), ABSENT, FACTS), **options)
    assert known["exact_match"].value == absent["exact_match"].value == 0
    assert absent[f"{method}/exact_match"].value == 0
    if method == "bm25":  # the states of the copier tell nothing about the letter
        assert known["bm25/exact_match"].value == known["bm25/answer_retrieved"].value == 1
        assert absent["bm25/answer_retrieved"].value == 0 and absent["bm25/difference"].value == 0
        assert known["bm25/log_prob"].value == pytest.approx(0, abs=1e-6)


def test_interpolation_0_is_the_model_exactly():
    part = scores(on_text(tiny_model(), [TEXT], [OTHER]), methods=["knn"], interpolation=0.0, temperature=1.0)
    assert part["knn/loss"] == part["loss"] and part["knn/bits_per_byte"] == part["bits_per_byte"]
    assert part["knn/difference"] == replace(part["knn/difference"], value=0.0, lo=0.0, hi=0.0)


def test_a_text_is_scored_to_the_number_of_tokens_that_was_asked_for():
    subject = replace(on_text(tiny_model(), [TEXT], [OTHER]), tokens=64)
    few, most = (
        {"methods": ["knn"], "interpolation": 0.5, "temperature": 1.0, **keys} for keys in ({}, {"tokens": "1M"})
    )
    counts = [scores(subject, **options)["knn/difference"].n for options in (few, most)]
    assert counts[0] < counts[1] and scores(replace(subject, tokens=None), **few)["knn/difference"].n == counts[1]


def test_the_text_itself_in_the_store_has_nearly_no_loss():
    options = {"methods": ["knn"], "interpolation": 0.99, "temperature": 1e-9, "neighbors": 1}
    model = tiny_model()
    itself = scores(on_text(model, [TEXT], [TEXT]), exclude_overlap=None, **options)
    # Windows that begin with the same letter have the same first key.
    assert itself["loss"].value > 4 and itself["knn/loss"].value < 0.1
    assert itself["contamination"].value > 0.9
    other = scores(on_text(model, [TEXT], [OTHER]), exclude_overlap=None, **options)
    assert other["knn/loss"].value > 4 and other["contamination"].value == 0


def test_the_text_itself_is_left_out_of_the_store_unless_asked_for():
    options = {"methods": ["knn"], "interpolation": 0.99, "temperature": 1e-9, "neighbors": 1}
    subject = on_text(tiny_model(), [TEXT], [TEXT[5:], OTHER])
    results = Retrieval(**SMALL, **options).evaluate(subject)
    assert results.scores["text"]["knn/loss"].value > 4 and results.details["left_out"] >= 19
    assert results.scores["text"]["contamination"].value > 0.9
    with pytest.raises(ValueError, match="no text but that of the evaluated data"):
        Retrieval(**SMALL).evaluate(on_text(tiny_model(), [TEXT], [TEXT]))


def test_settings_are_chosen_on_the_first_half_and_the_other_half_is_reported():
    half, options = TEXT[:320], {"methods": ["knn"], "exclude_overlap": None}
    first = scores(on_text(tiny_model(), [half + random_text(320, 2)], [half, OTHER]), **options)
    second = scores(on_text(tiny_model(), [random_text(320, 2) + half], [half, OTHER]), **options)
    assert first["knn/interpolation"].value == 0.95 > second["knn/interpolation"].value
    assert first["knn/loss"].value > second["knn/loss"].value
    assert first["loss"].n == first["knn/loss"].n == 320
    subject = on_text(tiny_model(), [TEXT], [OTHER])
    assert scores(subject, **options, interpolation=0.5, temperature=1.0)["loss"].n == 640


def test_sizes_are_nested_and_a_larger_store_costs_more():
    part = scores(on_text(tiny_model(), [TEXT], [OTHER]), methods=["knn", "bm25"], sizes=[64, 256, 10_000])
    sizes = [part[f"knn/tokens{size}/store_bytes"].value for size in (64, 256, 10_000)]
    assert sizes == [64 * 72, 256 * 72, 640 * 72]
    assert part["knn/loss"] == part["knn/tokens10000/loss"]
    assert part["bm25/tokens64/store_bytes"].value < part["bm25/store_bytes"].value
    assert all(part[f"{method}/seconds_per_token"].value > 0 for method in ("knn", "bm25"))


@pytest.mark.slow
def test_every_key_has_its_effect():
    subject = on_text(tiny_model(), [TEXT[:200]], [OTHER[:200] + TEXT[:100]])
    plain = {"methods": ["knn", "dense"], "exclude_overlap": None, "temperature": 5.0, "interpolation": 0.5}
    base = values(scores(subject, **plain))

    def changed(name: str, **options: object) -> bool:
        return values(scores(subject, **{**plain, **options}))[name] != base[name]

    knn, dense = "knn/loss", "dense/loss"
    assert changed(knn, key="ffn") and changed(knn, neighbors=2) and changed(knn, interpolation=0.2)
    assert changed(knn, temperature=50.0) and changed(knn, sizes=[100]) and changed(knn, exclude_overlap=16)
    assert changed(dense, chunks=2) and changed(dense, chunk_tokens=4) and changed(dense, stride=16)
    assert changed(dense, between="--") and changed(dense, query_tokens=3)
    assert changed(knn, sizes=[100], seed=1) and not changed(knn, search="torch")
    weights = scores(subject, **plain, interpolations=[0.1])
    assert weights["knn/interpolation0.1/loss"].value == values(scores(subject, **{**plain, "interpolation": 0.1}))[knn]


def test_a_store_that_is_mapped_from_a_file_gives_the_same_scores(monkeypatch):
    subject, made = on_text(tiny_model(), [TEXT], [OTHER]), []
    original = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: made.append(original()) or made[-1])
    options = {**SMALL, "methods": ["knn"], "key": "ffn"}
    in_memory = values(scores(subject, **options))
    assert not made
    mapped = values(scores(subject, **options, memory=1000))
    assert len(made) == 2 and all(file.closed for file in made), "hidden states and keys, without a name"
    times = [name for name in mapped if "seconds" in name]
    assert times and {**mapped, **dict.fromkeys(times)} == {**in_memory, **dict.fromkeys(times)}


def test_a_disk_without_room_for_the_store_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    with pytest.raises(ValueError, match=r"2 kB free: use fewer tokens, or set TMPDIR"):
        Retrieval(**SMALL, methods=["knn"], memory=1000).evaluate(on_text(tiny_model(), [TEXT], [OTHER]))


def test_a_common_setting_is_the_same_for_all_data_sets():
    subject = on_text(tiny_model(), [TEXT], [TEXT])
    other = replace(subject.data[0], name="other", samples=lambda: windows([random_text(640, 3)]))
    both = replace(subject, data=[subject.data[0], other])
    options = {**SMALL, "methods": ["knn"], "exclude_overlap": None}
    chosen = {
        shared: [
            part["knn/interpolation"].value
            for part in Retrieval(**options, shared_setting=shared).evaluate(both).scores.values()
        ]
        for shared in (False, True)
    }
    assert chosen[False][0] > chosen[False][1] and chosen[True][0] == chosen[True][1]


def test_what_cannot_be_honoured_is_refused():
    model, data = tiny_model(), on_text(tiny_model(), [TEXT], [OTHER])
    with pytest.raises(ValueError, match=r"evals\.retrieval\.memory is 10 kB.*search=torch"):
        Retrieval(memory=10_000, search="faiss").evaluate(data)
    with pytest.raises(ValueError, match=r"must fit into model\.context=32"):
        Retrieval(chunk_tokens=30).check(model)
    long = {"chunk_tokens": 8, "stride": 8, "chunks": 2, "methods": ["bm25"]}
    Retrieval(**long, between="12345").check(model)  # whose tokens the tokenizer of the subject counts
    with pytest.raises(ValueError, match=r"chunks=2 of chunk_tokens=8, each with between='12345'"):
        Retrieval(**long, between="12345").evaluate(data)
    with pytest.raises(ValueError, match="row 0 has 29 tokens, more than"):
        Retrieval(**SMALL, methods=["bm25"]).evaluate(on_rows(model, [{"prompt": "a", "answer": "b" * 28}] * 2, FACTS))
    with pytest.raises(ValueError, match=r"key=ffn needs model=gpt"):
        Retrieval(key="ffn").check(LSTM(vocab_size=272, width=16, depth=1, context=32))
    with pytest.raises(ValueError, match="ascending order"):
        Retrieval(sizes=[20, 10])
    with pytest.raises(ValueError, match=r"evals\.retrieval\.store=null is the training text"):
        Retrieval(**SMALL).evaluate(replace(data, train=None))
    model.causal = False
    with pytest.raises(ValueError, match="needs a causal model"):
        plan_measurements({"retrieval": Retrieval(**SMALL)}, model, data.tokenizer, list(data.data))


def test_a_store_is_the_training_text_of_a_name_or_path(tmp_path, cache_dir):
    file = tmp_path / "notes.txt"
    file.write_text(OTHER)
    subject = replace(on_text(tiny_model(), [TEXT], ["unused"]), train=None)
    named = scores(subject, methods=["knn"], store=[str(file)], interpolation=0.5, temperature=5.0)
    run = scores(on_text(tiny_model(), [TEXT], [OTHER]), methods=["knn"], interpolation=0.5, temperature=5.0)
    assert named["knn/loss"] == run["knn/loss"]


def test_an_lstm_and_weighted_targets_are_scored():
    model = LSTM(vocab_size=272, width=16, depth=1, context=32).eval()
    part = scores(on_text(model, [TEXT], [OTHER]))
    assert np.isfinite(part["knn/loss"].value) and np.isfinite(part["bm25/loss"].value)
