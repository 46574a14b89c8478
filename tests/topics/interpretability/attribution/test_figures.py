"""Every data set has figures of faithfulness and agreement."""

from evals.routing.moe_text import Rows
from evals.small_models import subject_on_rows, tiny

from kleiber_topics.interpretability.attribution.evaluation import Attribution

LESS = {"texts": 3, "length": 7, "steps": 3, "points": 2, "random": 1, "shown": 1, "shown_tokens": 3}


def test_every_data_set_has_its_figures():
    evaluation = Attribution(**LESS)
    results = evaluation.evaluate(subject_on_rows(tiny("dense"), Rows(0, 30), "a/<i>"))
    scores = {name: {key: vars(score) for key, score in each.items()} for name, each in results.scores.items()}
    record = {"scores": scores, "details": results.details}
    assert set(evaluation.figures(record, None)) == {"faithfulness_a_<i>", "gain_a_<i>", "agreement_a_<i>"}
