"""The table of a panel has a row for each leaf, measure and value of keys in the names of metrics."""

import pandas as pd
import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.panel_declaration import captured_keys, read_keys, read_measures
from kleiber.studies.panel_table import HELD, REFERENCE, SAME, inherited, level_of, read_table, same_origin

from .panels import LOSS, plant


def table_of(folder, keys, measures):
    measured = read_measures(measures, [])
    return read_table(read_runs(folder), read_keys(keys, captured_keys(measured)), measured)


def values(table, measure, key):
    part = table[table["measure"] == measure]
    return dict(zip(part[key], part["value"], strict=True))


def test_keys_come_from_the_config_the_stage_and_the_names_of_metrics(tmp_path):
    metrics = {"acc/knn/k5": 0.5, "acc/knn/k10": 0.6, LOSS: 2.0}
    plant(tmp_path, "a", metrics, arm="x", stage={"params": {"total": 1234, "active": 1000}}, data={"unique": "600K"})
    keys = {"arm": "study.arm", "size": "stage.params.total", "unique": "data.unique"}
    table = table_of(tmp_path, keys, {"acc": "acc/{way}/k{k}", "loss": "loss"})
    assert values(table, "acc", "k") == {5: 0.5, 10: 0.6} and set(table["size"]) == {1234}
    assert set(table["unique"]) == {600_000} and set(table["arm"]) == {"x"}
    assert values(table, "loss", "way") == {None: 2.0}, "a measure without the key has no value of it"
    assert {f"{SAME}{name}" for name in HELD} < set(table.columns)


def test_the_first_source_that_a_run_has_counts_for_keys_and_measures(tmp_path):
    plant(tmp_path, "base", {"a": 1.0, "b": 2.0}, arm="x")
    plant(tmp_path, "tuned", {"b": 3.0}, arm="x", init={"_target_": "kleiber.runs.Checkpoint", "path": "p"})
    replay = {"retention": {"replay": {"fraction": 0.2}}, "init": {"_target_": "kleiber.runs.Checkpoint", "path": "p"}}
    plant(tmp_path, "replay", {"b": 4.0}, arm="x", **replay)
    key = {"source": ["retention.replay.fraction", "init._target_"], "default": "base",
           "values": {"kleiber.runs.Checkpoint": "none"}}  # fmt: skip
    table = table_of(tmp_path, {"method": key}, {"m": {"source": ["a", "b"]}})
    assert values(table, "m", "method") == {"base": 1.0, "none": 3.0, 0.2: 4.0}


def test_runs_without_a_value_and_a_default_are_left_out(tmp_path):
    plant(tmp_path, "a", {LOSS: 1.0}, arm="x", data={"k": 1})
    plant(tmp_path, "b", {LOSS: 2.0}, arm="x")
    assert set(table_of(tmp_path, {"k": "data.k"}, {"loss": LOSS})["run"]) == {"a-0"}
    assert set(table_of(tmp_path, {"k": {"source": "data.k", "default": 0}}, {"loss": LOSS})["k"]) == {0, 1}


def test_a_part_in_brackets_may_be_absent_where_its_key_has_a_default(tmp_path):
    plant(tmp_path, "a", {"eval/loss": 1.0, "eval/knn/loss": 0.5, "eval/knn/k4/loss": 0.7})
    measures = {"loss": "eval[/{way}]/loss"}
    assert values(table_of(tmp_path, {"way": {"default": "alone"}}, measures), "loss", "way") == {
        "alone": 1.0, "knn": 0.5,
    }  # fmt: skip
    assert values(table_of(tmp_path, {}, measures), "loss", "way") == {"knn": 0.5}


def test_a_metric_is_subtracted_where_the_run_has_it(tmp_path):
    plant(tmp_path, "a", {"x/docs/nats": 2.0, "x/code/nats": 3.0}, stage={"start_metrics": {"x/docs/nats": 1.5}})
    table = table_of(tmp_path, {}, {"rise": {"source": "x/{data}/nats", "minus": "start:x/{data}/nats"}})
    assert values(table, "rise", "data") == {"docs": 0.5}
    starred = table_of(tmp_path, {}, {"rise": {"source": "x/*/nats", "minus": "start:x/*/nats"}})
    assert starred["value"].tolist() == [0.5]


def test_the_reference_of_a_measure_is_read_beside_it(tmp_path):
    plant(tmp_path, "a", {"x/human": 0.8, "x/model": 0.5})
    table = table_of(tmp_path, {}, {"m": {"source": "x/model", "reference": {"at": "x/human"}}})
    assert values(table, f"m{REFERENCE}", "run") == {"a-0": 0.8}


