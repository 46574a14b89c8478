"""Each form of figure draws its rows: series in one color, references, panels, runs, fitted lines and paths."""

import json

import numpy as np
import pandas as pd
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.compare.chart_forms import shifted
from kleiber.studies.panel import Panel
from kleiber.studies.panel_charts import are_clear, beyond, far_away, within_limits

from .colors import colors
from .panels import LOSS, draw_all, plant

SHOWN = {"table": "Means", "title": "T"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("charts")
    for arm, gain in (("base", 0.0), ("plain", 0.1), ("new", 0.3)):
        for size in (32, 64, 128):
            for seed in range(2):
                loss = 3.0 - gain - size / 100 + 0.01 * seed
                metrics = {LOSS: loss, "share": loss / 4, "at/0.1": loss, "at/0.5": loss - 1}
                plant(folder, f"{arm}{size}", metrics, seed, arm=arm, model={"width": size, "pixels": 100 * size})
    return read_runs(folder)


def charts(runs, *figures, **options):
    base = {
        "keys": {"arm": "study.arm", "size": {"source": "model.width", "title": "width"}, "pixels": "model.pixels"},
        "measures": {
            "loss": {"source": LOSS, "label": "loss", "unit": "nats", "reference": {"at": 2.0, "label": "human text"}},
            "share": {"source": "share", "label": "share"}, "at": "at/{weight}",
        },
        "means": [
            {"title": "Means", "measures": ["loss", "share"], "by": ["arm", "size"]},
            {"title": "Weights", "measures": ["at"], "by": ["arm", "weight"]},
        ],
        "contrasts": [
            {"title": "Gaps", "measures": "loss", "of": {"arm": "new"}, "against": {"arm": "plain"}, "by": ["size"]}
        ],
    }  # fmt: skip
    return draw_all(Panel(**{**base, **options}, figures=figures).analyze(runs))


def datasets(chart):
    """The rows of all data of a chart."""
    return [row for rows in chart["datasets"].values() for row in rows]


@pytest.mark.slow
def test_estimates_have_a_panel_for_each_measure_and_a_line_for_each_cell(runs):
    every = {**SHOWN, "form": "estimates", "series": "arm", "line": ["arm", "size"]}
    figures = charts(
        runs,
        {**every, "name": "panels", "panel": "measure"},
        {**every, "name": "sorted", "measures": "loss", "sort": True},
    )
    assert [panel["title"]["text"] for panel in figures["panels"]["concat"]] == ["loss", "share"]
    named = [row for row in datasets(figures["sorted"]) if "name" in row]
    arms = [row["name"].partition(",")[0] for row in named]
    assert arms == ["new"] * 3 + ["plain"] * 3 + ["base"] * 3, "by their means, lines of an arm together"
    assert {row["name"] for row in named} >= {"base, 32", "new, 128"}
    below = [panel["layer"][-1]["encoding"]["x"]["title"] for panel in figures["panels"]["concat"]]
    assert below[0].startswith("nats") and "nats" not in below[1], "each panel has its unit below"


@pytest.mark.slow
def test_lines_are_named_at_their_ends_and_reach_the_reference(runs):
    lines = {**SHOWN, "form": "lines", "x": "size", "measures": "loss", "series": "arm"}
    figures = charts(runs, {**lines, "name": "one"}, {**lines, "name": "runs", "runs": True})
    one = figures["one"]
    assert "dashed gray: human text" in str(one["title"]["subtitle"]) and "90% intervals" in str(
        one["title"]["subtitle"]
    )
    assert any(row.get("reference") == 2.0 for row in datasets(one))
    assert "text" in str(one["layer"][-1]["mark"]), "lines that end together are named there"
    assert "intervals" not in str(figures["runs"]["title"]["subtitle"])
    assert len([row for row in datasets(figures["runs"]) if row.get("run")]) == 18


def test_names_stand_at_lines_only_where_they_fit_and_no_dashed_line_strikes_them():
    names = pd.DataFrame({"value": [1.0, 2.0], "height": [1.0, 2.0], "reference": [np.nan, np.nan]})
    assert are_clear(names, spread=2.0)
    assert not are_clear(names.assign(height=[1.0, 2.2]), spread=2.0), "a name away from its line"
    assert not are_clear(names.assign(reference=1.01), spread=2.0), "a name on the dashed line"


def test_intervals_end_at_the_limits_of_their_measure_where_there_are_any():
    rows = pd.DataFrame({"measure": ["share", "loss"], "lo": [-0.2, -0.2], "hi": [1.2, np.nan]})
    cut = within_limits(rows, {"share": [0, 1]})
    assert cut["lo"].tolist() == [0.0, -0.2] and cut["hi"].iloc[0] == 1.0 and np.isnan(cut["hi"].iloc[1])
    pd.testing.assert_frame_equal(within_limits(rows, {}), rows)


def test_panels_of_several_keys_are_in_the_order_of_the_first_and_have_one_scale(runs):
    node = {**SHOWN, "name": "a", "form": "estimates", "line": "size", "panel": ["arm", "measure"]}
    (chart,) = charts(runs, {**node, "x_titles": {"share": "share of all"}}).values()
    headings = [panel["title"]["text"] for panel in chart["concat"]]
    assert headings == [f"{arm}, {name}" for arm in ("base", "new", "plain") for name in ("loss", "share")]
    axes = [panel["layer"][-1]["encoding"]["x"] for panel in chart["concat"]]
    assert len({str(axis["scale"]["domain"]) for axis in axes}) == 1
    assert [axis["title"].partition("\N{EM SPACE}")[0] for axis in axes[:2]] == ["nats", "share of all"]


def test_lines_of_differences_have_0_for_reference_and_no_name_of_another(runs):
    (chart,) = charts(runs, {"name": "a", "form": "lines", "table": "Gaps", "x": "size", "title": "G"}).values()
    assert any(row.get("reference") == 0 for row in datasets(chart)) and "human text" not in str(chart["title"])


@pytest.mark.slow
def test_lines_begin_at_a_level_and_have_a_panel_and_a_dash_for_others(runs):
    node = {**SHOWN, "name": "a", "form": "lines", "x": "size", "series": "arm", "begin": {"arm": "base"},
            "panel": "measure", "linear": True}  # fmt: skip
    (chart,) = charts(runs, node).values()
    assert [panel["title"] for panel in chart["concat"]] == ["loss", "share"]
    assert set(colors(chart)) == {"plain", "new"}
    (other,) = charts(runs, {**node, "y_titles": {"loss": "nats of loss"}, "x_as": "pixels"}).values()
    assert other["concat"][0]["layer"][-1]["encoding"]["y"]["title"] == "nats of loss"
    assert {row["size"] for row in datasets(other) if "size" in row} == {3200, 6400, 12800}
    (dashed,) = charts(runs, {**node, "series": [], "dash": "arm", "begin": None, "measures": "loss"}).values()
    assert {row["dash"] for row in datasets(dashed) if "dash" in row} == {"base", "plain", "new"}


@pytest.mark.slow
def test_a_series_has_one_color_in_all_figures(runs):
    estimates = {**SHOWN, "name": "a", "form": "estimates", "series": "arm", "measures": "loss"}
    lines = {**SHOWN, "name": "b", "form": "lines", "x": "size", "series": "arm", "measures": "loss",
             "where": {"arm": ["plain", "new"]}}  # fmt: skip
    scatter = {**SHOWN, "name": "c", "form": "scatter", "x": "loss", "y": "share", "series": "arm", "shape": "size"}
    seen = {}
    for chart in charts(runs, estimates, lines, scatter).values():
        for name, color in colors(chart).items():
            assert seen.setdefault(name, color) == color
    assert set(seen) == {"base", "plain", "new"}


@pytest.mark.slow
def test_a_scatter_has_points_of_runs_a_fitted_line_and_a_path(runs):
    scatter = {**SHOWN, "form": "scatter", "x": "loss", "y": "share", "series": "arm"}
    path = {"table": "Weights", "where": {"arm": "new"}, "x": "at", "y": "at", "order": "weight"}
    figures = charts(
        runs,
        {**scatter, "name": "fit", "runs": "only", "fit": {"where": {"arm": "base"}, "by": "arm"}},
        {**scatter, "name": "means"},
        {**scatter, "name": "both", "runs": True, "path": path},
    )
    fitted = [row for row in datasets(figures["fit"]) if "run" not in row and "share" in row and "loss" in row]
    slope = {round(row["share"] / row["loss"], 9) for row in fitted if "height" not in row and "form" not in row}
    assert slope == {0.25}, "share is a quarter of loss in every run"
    assert len([row for row in datasets(figures["means"]) if "form" in row]) == 9
    assert len([row for row in datasets(figures["both"]) if row.get("run")]) == 18


def test_claims_are_drawn_with_the_intervals_that_decide_them(runs):
    stated = [{"of": {"arm": "new"}, "against": {"arm": arm}, "equal": "learning_rate"} for arm in ("plain", "base")]
    stated[0]["margin"] = 0.05
    node = {"name": "a", "form": "estimates", "table": "Claims", "title": "C", "names": {"base": "start"}}
    gaps = {"name": "b", "form": "estimates", "table": "Arms", "line": "arm", "title": "G"}
    contrasts = [{"title": "Arms", "of": {"arm": "new"}, "against": {"arm": "plain"}, "measures": "loss"}]
    found = Panel(
        keys={"arm": "study.arm", "size": "model.width"}, measures={"loss": {"source": LOSS, "better": "lower"}},
        claims=stated, figures=[node, {**gaps, "line": []}], contrasts=contrasts,
    ).analyze(runs)  # fmt: skip
    figures = draw_all(found)
    labels = {row["name"]: row for row in datasets(figures["a"]) if "name" in row}
    assert all(label.partition("\n")[2].startswith("claimed below ") for label in labels), "the claim and its verdict"
    drawn = {label.partition("\n")[0]: row for label, row in labels.items()}
    assert [*drawn] == ["new \N{MINUS SIGN} start", "new \N{MINUS SIGN} plain"], "sorted by effect"
    for result, other in zip(found.claims, ("plain", "start"), strict=True):
        row = drawn[f"new \N{MINUS SIGN} {other}"]
        assert [row["value"], row["lo"], row["hi"]] == [getattr(result.estimate, end) for end in ("value", "lo", "hi")]
    assert drawn["new \N{MINUS SIGN} plain"]["other"] == -0.05 and drawn["new \N{MINUS SIGN} start"]["other"] is None
    assert "simultaneous" in str(figures["a"]["title"]["subtitle"]) and "ticks" in str(figures["a"]["title"])
    (row,) = [row for row in datasets(figures["b"]) if "value" in row]
    assert (row["lo"], row["hi"]) == (found.claims[0].estimate.lo, found.claims[0].estimate.hi), "as on the page"


def test_series_that_a_line_leaves_out_stand_side_by_side_under_their_names(runs):
    node = {**SHOWN, "name": "a", "form": "estimates", "measures": "loss", "series": "size", "line": "arm"}
    (chart,) = charts(runs, {**node, "names": {"32": "small"}}).values()
    named = [row for row in datasets(chart) if "name" in row]
    assert {row["name"] for row in named} == {"base", "plain", "new"} and "small" in colors(chart)
    assert "yOffset" in str(chart)


def test_points_of_a_scatter_are_joined_colored_by_a_number_and_compared_with_equality(runs):
    node = {**SHOWN, "form": "scatter", "x": "loss", "y": "share"}
    joined = {**node, "name": "a", "series": "arm", "join": ["arm", "size"], "log": True}
    colored = {**node, "name": "b", "color": "size", "equality": True, "pale": {"arm": "base"}}
    figures = charts(runs, joined, colored)
    paths = [row for row in datasets(figures["a"]) if "path" in row]
    assert len({row["path"] for row in paths}) == 3 and '"type": "log"' in json.dumps(figures["a"])
    ends = [row for row in datasets(figures["b"]) if "value" in row and row["value"] == row.get("loss")]
    *_, pale, strong = (layer["mark"] for layer in figures["b"]["layer"])
    assert pale["opacity"] < strong["opacity"] == 1
    assert len(ends) == 2 and "size" in json.dumps(figures["b"]["layer"][-1]["encoding"]["color"])


def test_pale_points_far_from_the_others_do_not_stretch_the_axes():
    points = pd.DataFrame({"loss": [2.0, 2.2, 2.3, 4.0, 2.1], "share": [0.1, 0.2, 0.0, 0.1, 0.5]})
    pale = np.array([False, False, True, True, True])
    assert far_away(points, pale).tolist() == [False, False, False, True, True]
    assert not far_away(points, np.full(5, True)).any()
    left_out = points[far_away(points, pale)].assign(series="mixtures")
    assert beyond(left_out, "loss", "loss") == "beyond the axes: 2 of the mixtures, with a loss up to 4"
    assert beyond(left_out[:0], "loss", "loss") == ""


def test_a_matrix_and_a_distribution_show_their_cells(runs):
    matrix = {**SHOWN, "name": "m", "form": "matrix", "x": "size", "y": "arm", "measures": "loss"}
    ticks = {"name": "d", "form": "distribution", "measures": "loss", "series": "arm", "title": "D"}
    figures = charts(runs, matrix, ticks)
    assert len([row for row in datasets(figures["m"]) if "arm" in row]) == 9
    assert len(datasets(figures["d"])) == 18


def test_lines_that_overlap_are_moved_apart_evenly_around_their_values(runs):
    view = Panel(keys={"arm": "study.arm", "size": "model.width"}, measures={"loss": LOSS}).view(runs)
    rows = view.table.assign(series=view.table["arm"], value=1.0)
    moved = rows.assign(at=shifted(rows, "size", ["base", "plain", "new"], linear=True))
    assert (moved[moved["series"] == "plain"]["at"] == moved[moved["series"] == "plain"]["size"]).all()
    gaps = (moved["at"] - moved["size"].astype(float)).groupby(moved["series"]).mean()
    assert gaps["base"] == pytest.approx(-gaps["new"]) and gaps["base"] < 0
    assert shifted(rows, "size", [], linear=False) == rows["size"].astype(float).tolist()
