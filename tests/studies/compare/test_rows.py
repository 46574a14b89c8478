"""Rows of fine-tuning runs, each with its base, method, forgetting and target loss."""

import pandas as pd
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.compare import rows as outcomes
from kleiber.studies.compare.rows import mean_of, seed_means

from ..comparisons import truth, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "forgetting"
    write_study(home)
    return home


def test_runs_are_read_as_forgetting_and_target_loss(study):
    rows = outcomes.outcomes(read_runs(study))
    row = rows[(rows["method"] == "replay") & (rows["replayed"] == 0.05) & (rows["lr"] == 0.01)].iloc[0]
    F, target = truth("replay", 0.05, 0.01)
    assert (row["F"], row["target"]) == pytest.approx((F, target), abs=0.02)
    assert row["peak"] == pytest.approx(1.3 * row["F"]), "the trajectory peaks before its end"
    assert row["relative"] == pytest.approx(row["F"] / (5.0 - 2.0)), "a share of what the base had learned"
    assert row["setting"] == "fraction=0.05" and row["target_tokens"] == pytest.approx(0.95e6)
    assert row["pretrained"] == 4e6
    line = rows[(rows["method"] == "wise") & (rows["run"] == "none-0.01-0")]
    assert list(line["setting"]) == ["a=0", "a=0.5", "a=1"] and line["F"].iloc[0] == pytest.approx(0)
    assert not any(rows["run"].str.startswith("base")), "a base had nothing to forget"
    assert row["path"][0][1] == 0.0 and max(F for _, F in row["path"]) == row["peak"] and line["path"].iloc[0] == []
    assert row["start/docs"] == 2.0 and row["loss/docs"] == pytest.approx(2.0 + row["F"])


def test_text_that_the_model_wrote_is_a_method_of_its_own():
    node = {"_target_": "x", "fraction": 0.2, "source": "generated"}
    assert outcomes.method_of({"retention": {"replay": node}}) == ("generated", "fraction=0.2 source=generated")
    assert outcomes.method_of({"retention": {"replay": {**node, "source": "real"}}}) == ("replay", "fraction=0.2")


def test_what_is_frozen_tells_arms_apart():
    node = {"_target_": "kleiber.adapters.Freeze", "train": None}
    result = [outcomes.method_of({"adapter": {**node, "freeze": parts}}) for parts in (["router"], ["mlp", "norms"])]
    assert result == [("freeze", "freeze=router"), ("freeze", "freeze=mlp+norms")]


def test_means_over_seeds_have_an_interval_only_where_something_was_trained_twice():
    rows = pd.DataFrame({"a": [1, 1, 2, 2], "v": [1.0, 1.2, 3.0, 3.2]})
    result = seed_means(rows, ["a"], "v")
    assert result["mean"].tolist() == pytest.approx([1.1, 3.1]) and (result["half"] > 0.1).all()
    assert seed_means(rows.iloc[[0, 2]], ["a"], "v")["half"].isna().all()


def test_branches_of_a_trunk_are_no_seeds_of_their_own():
    """Two trunks of four branches each: one degree of freedom, whatever the number of branches."""
    rows = pd.DataFrame([{"run": run, "D": d, "v": d + 0.1 * run} for run in range(2) for d in range(4)])
    result, apart = (seed_means(row, ["D"], "v") for row in (rows, rows.drop(columns="run")))
    assert (result["half"] / apart["half"]).to_numpy() == pytest.approx(6.3138 / 2.1318, rel=1e-3)


def test_arms_by_model_are_dense_a_mixture_or_one_whose_router_is_frozen():
    moe = {"model": {"mlp": {"num_experts": 8}}}
    frozen = {"_target_": "kleiber.adapters.Freeze", "train": None, "freeze": ["router"]}
    assert outcomes.model_arm({"model": {"mlp": {"_target_": "x"}}}) == ("dense", "")
    assert outcomes.model_arm(moe) == ("moe", "")
    assert outcomes.model_arm({**moe, "adapter": frozen}) == ("moe, router frozen", "")
    more_frozen = {**frozen, "freeze": ["router", "experts"]}
    assert outcomes.model_arm({**moe, "adapter": more_frozen}) == ("moe with freeze", "freeze=router+experts")
    replay = {"replay": {"_target_": "x", "fraction": 0.05}}
    assert outcomes.model_arm({**moe, "retention": replay}) == ("moe with replay", "fraction=0.05")


def test_every_method_of_the_config_has_a_label_that_is_no_code_name():
    names = [outcomes.label(name) for name in ("none", "ewc", "lwf", "agem", "l2sp", "wise", "lora+ewc+wise")]
    expected = ["plain fine-tuning", "EWC", "LwF", "A-GEM", "L2-SP", "WiSE-FT", "LoRA + EWC + WiSE-FT"]
    assert names == expected and outcomes.label("rank 16") == "rank 16"
    assert outcomes.label("moe with agem+wise") == "mixture of experts with A-GEM + WiSE-FT"


def test_the_mean_of_a_setting_needs_a_repeated_one_for_an_interval():
    table = pd.DataFrame({"x": [1, 1, 2, 2], "y": [1.0, 1.2, 2.0, 2.1]})
    assert mean_of(seed_means(table, ["x"], "y").iloc[0], "nats").value == pytest.approx(1.1)
    assert mean_of(seed_means(table[::2], ["x"], "y").iloc[0], "nats").hi is None
