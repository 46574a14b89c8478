"""Distributions: every run, and shares that add up."""

import pandas as pd
import pytest

pytest.importorskip("altair")

from kleiber.charts.distribution import distribution, histogram


def test_the_shares_of_a_histogram_add_up_in_common_bins():
    chart = histogram({"train": [1.0, 1.5, 2.0], "held out": [1.2, 2.5]}, "loss", "share", "T").to_dict()
    (rows,) = chart["datasets"].values()
    for name in ("train", "held out"):
        assert sum(row["value"] for row in rows if row["kind"] == name) == pytest.approx(1.0)


def test_a_distribution_has_every_run():
    rows = pd.DataFrame(
        {"series": ["a", "a", "b"], "value": [1.0, 1.1, 3.0], "seed": [0, 1, 0], "hollow": [False, False, True]}
    )
    one = distribution(rows, ["a", "b"], "loss", "T").to_dict()
    assert "concat" not in one and len(one["datasets"].popitem()[1]) == 3
    two = distribution(rows.assign(panel=rows["series"]), ["a", "b"], "loss", "T").to_dict()
    assert [panel["title"]["text"] for panel in two["concat"]] == ["a", "b"]
