"""Laws of task scores: limits at the floor, the ceiling and 1, and variants that fit the floor."""

import re

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws.fit import fit
from kleiber_topics.task_scores.curves import CURVES, direct, exponential, sigmoid

LOSS = np.linspace(0.2, 4, 30)
FLOOR = np.full(30, 0.25)


def test_scores_stay_between_the_floor_and_the_ceiling():
    score = sigmoid(LOSS, FLOOR, top=np.array(3.0), middle=np.array(1.0), slope=np.array(20.0))
    assert score[0] == pytest.approx(1, abs=1e-6) and score[-1] == pytest.approx(0.25) and (np.diff(score) <= 0).all()
    assert exponential(LOSS, FLOOR, k=np.array(9.0), gamma=np.array(0.1)).max() == 1.0
    far = direct(np.array([1.0, 1e30]), np.array([1.0, 1e30]), FLOOR[:2], A=np.array(9.0), B=np.array(9.0),
                 alpha=np.array(0.5))  # fmt: skip
    assert far == pytest.approx([0.25, 1.0], abs=1e-4)


@pytest.mark.parametrize("name", ["sigmoid", "exponential"])
def test_a_curve_with_a_fitted_floor_equals_that_with_a_known_one(name):
    values = {"sigmoid": (0.8, 1.5, 3.0), "exponential": (0.9, 0.9)}[name]
    law = CURVES[name]
    score = law.predict({"loss": LOSS, "floor": FLOOR}, np.array([values]))[0]
    fixed = fit(law, {"loss": LOSS, "floor": FLOOR}, score, "squared", space="linear")
    free = fit(CURVES[f"{name}_free"], {"loss": LOSS}, score, "squared", space="linear")
    assert list(fixed.params.values()) == pytest.approx(values, rel=1e-3)
    assert free.params["floor"] == pytest.approx(0.25, abs=0.01)


def test_the_published_scores_of_two_large_models_are_predicted(shared):
    """Gadre et al. 2024, arXiv:2403.08540: 3.64% and 0.05% error of the mean of 17 tasks."""
    path = shared / "laws" / "gadre_downstream" / "models_losses_accuracies.csv"
    if not path.is_file():
        pytest.skip("needs ../shared/laws beside the checkout")
    names = (
        "bigbench_operators pubmed_qa_labeled hellaswag_zeroshot boolq arc_easy coqa bigbench_dyck_languages "
        "lambada_openai bigbench_novel_concepts winograd bigbench_cs_algorithms commonsense_qa bigbench_qa_wikidata "
        "hellaswag copa squad piqa"
    )
    models = pd.read_csv(path).query("train == 'rpj'")
    models["score"] = models[[f"acc:{task}" for task in re.findall(r"\w+", names)]].mean(axis=1)
    small = models.query("(cc_mult == 1 and N < 2e9) or (cc_mult == 16 and N < 2e7)")
    law = fit(CURVES["exponential_free"], {"loss": small["loss_c4_val"].to_numpy()}, small["score"].to_numpy(),
              "squared", space="linear")  # fmt: skip
    assert len(small) == 6
    assert (1 - law.params["floor"], law.params["k"], law.params["gamma"]) == pytest.approx(
        (0.85699, 2.2065, 0.7146), rel=1e-3
    )
    for query, error_of_loss, published in (
        ("model == 'open_lm_1b' and cc_mult == 32", 0.007103, 3.6365),
        ("model == 'open_lm_7b'", 0.007320, 0.0464),
    ):
        row = models.query(query).iloc[0]
        predicted = law.predict({"loss": np.array([row["loss_c4_val"] * (1 + error_of_loss)])})[0]
        error = 100 * abs((1 - predicted) / (1 - row["score"]) - 1)
        assert error == pytest.approx(published, abs=2e-3)
