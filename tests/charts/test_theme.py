"""Numbers and ticks are written as people read them, and the names of lines do not overlap."""

import re

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("altair")

import altair as alt

from kleiber.charts.series import line_chart
from kleiber.charts.theme import (
    KINDS,
    LINE,
    METHODS,
    TITLE_LINE,
    apply_theme,
    colors_of,
    count_tip,
    format_count,
    in_rows,
    kind_color,
    log_axis,
    log_ticks,
    loss_axis,
    method_of,
    pointed,
    round_count,
    sequential_colors,
    size_color,
    span,
    span_ticks,
    tick_text,
    title_lines,
    values_axis,
    with_group,
    with_title,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.125, "0.125"), (999.4, "999"), (999.6, "1k"), (12_400, "12.4k"), (4_000_000, "4M"), (1.5e9, "1.5B")],
)
def test_numbers_have_three_digits_and_a_suffix(number, text):
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(999_424, "1M"), (1_998_848, "2M"), (1024, "1,024"), (8192, "8,192"), (35_552, "35.6k"), (512, "512")],
)
def test_ticks_at_data_are_counts_that_a_reader_knows(number, text):
    assert tick_text(number) == text
    assert text in values_axis("x", "batch", [number]).to_dict()["axis"]["labelExpr"]


def test_labels_of_ticks_have_only_letters_of_one_font():
    for low in (5e10, 1e12):
        axis = log_axis("C", "compute", np.geomspace(low, 20 * low, 12)).to_dict()["axis"]
        assert not {"⁰", "⁻"} & set(axis["labelExpr"]) and ("'1e11'" in axis["labelExpr"]) == (low < 1e11)


def test_values_that_nearly_agree_have_one_tick():
    near = [1e6 * factor * miss for factor in (1, 2, 4) for miss in (1, 1.001, 1.015)]
    assert log_axis("D", "tokens", near).to_dict()["axis"]["values"] == [1e6, 2e6, 4e6]
    assert len(log_axis("D", "tokens", np.geomspace(1e4, 1e6, 200)).to_dict()["axis"]["values"]) > 2


def test_the_title_of_a_vertical_axis_is_no_longer_than_its_panel():
    title = pointed("loss above the best run of this size (%)", "lower")
    panel = alt.Chart(pd.DataFrame({"x": [1], "y": [1]})).mark_point().encode(x="x:Q", y=alt.Y("y:Q", title=title))
    drawn = in_rows([alt.layer(panel).properties(height=150), panel.properties(height=400)], "T").to_dict()
    cut, whole = drawn["concat"][0]["layer"][0]["encoding"]["y"]["title"], drawn["concat"][1]["encoding"]["y"]["title"]
    assert whole == title and " ".join(cut) == title.replace("\N{EM SPACE}", " ") and cut[-1] == "← better"
    assert max(map(len, cut)) * 4.9 <= 150
    unit = pointed("loss on the new text (nats per token)", "lower")
    assert title_lines(unit, 26) == ["loss on the new text", "(nats per token)\N{EM SPACE}← better"]


@pytest.mark.parametrize(("number", "text"), [(20_000, "20k"), (1e12, "10¹²"), (5e12, "5·10¹²"), (9.99e14, "10¹⁵")])
def test_large_ticks_are_powers_of_ten(number, text):
    assert tick_text(number) == text


def test_the_ticks_of_an_axis_are_in_the_notation_of_the_largest():
    axis = log_axis("C", "compute (FLOPs)", [3e9, 2e11]).to_dict()["axis"]
    labels = re.findall(r"'([^']+)'", axis["labelExpr"])
    assert len(labels) == len(axis["values"]) and all("10" in label for label in labels)


def test_ticks_are_round_or_at_each_factor_of_the_first():
    assert log_ticks(0.9, 11, None, 1.0) == [1, 2, 5, 10]
    assert log_ticks(0.9, 1100, None, 1.0) == [1, 10, 100, 1000]
    assert log_ticks(50, 900, 2, 100.0) == [100, 200, 400, 800]
    assert log_ticks(1.6, 510, None, 1.0) == [3, 10, 30, 100, 300]


