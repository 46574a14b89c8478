"""Counterfactual documents: the chosen share of them, added or in place, held-out text as it was, and pairs."""

import json
from pathlib import Path

import numpy as np
import pytest

from kleiber.data.mixture_corpus import MixtureCorpus, Repeated
from kleiber.data.text import Text
from kleiber.data.token_files import TrainWindows
from kleiber.data.tokenizers import Bytes
from kleiber_topics.bias.counterfactual import Counterfactual, encode_pair, word_swap
from kleiber_topics.bias.occupations import Occupations

ROWS = [f"Day {n}: {text}" for n in range(30) for text in ("He saw a man.", "Tom sat.", "It rained.")]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for split in ("train", "validation", "test"):
        lines = [json.dumps({"text": text}) for text in ROWS]
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{split}-00000-of-00001.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "text")


def documents(data: Counterfactual, cache: Path, split: str = "train") -> list[str]:
    corpus = data.prepare(16, cache)
    train, (held_out,) = corpus.train, corpus.validation.values()
    file = train.file if split == "train" and isinstance(train, TrainWindows) else held_out.file  # type: ignore[attr-defined]
    return bytes(i if i < 256 else 0 for i in file.ids.tolist()).decode().split("\0")[1:]


def test_augmentation_adds_swapped_documents_behind_all_others(folder, tmp_path):
    plain = [text for text in ROWS if "rained" not in text]
    swapped = [text.replace("He", "She").replace("man", "woman").replace("Tom", "Lily") for text in plain]
    assert documents(Counterfactual(Text(folder)), tmp_path) == ROWS + swapped
    without_names = documents(Counterfactual(Text(folder), names=False), tmp_path)
    assert without_names == ROWS + [text for text in swapped if "Lily" not in text]
    assert documents(Counterfactual(Text(folder)), tmp_path, "validation") == ROWS


def test_substitution_swaps_half_of_them_in_place_by_a_seed(folder, tmp_path):
    found = [documents(Counterfactual(Text(folder), "substitute", seed=seed), tmp_path) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2] and len(found[0]) == len(ROWS)
    changed = [a != b for a, b in zip(found[0], ROWS, strict=True)]
    assert 0.3 < sum(changed) / 60 < 0.7
    assert not any(change for change, text in zip(changed, ROWS, strict=True) if "rained" in text)
    few = documents(Counterfactual(Text(folder), share=0.25), tmp_path)
    assert 0.1 < (len(few) - len(ROWS)) / 60 < 0.4


def test_a_list_of_the_users_replaces_pronouns_and_all(folder, tmp_path):
    words = tmp_path / "weather.txt"
    words.write_text("rained,snowed\n")
    data = Counterfactual(Text(folder), words=str(words), names=False)
    assert documents(data, tmp_path)[len(ROWS) :] == [t.replace("rained", "snowed") for t in ROWS if "rained" in t]
    words.write_text("hailed,stormed\n")
    with pytest.raises(ValueError, match=r"data\.words=.*: no document of text has a word of the list"):
        Counterfactual(Text(folder), words=str(words), names=False, seed=3).prepare(16, tmp_path)


def test_text_that_cannot_be_swapped_is_refused(tmp_path):
    one = tmp_path / "one.txt"
    one.write_text("He saw her. " * 200)
    with pytest.raises(ValueError, match=r"is one text without documents"):
        Counterfactual(Text(str(one))).prepare(16, tmp_path)
    with pytest.raises(ValueError, match=r"data\.data is Repeated, and must be text"):
        Counterfactual(Repeated(Text(str(one)))).prepare(16, tmp_path)


def test_settings_replace_those_of_the_text(tmp_path):
    data = Counterfactual(Occupations(documents=300), tokenizer="bpe", vocab_size=300, separator="none", max_bytes="9K")
    corpus = data.prepare(16, tmp_path)
    assert corpus.tokenizer.vocab_size < 320 and corpus.tokenizer.separator.before is None
    assert 17_000 < corpus.num_bytes < 19_000
    mixed = Counterfactual(MixtureCorpus({"builtin/occupations": 1.0}, max_bytes="9K")).prepare(16, tmp_path)
    assert mixed.train.num_bytes > 17_000


def test_a_pair_is_a_beginning_with_its_counterfactual():
    swap, tokenizer = word_swap("gender", True), Bytes()

    def pair(text: str, context: int) -> list[str]:
        return [tokenizer.decode(ids.tolist()) for ids in encode_pair(text, swap, tokenizer, context)]

    assert pair("He came home. Then he sat down and slept.", 30) == ["He came home.", "She came home."]
    assert pair("He came home.", 30) == ["He came home.", "She came home."]
    assert pair("Nobody came home.", 30) == []
    assert pair("It rained. He sat.", 12) == []
    assert pair("Once he came and stayed on", 10) == ["Once he ca", "Once she c"]


def test_the_pairs_of_a_corpus_are_those_of_its_documents(folder, tmp_path):
    corpus = Counterfactual(Text(folder), share=0.0).prepare(32, tmp_path)
    pairs = corpus.read_pairs()
    assert len(pairs) == 60 and corpus.train.num_bytes == Text(folder).prepare(32, tmp_path).train.num_bytes
    batch = pairs.gather(np.array([0, 1]))
    assert batch.counterpart is not None
    texts = [Bytes().decode(row[real].tolist()) for row, real in zip(batch.tokens, batch.real, strict=True)]
    others = [
        Bytes().decode(row[real].tolist())
        for row, real in zip(batch.counterpart.tokens, batch.counterpart.real, strict=True)
    ]
    assert texts == ["Day 0: He saw a man.", "Day 0: Tom sat."]
    assert others == ["Day 0: She saw a woman.", "Day 0: Lily sat."]