def test_forgetting_is_a_measure_of_runs_that_started_from_others(tmp_path):
    stage = {"start_metrics": {LOSS: 2.0, "val/law/loss": 4.0}, "tasks": ["law"]}
    plant(tmp_path, "tuned", {LOSS: 2.3, "val/law/loss": 3.0}, stage=stage, R={"tasks": ["docs", "law"]})
    plant(tmp_path, "base", {LOSS: 2.0}, arm="base")
    measures = {"F": "forgetting:F", "target": "forgetting:target", "docs": LOSS}
    table = table_of(tmp_path, {"arm": {"source": "study.arm", "default": "tuned"}}, measures)
    assert values(table, "F", "run") == {"tuned-0": pytest.approx(0.3)}
    assert values(table, "target", "run") == {"tuned-0": 3.0} and len(values(table, "docs", "run")) == 2


def test_branches_of_a_trunk_are_rows_and_need_a_key(tmp_path):
    stages = [{"name": "trunk"}] + [
        {"name": str(tokens), "parent": "trunk", "tokens": tokens, "metrics": {LOSS: 1e6 / tokens}}
        for tokens in (1_000_000, 2_000_000)
    ]
    fake_run(tmp_path / "a", stages, config={"seed": 0})
    table = table_of(tmp_path, {"tokens": "stage.tokens"}, {"loss": LOSS})
    assert values(table, "loss", "tokens") == {1_000_000: 1.0, 2_000_000: 0.5}
    with pytest.raises(ValueError, match=r"stage\.tokens"):
        table_of(tmp_path, {}, {"loss": LOSS})


def test_several_metrics_of_a_measure_at_one_place_are_refused(tmp_path):
    plant(tmp_path, "a", {"val/docs/loss": 1.0, "val/code/loss": 2.0})
    with pytest.raises(ValueError, match=r"study\.measures\.loss.*val/docs/loss, val/code/loss"):
        table_of(tmp_path, {}, {"loss": "val/*/loss"})
    assert len(table_of(tmp_path, {}, {"loss": "val/{data}/loss"})) == 2


def test_a_folder_without_the_measures_is_refused(tmp_path):
    plant(tmp_path, "a", {LOSS: 1.0})
    with pytest.raises(ValueError, match=r"none of these 1 runs has finished with.*eval/other"):
        table_of(tmp_path, {}, {"m": "eval/other"})


@pytest.mark.parametrize(
    ("value", "level"),
    [("0", 0), ("16", 16), ("0.5", 0.5), ("20M", 20_000_000), ("full", "full"), (True, True), (0.2, 0.2), ([1], "[1]")],
)
def test_text_with_a_number_is_a_number(value, level):
    (key,) = read_keys({"k": "x"}, [])
    assert level_of(key, value) == level and type(level_of(key, value)) is type(level)
    (coded,) = read_keys({"k": {"source": "x", "values": {"full": "all", "*": "others"}}}, [])
    assert level_of(coded, value) == ("all" if value == "full" else "others")


def test_runs_have_the_same_origin_if_one_side_started_from_the_other(tmp_path):
    for name, start in (("base", ""), ("tuned", "elsewhere/base-0/main"), ("other", "elsewhere/third-0")):
        plant(tmp_path, name, {LOSS: 1.0}, arm=name, init={"path": start} if start else None)
    table = table_of(tmp_path, {"arm": "study.arm"}, {"loss": LOSS})
    parts = {name: table[table["arm"] == name] for name in ("base", "tuned", "other")}
    assert same_origin(parts["base"], parts["base"]) and same_origin(parts["tuned"], parts["base"])
    assert same_origin(parts["base"], parts["tuned"]) and not same_origin(parts["base"], parts["other"])


def test_derived_rows_have_the_rate_and_the_tokens_of_their_run(tmp_path):
    plant(tmp_path, "a", {LOSS: 2.0}, arm="x", optimizer={"lr": 0.1})
    plant(tmp_path, "b", {LOSS: 3.0}, arm="y", optimizer={"lr": 0.2})
    table = table_of(tmp_path, {"arm": "study.arm"}, {"loss": "loss"})
    rows = [{"run": name, "measure": "derived", "value": 1.0} for name in [*table["run"], None]]
    whole = inherited(pd.concat([table, pd.DataFrame(rows)], ignore_index=True))
    for name in (f"{SAME}learning_rate", f"{SAME}tokens"):
        assert whole[name].tolist()[:4] == [*table[name]] * 2 and table[name].notna().all()
        assert pd.isna(whole[name].iloc[4]), "rows of no run have none"
