"""Every data set has a figure."""

from evals.routing.moe_text import Rows
from evals.small_models import subject_on_rows, tiny

from kleiber_topics.interpretability.probes.evaluation import Probes


def test_figures_are_drawn():
    results = Probes(texts=8, length=4, features=["next_class"]).evaluate(subject_on_rows(tiny("dense"), Rows(0, 250)))
    scores = {name: {key: vars(score) for key, score in each.items()} for name, each in results.scores.items()}
    assert set(Probes().figures({"scores": scores}, None)) == {"probes_text"}
