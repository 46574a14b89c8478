"""What the frontier of forgetting leaves out, and what figures say of their intervals."""

import pandas as pd

from kleiber.studies.compare import chart_forms as forms


def test_settings_far_beyond_the_frontiers_are_counted_and_not_drawn():
    rows = [("full", 1.0, 0.2, True), ("full", 1.2, 0.1, True), ("rank 1", 1.3, 0.1, True), ("rank 1", 3.0, 2.0, False)]
    points = pd.DataFrame(rows, columns=["method", "target", "F", "best"]).assign(F_sd=0.01, lr=0.1, n=3, setting="")
    drawn = forms.frontier(points, ["full", "rank 1"]).to_dict()
    assert "1 outside" in str(drawn["title"]["subtitle"])
    assert max(row["target"] for table in drawn["datasets"].values() for row in table if "target" in row) == 1.3
    assert "loss 1.1 at" in str(forms.frontier(points, ["full", "rank 1"], 1.1).to_dict()["title"]["subtitle"])


def test_the_level_of_intervals_is_told_only_where_there_are_any():
    with_one, without = [{"lo": None}, {"lo": 0.1}], [{"lo": None}]
    assert [forms.interval_note(0.95, rows) for rows in (with_one, without)] == ["95% intervals over seeds", ""]
