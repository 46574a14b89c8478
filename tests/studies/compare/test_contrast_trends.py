"""Trends of a difference over sizes, with their intervals."""

import numpy as np
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.claims import decide_together
from kleiber.studies.compare.contrast import trends
from kleiber.studies.forgetting_law import ForgettingLaw, grid_cells

from ..grid_runs import RATIOS, SIZES, TOKENS, forgetting, write_grid

MORE, LARGER, REPLAY = (
    "forgetting F is higher after more new text",
    "forgetting F is lower for larger models",
    "forgetting F is lower with a larger replayed share",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "law"
    write_grid(home)
    return home


def decided(rows, noise, level=0.9):
    """Decisions, and estimates by the column that varies and the text up to the comma."""
    return {result.question.text.partition(",")[0]: result for result in decide_together(trends(rows, noise), level)}


@pytest.mark.slow
def test_trends_are_told_without_a_law(study):
    """Means over the cells of the true law, from end to end of each input."""
    results = decided(*grid_cells(read_runs(study)))
    assert [result.decision for result in results.values()] == ["supported"] * 5
    D, bases = (TOKENS[0], TOKENS[-1]), [(N, M) for N in SIZES for M in RATIOS]
    grown = np.mean([forgetting(N, D[1], M, 0) - forgetting(N, D[0], M, 0) for N, M in bases])
    estimate = results[MORE].estimate
    assert estimate.lo < grown < estimate.hi and estimate.value == pytest.approx(grown, abs=0.005)
    fallen = np.mean([forgetting(SIZES[-1], d, M, 0) - forgetting(SIZES[0], d, M, 0) for d in TOKENS for M in RATIOS])
    assert results[LARGER].estimate.value == pytest.approx(fallen, abs=0.006)


def test_more_lengths_from_the_same_bases_make_no_trend_of_size_surer(study):
    rows, noise = grid_cells(read_runs(study))
    few = rows[rows["steps"] == rows["steps"].max()]
    many, fewer = (
        {text: result.estimate.hi - result.estimate.value for text, result in decided(part, noise, level).items()}
        for part, level in ((rows, 1 - 0.1 * 5 / 3), (few, 0.9))  # two claims less, each as sure
    )
    assert many[LARGER] == pytest.approx(fewer[LARGER], rel=1e-6)
    assert MORE in many and MORE not in fewer and len(many) == len(fewer) + 2


@pytest.mark.slow
def test_an_exponent_at_its_bound_has_not_settled(study):
    """F falls with new text here, which no exponent of the law says: nothing of it moves on doubling D."""
    rows, _ = grid_cells(read_runs(study))
    plain = rows["F"] * (rows["steps"] / rows["steps"].min()) ** -1.0
    record = ForgettingLaw(bootstrap=20).fit(rows.assign(F=plain), "replay_grid_ratio")
    assert record["params"]["beta"]["value"] < 1e-6
    assert not {"settled", "not_settled"} & {verdict["code"] for verdict in record["verdicts"]}


def test_what_forgets_less_with_new_text_does_not_grow(study):
    rows, noise = grid_cells(read_runs(study))
    turned = rows.assign(F=rows["F"].max() - rows["F"])
    results = decided(turned, noise)
    assert {results[text].decision for text in (MORE, LARGER, REPLAY)} == {"contradicted"}
