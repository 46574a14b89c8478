"""What the frontier of forgetting leaves out, and what figures say of their intervals."""

import json

import pandas as pd

from kleiber.studies.compare import chart_forms as forms


def test_settings_far_beyond_the_frontiers_are_counted_and_not_drawn():
    rows = [("full", 1.0, 0.2, True), ("full", 1.2, 0.1, True), ("rank 1", 1.3, 0.1, True), ("rank 1", 3.0, 2.0, False)]
    points = pd.DataFrame(rows, columns=["method", "target", "F", "best"]).assign(F_sd=0.01, lr=0.1, n=3, setting="")
    drawn = forms.frontier(points, ["full", "rank 1"]).to_dict()
    assert "outside the axes: 1 of LoRA, rank 1" in str(drawn["title"]["subtitle"])
    assert "all 1 of LoRA" in str(forms.outside(pd.Series(["LoRA", "full"]), pd.Series([False, True])))
    assert max(row["target"] for table in drawn["datasets"].values() for row in table if "target" in row) == 1.3
    assert "loss 1.1 at" in str(forms.frontier(points, ["full", "rank 1"], 1.1).to_dict()["title"]["subtitle"])
    near = forms.frontier(points, ["rank 1", "full"], 1.0).to_dict()
    assert '"domain": ["full fine-tuning"], "range": ["square"]' in json.dumps(near), (
        "a method outside has no entry, and its symbol"
    )


def test_every_setting_inside_the_axes_is_drawn():
    rows = [("full", 1.0, 0.2, True), ("full", 1.06, 0.1, True), ("rank 1", 1.062, 0.15, False)]
    points = pd.DataFrame(rows, columns=["method", "target", "F", "best"]).assign(F_sd=0.0, lr=0.1, n=3, setting="")
    drawn = forms.frontier(points, ["full", "rank 1"], 1.0).to_dict()  # settings up to 1.06 are near
    assert "outside the axes" not in str(drawn["title"]["subtitle"])
    assert 1.062 in {row.get("target") for table in drawn["datasets"].values() for row in table}


def test_the_level_of_intervals_is_told_only_where_there_are_any():
    with_one, without = [{"lo": None}, {"lo": 0.1}], [{"lo": None}]
    assert [forms.interval_note(0.95, rows) for rows in (with_one, without)] == ["bars: 95% intervals", ""]


def test_a_note_says_how_many_seeds_a_point_has_and_what_holds_together():
    rows = [{"lo": 0.1, "n": 3}, {"lo": 0.2, "n": 5}]
    assert forms.interval_note(0.9, rows, "mean differences").startswith("points: mean differences over 3 to 5 seeds;")
    joint = [{**row, "level": 0.97} for row in rows]
    assert "that hold together" in forms.interval_note(0.9, joint) and "pooled" in forms.interval_note(
        0.9, rows, pooled=True
    )
    mixed = forms.interval_note(0.9, [joint[0], {**rows[1], "level": 0.9}])
    assert "hold together" not in mixed and "decided together" in mixed
