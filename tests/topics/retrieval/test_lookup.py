"""Generation with a datastore: a fact of it is given, and neighbors change a prediction by the formula of kNN-LM."""

from types import SimpleNamespace

import pytest
import torch
from topics.retrieval.stores import Copier, random_text, tiny_model

from kleiber.data.tokenizers import Bytes
from kleiber.runs.completion import Sampling, continue_prompt
from kleiber_topics.retrieval.knn import Datastore, Setting
from kleiber_topics.retrieval.lookup import Lookup, mixture, neighbor_mixture, with_retrieved_text

GREEDY = Sampling(tokens=2, temperature=0.0)


@pytest.fixture
def facts(tmp_path, cache_dir):
    file = tmp_path / "facts.txt"
    file.write_text("a 7.....b 3.....")  # a chunk has 8 tokens
    return str(file)


def prompt(text: str, lookup: Lookup) -> str:
    return Bytes().decode(with_retrieved_text(tiny_model(), Bytes(), list(text.encode()), lookup))


def test_text_that_fits_stands_in_front_of_the_prompt(facts):
    assert prompt("b", Lookup([facts])) == "b 3.....\nb"
    assert prompt("b or a", Lookup([facts], chunks=2)).endswith("\nb or a")
    assert prompt("whale", Lookup([facts])) == "whale"
    assert prompt("a 7.....", Lookup([facts], "dense")) == "a 7.....\na 7....."


def test_a_fact_of_the_datastore_is_given(facts):
    run = SimpleNamespace(model=Copier(), tokenizer=Bytes())
    assert "".join(continue_prompt(run, "b", GREEDY, Lookup([facts]))) == " 3"
    assert "".join(continue_prompt(run, "b", GREEDY)) != " 3"


def test_neighbors_are_mixed_into_the_probabilities():
    store = Datastore(torch.tensor([[0.0], [1.0]]), torch.tensor([2, 0]), [2])
    logits = torch.tensor([[0.1, 0.2, 0.3]])
    hidden = torch.tensor([[0.0]])
    neighbors = torch.tensor([0.0, -1.0]).div(2.0).softmax(0)
    expected = 0.6 * logits.softmax(1) + 0.4 * torch.tensor([[neighbors[1], 0.0, neighbors[0]]])
    assert torch.allclose(mixture(store, Setting(0.4, 2.0))(hidden, logits).exp(), expected, atol=1e-6)
    same = mixture(store, Setting(0.0, 2.0))(hidden, logits)
    assert torch.allclose(same.softmax(1), logits.softmax(1), atol=1e-6)


def test_a_model_that_knows_nothing_writes_what_its_neighbors_do(tmp_path, cache_dir):
    period = random_text(8, 0)
    (tmp_path / "loop.txt").write_text(period * 80)
    lookup = Lookup([str(tmp_path / "loop.txt")], "knn", tokens=600)
    adjust = neighbor_mixture(tiny_model(), Bytes(), lookup)
    run = SimpleNamespace(model=tiny_model(), tokenizer=Bytes())
    text = "".join(continue_prompt(run, period * 2, Sampling(tokens=8, temperature=0.0), lookup))
    assert text == period and callable(adjust)


def test_another_method_is_refused():
    with pytest.raises(ValueError, match="retrieval=faiss must be bm25, dense or knn"):
        Lookup(["x"], "faiss")
