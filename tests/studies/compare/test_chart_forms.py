"""What figures say of their intervals, and where they have ticks."""

import itertools

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from kleiber.studies.compare import chart_forms as forms


def test_the_level_of_intervals_is_told_only_where_there_are_any():
    with_one, without = [{"lo": None}, {"lo": 0.1}], [{"lo": None}]
    assert [forms.interval_note(0.95, rows) for rows in (with_one, without)] == ["bars: 95% intervals", ""]


def test_a_note_says_how_many_seeds_a_point_has_and_what_holds_together():
    rows = [{"lo": 0.1, "n": 3}, {"lo": 0.2, "n": 5}]
    assert forms.interval_note(0.9, rows, "mean differences").startswith("points: mean differences over 3 to 5 seeds;")
    joint = [{**row, "level": 0.97} for row in rows]
    assert "simultaneous 90% intervals" in forms.interval_note(0.9, joint)
    assert forms.interval_note(0.9, rows, pooled=True).endswith("(pooled noise)")
    mixed = forms.interval_note(0.9, [joint[0], {**rows[1], "level": 0.9}])
    assert "simultaneous 90%" not in mixed and mixed.endswith("(with end caps: simultaneous)")


def test_only_points_that_would_hide_each_other_are_moved_off_their_value():
    rows = pd.DataFrame({
        "x": [1, 1, 1, 2, 2, 2], "series": ["a", "b", "c"] * 2, "panel": "", "value": [1.0, 1.1, 3.0, 1.0, 2.0, 3.0],
        "lo": [0.9, 1.0, 2.9, 0.9, 1.9, 2.9], "hi": [1.1, 1.2, 3.1, 1.1, 2.1, 3.1],
    })  # fmt: skip
    assert forms.shifted(rows, "x", ["a", "b", "c"], linear=True, by=0.02) == [0.99, 1.01, 1, 2, 2, 2]
    panels = rows.assign(panel=["p", "q", "p"] * 2)
    assert forms.shifted(panels, "x", ["a", "b", "c"], linear=True) == rows["x"].tolist(), "each panel has its points"


@given(st.sets(st.floats(1e-4, 1.0), min_size=1, max_size=12))
def test_ticks_of_a_logarithmic_axis_are_apart_and_have_its_ends(values):
    kept = forms.apart(values)
    assert set(kept) <= values and kept == sorted(kept) and {min(values), max(values)} <= set(kept)
    least = (max(values) / min(values)) ** forms.NEAREST
    assert all(high >= low * least * (1 - 1e-9) for low, high in itertools.pairwise(kept))


def test_rows_have_caps_where_the_intervals_of_some_hold_together():
    rows = pd.DataFrame({"level": [0.97, 0.9, None]})
    assert forms.with_caps(rows, 0.9)["capped"].tolist() == [True, False, False]
    assert not forms.with_caps(rows[:1], 0.9)["capped"].any(), "all hold together, and the note says so"
    assert not forms.with_caps(pd.DataFrame({"lo": [0.1]}), 0.9)["capped"].any()
