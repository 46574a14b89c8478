"""What is added to the scores of a data set: names by size, contamination, costs and examples."""

import numpy as np
import torch
from topics.retrieval.test_items import targets

from kleiber.evals.evaluation import Score
from kleiber.nn.heads import LMHead
from kleiber.types.model import Model
from kleiber_topics.retrieval.datastore import StoreText, Window, n_gram_hashes
from kleiber_topics.retrieval.evaluation import Measured, add_examples, knn_scores, store_scores
from kleiber_topics.retrieval.in_context import answer_pieces
from kleiber_topics.retrieval.items import Items
from kleiber_topics.retrieval.knn import Retrieved, Setting
from kleiber_topics.retrieval.scoring import ScoredRow


def rows(*texts: list[int]) -> list[ScoredRow]:
    return [ScoredRow(np.array(text), np.arange(len(text)) == len(text) - 1, i) for i, text in enumerate(texts)]


def measured(is_table: bool = False) -> Measured:
    of = rows([1, 2, 3, 4], [5, 6, 7, 8])
    items = Items("data", of, answer_pieces(of), 2, is_table)
    return Measured(items, targets([0, 1], [-1.0, -3.0], [True, False]), 0.1, np.ones(2, bool))


def test_scores_of_several_sizes_have_their_size_in_their_name():
    window = Window(np.arange(3), 0)
    part, several = measured(), StoreText([window, window], [2, 4], [1, 2], 0, np.empty(0, np.uint64))
    part.add("knn", {"loss": Score(2.0)}, several, 0)
    part.add("knn", {"loss": Score(1.0)}, several, 1)
    assert part.scores == {"knn/tokens2/loss": Score(2.0), "knn/loss": Score(1.0), "knn/tokens4/loss": Score(1.0)}
    single = measured()
    single.add("knn", {"loss": Score(1.0)}, StoreText([window], [2], [1], 0, np.empty(0, np.uint64)), 0)
    assert single.scores == {"knn/loss": Score(1.0)}


def test_contamination_is_a_share_of_samples():
    part = measured()
    part.add_contamination(3, np.sort(n_gram_hashes(np.array([6, 7, 8]), 3)))
    assert part.scores["contamination"].value == 0.5


def test_the_greedy_answer_of_a_table_is_that_of_the_mixture():
    part = measured(is_table=True)
    found = Retrieved(part.plain.log_probs, torch.tensor([4, 8]), torch.zeros(2, 1), torch.tensor([[4], [4]]))
    model = Model()
    model.head = LMHead(torch.nn.Parameter(torch.zeros(9, 1)))
    scores = knn_scores(model, part, found, Setting(0.9, 1.0))
    assert scores["exact_match"].value == 0.5 and scores["difference"].value == 0


def test_examples_have_the_nats_of_their_targets():
    part = measured()
    add_examples(part, "bm25", [np.array([9]), np.array([], np.int64)], torch.tensor([-0.5, -3.0]).double(), str)
    assert part.examples == [
        {"method": "bm25", "before": "[1, 2, 3]", "target": "[4]", "retrieved": "[9]", "nats": 1.0, "nats_with": 0.5}
    ]


def test_costs_have_no_interval():
    assert store_scores(7, 1.0, 2.0)["store_bytes"] == Score(7.0)
