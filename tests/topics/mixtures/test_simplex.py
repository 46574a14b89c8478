"""The design simplex: mixtures on the simplex that are far from each other, within the repetition that is allowed."""

import numpy as np
import pytest

from kleiber_topics.mixtures.simplex import Simplex

NAMES = ["a", "b", "c"]


def test_mixtures_sum_to_one_in_steps_and_differ():
    weights = Simplex(["a", "b", "c", "d"], 32, 8).weights()
    assert weights.shape == (40, 4) and weights.sum(1) == pytest.approx(np.ones(40)) and weights.min() >= 0
    assert weights * 50 == pytest.approx(np.round(weights * 50)) and len(np.unique(weights, axis=0)) == 40


def test_mixtures_of_the_law_are_farther_apart_than_random_ones():
    weights = Simplex(NAMES, 20, 20).weights()

    def least_distance(rows):
        apart = np.linalg.norm(rows[:, None] - rows[None], axis=2)
        return apart[np.triu_indices(len(rows), 1)].min()

    assert least_distance(weights[:20]) > 2 * least_distance(weights[20:])
    assert {tuple(row) for row in np.eye(3)} <= {tuple(row) for row in weights[:8]}  # corners are the farthest


def test_repetition_bounds_the_weight_of_a_small_domain():
    design = Simplex(NAMES, 12, 3, tokens={"a": "1M", "b": "200K", "c": "100K"}, epochs=4, budget="1M")
    weights = design.weights()
    assert (weights.max(0) <= np.array([1.0, 0.8, 0.4]) + 1e-9).all() and weights[:, 1].max() > 0.7
    assert weights[0] == pytest.approx([0.76, 0.16, 0.08])  # the proportional mixture


def test_each_cell_trains_one_mixture_with_one_seed():
    cells = Simplex(NAMES, 4, 1, seeds=2).cells()
    assert len(cells) == 10 and cells[1][0] == "data=mixture" and cells[1][1].startswith("data.parts={a:")
    assert [cell[-1] for cell in cells] == ["seed=0"] * 5 + ["seed=1"] * 5
    assert [cell[2] for cell in cells[:5]] == ["study.arm=fitted"] * 4 + ["study.arm=held_out"]
    assert Simplex(NAMES, 4, 1, draw=1).cells() != Simplex(NAMES, 4, 1).cells() == Simplex(NAMES, 4, 1).cells()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"domains": ["a", "a"]}, "design.domains"),
        ({"mixtures": 3}, "design.mixtures"),
        ({"tokens": {"a": 1, "b": 1, "c": 1}}, "design.budget"),
        ({"tokens": {"a": 9}, "budget": 9}, "design.tokens"),
        ({"tokens": {"a": "1K", "b": "1K", "c": "1K"}, "budget": "1M"}, "design.epochs"),
        ({"mixtures": 2000}, "only"),
    ],
)
def test_a_design_without_enough_mixtures_is_refused(options, word):
    with pytest.raises(ValueError, match=word):
        Simplex(**{"domains": NAMES, "mixtures": 8, **options}).weights()