def test_a_horizontal_axis_of_few_values_has_a_tick_at_each():
    axis = log_axis("N", "parameters", [59_560, 166_000, 59_560]).to_dict()["axis"]
    assert axis["values"] == [59_560, 166_000] and re.findall(r"'([^']+)'", axis["labelExpr"]) == ["59.6k", "166k"]
    assert log_axis("x", "tokens", [32, 48, 64, 96]).to_dict()["axis"]["values"] == [32, 48, 64, 96]
    assert log_axis("x", "", np.geomspace(10, 1000, 9)).to_dict()["axis"]["values"] == [10, 20, 50, 100, 200, 500, 1000]
    assert log_axis("y", "", [10, 700], kind=alt.Y).to_dict()["axis"]["values"] == [10, 20, 50, 100, 200, 500]


def test_a_short_logarithmic_axis_has_equally_spaced_ticks():
    assert log_ticks(1.2, 1.9, None, 1.2) == pytest.approx([1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9])
    assert log_ticks(0.0095, 0.028, None, 0.0095) == pytest.approx([0.01, 0.015, 0.02, 0.025])
    assert log_ticks(40, 120, None, 40) == pytest.approx([40, 60, 80, 100, 120])


def test_an_axis_covers_the_data_and_extends_by_the_given_factor():
    scale = log_axis("N", "parameters", [10.0, 1000.0], room=2.0).to_dict()["scale"]
    assert scale["type"] == "log" and scale["domain"] == pytest.approx([10 / 1.15, 2000])


def test_colors_are_distinct_and_in_order():
    assert len(set(sequential_colors(5))) == 5 and sequential_colors(1) == ["#440154"]
    colors = kind_color(["a", "b"]).to_dict()["scale"]
    assert colors == {"domain": ["a", "b"], "range": KINDS[:2]} and len({*KINDS}) == len(KINDS)
    named = kind_color(["plain", "Muon", "GELU", "x"]).to_dict()["scale"]["range"]
    assert named[1:3] == [METHODS["Muon"], METHODS["GELU"]], "a method has one color on all pages"
    assert named[0] == KINDS[0] and len({*named}) == 4
    assert kind_color(["c", "a"], order=["a", "b", "c"]).to_dict()["scale"]["range"] == [KINDS[2], KINDS[0]]


@pytest.mark.slow
@pytest.mark.parametrize(("half", "marks"), [(0.1, ["line", "rule", "point"]), (np.nan, ["line", "point"])])
def test_a_line_chart_has_intervals_only_where_there_are_seeds(half, marks):
    means = pd.DataFrame({"D": [1e6, 2e6], "arm": "a", "mean": [3.0, 2.5], "half": half, "seeds": 2})
    means = means.assign(lo=means["mean"] - half, hi=means["mean"] + half)
    chart = line_chart(means, "D", "tokens", "arm", "Loss vs tokens").to_dict()
    assert [layer["mark"]["type"] for layer in chart["layer"]] == marks and chart["title"] == "Loss vs tokens"
    two = line_chart(pd.concat([means, means.assign(arm="b")]), "D", "tokens", "arm", "Loss vs tokens").to_dict()
    assert [layer["mark"]["type"] for layer in two["layer"]] == [*marks, "text", "text"], "one line needs no name"


def test_lines_that_end_at_different_places_are_named_in_a_legend():
    means = pd.DataFrame({"D": [1e6, 2e6, 1e6, 4e6], "arm": ["a", "a", "b", "b"], "mean": [3.0, 2.5, 3.1, 2.4]})
    means = means.assign(lo=np.nan, hi=np.nan, half=np.nan, seeds=1)
    for part, marks, legend in (
        (means[:3], ["line", "point"], {"columns": 2}),
        (means[::2], ["line", "point", "text", "text"], None),
    ):
        chart = line_chart(part, "D", "tokens", "arm", "Loss vs tokens").to_dict()
        assert [layer["mark"]["type"] for layer in chart["layer"]] == marks
        assert chart["layer"][0]["encoding"]["color"]["legend"] == legend


def test_a_group_comes_before_the_subtitle_of_a_chart():
    for subtitle, expected in (("dashed: equality", "kind = a; dashed: equality"), ("", "kind = a")):
        plain = with_title(alt.Chart(pd.DataFrame()).mark_point(), "Loss", subtitle=subtitle)
        assert with_group(plain, "kind = a").to_dict()["title"] == {"text": "Loss", "subtitle": expected}


