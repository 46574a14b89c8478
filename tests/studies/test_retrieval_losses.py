"""Losses by arm, way and domain, read from planted runs, and what is compared of them."""

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.retrieval_losses import (
    Losses,
    arm_table,
    change,
    evaluated,
    label,
    matched,
    matched_table,
    size_table,
    sizes_chart,
    tradeoff_chart,
    used,
)
from studies.ablation_runs import copied
from studies.planted_retrieval import plant

from .colors import colors

REPLAY = "replay fraction=0.2"


@pytest.fixture
def losses(tmp_path):
    plant(tmp_path)
    return Losses(evaluated(read_runs(tmp_path), "builtin/docs", "builtin/code"))


def test_losses_are_by_arm_way_domain_and_seed(losses):
    assert losses.arms() == ["base", "none", REPLAY] and losses.has("base", "bm25") and not losses.has("base", "dense")
    assert losses.of("none")["old"] == pytest.approx({0: 2.5, 1: 2.6, 2: 2.45})
    assert losses.of("none", "knn")["new"][0] == pytest.approx(2.04)
    assert change(losses.of("none"), losses.of("base"), "old") == pytest.approx([0.5, 0.49, 0.51])
    assert sorted(losses.at_weights("none")["old"]) == [0.0, 0.2, 0.5]
    assert losses.at_weights("none")["old"][0.5][0] == pytest.approx(2.2)


def test_neighbors_are_compared_at_the_loss_on_the_new_domain_of_the_other_arm(losses):
    gaps = matched(losses, REPLAY)
    # Of 2.02 on the new domain, a quarter of the way from weight .2 to .5: 2.35 on the old one, where replay has 2.1.
    assert gaps[0] == pytest.approx(2.35 - 2.1)
    (row,) = matched_table(losses, 0.9)
    assert row["against"] == "replay of 20 %" and row["seeds that reach it"] == "3 of 3"
    assert row["value"] == pytest.approx(sum(gaps.values()) / 3)


def test_the_table_of_arms_has_losses_and_costs(losses):
    rows = {(row["arm"], row["retrieval"]): row for row in arm_table(losses, 0.9)}
    row = rows["plain fine-tuning", "with nearest neighbors"]
    assert row["old: value"] == pytest.approx(2.3 + 0.05 / 3) and row["old: lo"] < row["old: value"] < row["old: hi"]
    assert row["store (MB)"] == 2 and row["ms per token"] == pytest.approx(2)
    assert rows["plain fine-tuning", "none"]["store (MB)"] is None and len(rows) == 9


def test_the_change_by_size_is_within_runs(losses):
    rows = {(row["arm"], row["retrieval"], row["tokens"]): row["mean"] for row in size_table(losses.rows, 0.9)}
    assert rows["plain fine-tuning", "with nearest neighbors", 1000] == pytest.approx(-0.1)
    assert rows["plain fine-tuning", "with nearest neighbors", 4000] == pytest.approx(-0.2)
    assert len(rows) == 3 * 2 * 2


def test_names_are_human():
    assert label("base") == "before fine-tuning" and label("replay fraction=0.05") == "replay of 5 %"
    assert label("replay fraction=0.05 memory=100K") == "replay of 5 %, memory=100K"
    assert label("l2sp strength=1") == "l2sp strength=1"
    assert used("none", "knn") == "plain fine-tuning with nearest neighbors" and used("none", "alone") == label("none")


def test_the_figures_have_a_point_for_each_arm_and_way(losses):
    chart = tradeoff_chart(losses).to_dict()
    assert sorted(len(rows) for rows in chart["datasets"].values()) == [3, 9, 27]
    sizes = sizes_chart(size_table(losses.rows, 0.9), losses.arms(), 0.9).to_dict()
    every, among = colors(chart), colors(sizes)
    nothing = among.pop("without neighbors")
    assert among and among.items() <= every.items() and nothing not in every.values()
    assert any(len(rows) == 8 for rows in sizes["datasets"].values())


def test_two_runs_of_an_arm_and_seed_are_refused_since_one_of_them_would_be_read(tmp_path):
    runs = plant(tmp_path) or read_runs(tmp_path)
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        evaluated([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})], "builtin/docs", "builtin/code")


def test_stores_of_one_size_have_no_change_by_size(losses):
    assert size_table(losses.rows[losses.rows["tokens"].isna()], 0.9) == []
