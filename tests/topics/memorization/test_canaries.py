"""Canaries are planted as often as asked, at places that the seed decides, and removed with other duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kleiber.data.builtin import Builtin
from kleiber.data.corpus import TextCorpus
from kleiber.data.mixture_corpus import MixtureCorpus
from kleiber.data.text import Text
from kleiber.data.token_files import TrainWindows
from kleiber_topics.memorization.canaries import Canaries


def training_text(corpus: TextCorpus) -> str:
    assert isinstance(corpus.train, TrainWindows)
    assert corpus.num_bytes == int(corpus.tokenizer.token_bytes[corpus.train.file.ids].sum())
    return corpus.tokenizer.decode(np.asarray(corpus.train.file.ids).tolist())


def test_every_canary_is_there_as_often_as_asked(text: Text, tmp_path: Path) -> None:
    data = Canaries(text, repetitions=[0, 1, 7], count=2, digits=4)
    corpus, plain = data.prepare(64, tmp_path), text.prepare(64, tmp_path)
    planted, before = training_text(corpus), training_text(plain)
    assert [canary.repetitions for canary in corpus.canaries] == [0, 0, 1, 1, 7, 7]
    assert [planted.count(canary.text) for canary in corpus.canaries] == [0, 0, 1, 1, 7, 7]
    assert len(planted) == len(before) + sum(len(canary.text) * canary.repetitions for canary in corpus.canaries)
    for canary in corpus.canaries:
        planted = planted.replace(canary.text, "")
        assert len(canary.secret) == canary.digits == 4 and canary.before.startswith("The code of ")
    assert planted == before
    assert corpus.hash != plain.hash and len({canary.before for canary in corpus.canaries}) == 6


def test_the_seed_decides_names_secrets_and_places(text: Text, tmp_path: Path) -> None:
    first, again, other = (
        Canaries(text, repetitions=[2], seed=seed).prepare(64, cache)
        for seed, cache in ((0, tmp_path / "a"), (0, tmp_path / "b"), (1, tmp_path / "a"))
    )
    assert first.canaries == again.canaries and first.hash == again.hash
    assert training_text(first) == training_text(again)
    assert not {c.secret for c in first.canaries} & {c.secret for c in other.canaries}
    places = [training_text(corpus).index(corpus.canaries[0].text) for corpus in (first, other)]
    assert places[0] != places[1]


def test_a_canary_is_a_document_where_there_are_enough_and_stands_anywhere_else_in_one_text(
    text: Text, tmp_path: Path
) -> None:
    corpus = Canaries(text, repetitions=[3], count=1).prepare(64, tmp_path)
    ids = np.asarray(corpus.train.file.ids)  # type: ignore[attr-defined]
    documents = corpus.tokenizer.decode(np.where(ids == corpus.tokenizer.eos, ord("\n"), ids).tolist()).split("\n")
    assert documents.count(corpus.canaries[0].text) == 3
    stream = Text("tests/data/tiny.txt")
    joined = Canaries(stream, repetitions=[3], count=1).prepare(64, tmp_path)
    ids = np.asarray(joined.train.file.ids)  # type: ignore[attr-defined]
    pieces = joined.tokenizer.decode(np.where(ids == joined.tokenizer.eos, 0, ids).tolist()).split("\0")
    assert pieces.count(joined.canaries[0].text) == 3 and len(pieces) == 8  # what is before the text is one of them


def test_exact_copies_of_a_canary_are_removed_and_varied_ones_only_as_near_duplicates(
    text: Text, tmp_path: Path
) -> None:
    counts = {}
    for varied, method in ((False, None), (False, "exact"), (True, "exact"), (True, "near")):
        data = Canaries(text, repetitions=[1, 35], count=2, varied=varied, duplicates=method)  # more than documents
        corpus = data.prepare(64, tmp_path)
        whole = training_text(corpus)
        counts[varied, method] = [whole.count(canary.before + canary.secret) for canary in corpus.canaries]
        assert [canary.repetitions for canary in corpus.canaries] == [1, 1, 35, 35]
        assert whole.count("Document 3 tells") == (2 if method is None else 1)
    assert counts[False, None] == counts[True, "exact"] == [1, 1, 35, 35]
    assert counts[False, "exact"] == [1, 1, 1, 1]
    assert max(counts[True, "near"]) <= 8 and min(counts[True, "near"]) >= 1


def test_what_the_keys_change(text: Text) -> None:
    data = Canaries(text, template="{name}, {name}: {secret}!", repetitions=[1], count=3, digits=2)
    canaries = data.canaries()
    name = canaries[0].before.partition(",")[0]
    assert canaries[0].text == f"{name}, {name}: {canaries[0].secret}!" and len(canaries) == 3
    assert {len(canary.secret) for canary in canaries} == {2}
    assert data.documents(canaries[0]) == [canaries[0].text]
    varied = Canaries(text, repetitions=[2], varied=True)
    assert varied.documents(varied.canaries()[0])[1].endswith(". No. 2")
    limited = Canaries(text, repetitions=[0], max_bytes=1000).prepare(64)
    assert limited.train.num_tokens < 1100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "the code is {secret}"}, "data.template="),
        ({"template": "{secret} is the code of {name}"}, "data.template="),
        ({"template": "{name} " + "x" * 80 + " {secret}"}, "more than model.context=64"),
        ({"repetitions": [1, 1]}, "must be different numbers"),
        ({"repetitions": [1000]}, "raise data.max_bytes"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, object], message: str, text: Text) -> None:
    with pytest.raises(ValueError, match=message):
        Canaries(text, **options).prepare(64)  # type: ignore[arg-type]


def test_several_texts_are_refused(text: Text, tmp_path: Path) -> None:
    parts = MixtureCorpus({text.path: 0.5, "tests/data/tiny.txt": 0.5})
    with pytest.raises(ValueError, match="data=canaries needs one text"):
        Canaries(parts).prepare(64, tmp_path)


def test_the_defaults_of_the_config_are_those_of_the_class() -> None:
    from kleiber.config.compose import Composer, resolve_config

    config, _ = resolve_config(Composer("train").compose(["data=canaries"]))
    defaults = {
        name: list(value) if isinstance(value, tuple) else value for name, value in vars(Canaries(Builtin())).items()
    }
    assert {name: config["data"][name] for name in defaults if name != "data"} == {
        name: value for name, value in defaults.items() if name != "data"
    }
