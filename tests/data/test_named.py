"""Data that an extension offers: found by its name for evaluations, mixtures and descriptions."""

import sys

import pytest

from kleiber.config.extensions import VARIABLE
from kleiber.data.documents import open_documents
from kleiber.data.evaluation_sets import open_sets
from kleiber.data.mixture_corpus import MixtureCorpus
from kleiber.data.named import NamedData, find_named, names
from kleiber.data.tokenizers import Bytes

PACKAGE = {
    "__init__": """NAMED = {"builtin/rhymes": "rhymes.Rhymes", "builtin/asked": "rhymes.Asked"}""",
    "rhymes": """
from kleiber.data import NamedData, Text

class Rhymes(NamedData):
    name, use = "builtin/rhymes", "choice"
    def text(self, max_bytes=None):
        return Text(FILE, max_bytes=max_bytes).source()
    def rows(self):
        return [{"question": "a", "answer": "b"}]

class Asked(NamedData):
    name, use = "builtin/asked", "choice"
    def rows(self):
        return [{"question": "a"}]
""",
}


@pytest.fixture
def lab(cache, tmp_path, monkeypatch):
    """A package with two data sets, one of them with a text."""
    (tmp_path / "verse.txt").write_text("The cat sat on the mat, and that was that. " * 200)
    folder = tmp_path / "packages" / "rhyme_lab"
    folder.mkdir(parents=True)
    for name, text in PACKAGE.items():
        (folder / f"{name}.py").write_text(text.replace("FILE", repr(str(tmp_path / "verse.txt"))))
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv(VARIABLE, "rhyme_lab")
    for module in [name for name in sys.modules if name.startswith("rhyme_lab")]:
        monkeypatch.delitem(sys.modules, module)
    return folder


def test_names_are_listed_without_an_import(lab):
    assert {"builtin/rhymes", "builtin/asked"} <= {*names()} and "rhyme_lab.rhymes" not in sys.modules
    assert isinstance(find_named("builtin/rhymes"), NamedData) and find_named("builtin/prose") is None


def test_an_evaluation_reads_the_text_and_the_rows(lab):
    (data,) = open_sets("builtin/rhymes", Bytes(), 16)
    assert data.columns == ("question", "answer") and data.rows() == [{"question": "a", "answer": "b"}]
    assert len(data.samples()) > 0
    (asked,) = open_sets("builtin/asked", Bytes(), 16)
    assert asked.columns == ("question",)
    with pytest.raises(ValueError, match="evals=choice"):
        asked.samples()


def test_a_mixture_and_a_description_read_the_text(lab):
    corpus = MixtureCorpus({"builtin/rhymes": 1.0}, max_bytes="1K").prepare(16)
    assert 0 < corpus.num_bytes <= 1000
    with open_documents("builtin/rhymes") as documents:
        assert "cat" in next(documents.texts)


def in_a_mixture(name: str) -> None:
    MixtureCorpus({name: 1.0}).prepare(16)


def in_an_evaluation(name: str) -> None:
    open_sets(name, Bytes(), 16)


@pytest.mark.parametrize("read", [in_a_mixture, in_an_evaluation])
def test_a_name_that_nobody_offers_is_refused_with_those_that_are(lab, read):
    with pytest.raises(ValueError, match=r"builtin/prose.*builtin/rhymes"):
        read("builtin/prose")
