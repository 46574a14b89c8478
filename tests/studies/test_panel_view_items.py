"""A measure whose items all samples share: the error over items widens what its claims and contrasts say."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from kleiber.records.catalog import read_runs
from kleiber.studies.decision import mean_estimate
from kleiber.studies.panel import Panel

from .panels import claim, plant, row

SHARE, ITEMS = "eval/book/{way}/f1", "eval/book/{way}/difference"
GIVEN, CLOSED = [0.30, 0.36, 0.33], [0.10, 0.12, 0.08]
ERROR = 0.04  # over items
OPTIONS = {
    "keys": {"way": {"title": "way"}},
    "contrasts": [{"title": "Gain", "of": {"way": "given"}, "against": {"way": "closed"}}],
    "claims": [{"of": {"way": "given"}, "against": {"way": "closed"}, "direction": "higher"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("items")
    half = norm.ppf(0.95) * ERROR
    for seed, (given, closed) in enumerate(zip(GIVEN, CLOSED, strict=True)):
        gain = given - closed
        scores = {"eval/book/given/difference": {"value": gain, "lo": gain - half, "hi": gain + half, "n": 200,
                  "unit": "", "better": "none", "label": "gain"}}  # fmt: skip
        metrics = {"eval/book/given/f1": given, "eval/book/closed/f1": closed, "eval/book/given/difference": gain}
        plant(folder, "run", metrics, seed, stage={"scores": scores})
    return read_runs(folder)


def analyzed(runs, **measure):
    return Panel(**OPTIONS, measures={"f1": {"source": SHARE, **measure}}).analyze(runs)


def test_claims_and_contrasts_have_the_error_of_seeds_and_items(runs):
    seeds = mean_estimate((np.array(GIVEN) - CLOSED).tolist(), 0.9, "")
    without, with_items = analyzed(runs), analyzed(runs, items=ITEMS)
    expected = math.hypot(seeds.hi - seeds.value, norm.ppf(0.95) * ERROR)
    for findings, half in ((without, seeds.hi - seeds.value), (with_items, expected)):
        gap, result = row(findings, "Gain"), claim(findings, "f1", {"way": "closed"})
        assert gap["hi"] - gap["value"] == pytest.approx(half)
        assert result.estimate.hi - result.estimate.value == pytest.approx(half)
    assert "items" in claim(with_items, "f1", {"way": "closed"}).question.method_with(None)
    assert "items" not in claim(without, "f1", {"way": "closed"}).question.method_with(None)


def test_items_that_name_a_key_that_the_measure_lacks_are_refused():
    with pytest.raises(ValueError, match=r"study\.measures\.f1\.items: kind"):
        Panel(**OPTIONS, measures={"f1": {"source": SHARE, "items": "eval/book/{kind}/difference"}})