def test_long_titles_and_subtitles_are_cut_into_lines_that_fit_and_lose_no_word():
    title, notes = "word " * 30, "; ".join(f"note {number} of a figure with intervals" for number in range(6))
    shown = with_title(alt.Chart().mark_point(), title.strip(), subtitle=notes).to_dict()["title"]
    assert " ".join(shown["text"]) == title.strip() and "; ".join(shown["subtitle"]) == notes
    assert max(map(len, shown["text"])) <= TITLE_LINE and max(map(len, shown["subtitle"])) <= LINE
    assert len(shown["subtitle"]) < 6, "short notes share a line"
    for empty in ("", "  ", "; ", " " * 200):
        assert with_title(alt.Chart().mark_point(), empty, subtitle=empty).to_dict() is not None


def test_legends_are_above_figures_in_columns_that_fit():
    few, long = ["a", "b", "c"], ["an arm with a rather long name of its variant"] * 3
    assert kind_color(few, legend=alt.Legend()).to_dict()["legend"]["columns"] == 3
    assert (
        kind_color([f"{name} {at}" for at, name in enumerate(long)], legend=alt.Legend()).to_dict()["legend"]["columns"]
        == 1
    )
    assert apply_theme(alt.Chart().mark_point()).to_dict()["config"]["legend"]["orient"] == "top"


def test_variants_of_a_method_are_shades_of_its_color():
    kinds = ["plain", "LoRA, rank 1", "LoRA, rank 4", "LoRA, rank 16", "Muonic"]
    colors = colors_of(kinds)
    assert colors["LoRA, rank 1"] == METHODS["LoRA"] and len(set(colors.values())) == len(kinds)
    greens = [[int(colors[kind][at : at + 2], 16) for at in (1, 3, 5)] for kind in kinds[1:4]]
    assert all(np.all(np.diff(column) >= 0) for column in zip(*greens, strict=True)), "from the color to a pale one"
    assert [method_of(kind) for kind in kinds] == ["plain", "LoRA", "LoRA", "LoRA", ""]


def test_ticks_of_a_loss_have_equally_many_digits():
    axis = loss_axis(losses=[1.52, 2.03, np.nan]).to_dict()["axis"]
    assert axis["values"] == pytest.approx([1.5, 1.6, 1.7, 1.8, 1.9, 2.0]) and axis["format"] == ".1f"
    assert span_ticks([1.0, 1.0]) != [] and round_count(999_424) == "1M" and round_count(35_552) == "36k"


def test_two_methods_of_one_figure_have_two_colors():
    shared = [name for name in METHODS if METHODS[name] == METHODS["LoRA"]]
    colors = colors_of(["plain", *shared])
    assert len(shared) > 1 and len(set(colors.values())) == len(colors)
    assert colors[shared[0]] == METHODS["LoRA"]


def test_sizes_have_colors_and_numbers_tooltips():
    sizes = size_color(["1M", "2M"], title="N").to_dict()
    assert sizes["scale"] == {"domain": ["1M", "2M"], "range": sequential_colors(2)} and sizes["title"] == "N"
    assert count_tip("C").to_dict() == {"field": "C", "type": "quantitative", "format": ".3s", "title": "C"}


@pytest.mark.slow
def test_a_figure_of_many_rows_is_drawn():
    means = pd.DataFrame({"D": np.geomspace(1, 1e9, 6000), "arm": "a", "mean": 3.0, "lo": 2.9, "hi": 3.1, "half": 0.1})
    chart = line_chart(means.assign(seeds=2), "D", "tokens", "arm", "Loss vs tokens").to_dict()
    assert max(len(rows) for rows in chart["datasets"].values()) == 6000


def test_an_axis_over_less_than_one_tick_has_its_ends_as_ticks():
    assert log_axis("x", "", [0.012, 0.03]).to_dict()["axis"]["values"] == [0.012, 0.03]
    assert log_axis("x", "", [0.03]).to_dict()["axis"]["values"] == [0.03]


def test_axes_hold_their_values_with_room_on_both_sides():
    low, high = span([1.0, 3.0]).domain
    assert low == pytest.approx(0.9) and high == pytest.approx(3.1)
    low, high = span([2.0, 2.0]).domain
    assert low < 2.0 < high
    axis = values_axis("share", "share", [1.0, 0.01, 1.0], "~%").to_dict()
    assert axis["axis"]["values"] == [0.01, 1.0]
