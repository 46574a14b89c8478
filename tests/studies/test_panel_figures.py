"""Figures of a panel are checked against its tables, measures and keys, and are drawn where they show something."""

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.panel import Panel
from kleiber.studies.panel_declaration import Table
from kleiber.studies.panel_figures import check, in_series, note_of, selected

from .panels import LOSS, plant

TABLES = {
    "Means": Table(title="Means", measures=["loss", "share"], by=["arm", "size"]),
    "Gaps": Table(title="Gaps", measures=["loss"], by=["size"], contrast={"each": {"arm": "all"}, "of": {}}),
}
GOOD = {"name": "a", "title": "A", "form": "lines", "table": "Means", "x": "size"}
SCATTER = {"form": "scatter", "x": "loss", "y": "share"}
MEASURES, KEYS = ["loss", "share"], ["arm", "size", "data"]


def test_figures_of_known_tables_measures_and_keys_are_accepted():
    scatter = {**GOOD, **SCATTER, "name": "b", "fit": {"by": "arm"}}
    check([GOOD, {**GOOD, "table": "Gaps", "series": "arm"}, scatter], TABLES, MEASURES, KEYS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "pie"}, r"form=pie"),
        ({"table": "Mean"}, r"table=Mean"),
        ({"x": "data"}, r"figures\[0\]\.x: data"),
        ({"series": ["arm", "sise"]}, r"series: sise.*'size'"),
        ({"measures": "accuracy"}, r"measures: accuracy"),
        ({"serie": "arm"}, r"figures\[0\]\.serie"),
        ({"where": {"depth": 2}}, r"where: depth"),
        ({"title": None, "x": None}, None),
        ({**SCATTER, "path": {"table": "Means", "x": "loss", "y": "share", "order": "depth"}}, r"path\.order: depth"),
        ({**SCATTER, "path": {"tabel": "Means"}}, r"path\.tabel"),
        ({**SCATTER, "fit": {"by": "data"}}, r"fit\.by: data"),
        ({**SCATTER, "pale": {"data": "a"}}, r"pale: data"),
        ({"form": "estimates", "x": None, "x_titles": {"accuracy": "share"}}, r"x_titles: accuracy"),
        ({"form": "estimates", "x": None, "limits": {"accuracy": [0, 1]}}, r"limits: accuracy"),
    ],
)
def test_a_wrong_figure_is_refused_with_its_key(change, message):
    node = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message or r"figures\[0\] needs title"):
        check([node], TABLES, MEASURES, KEYS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    for arm in ("b", "a"):
        for size in (32, 64):
            for seed in range(2):
                plant(folder, f"{arm}{size}", {LOSS: 1.0 + seed, "human": 0.7}, seed, arm=arm, model={"width": size})
    return read_runs(folder)


def panel(**options):
    loss = {"source": LOSS, "label": "loss", "unit": "nats", "reference": {"at": "human", "label": "human text"}}
    base = {
        "keys": {"arm": {"source": "study.arm", "labels": {"b": "first", "a": "second"}}, "size": "model.width"},
        "measures": {"loss": loss}, "means": [{"title": "Means", "by": ["arm", "size"]}],
        "contrasts": [{"title": "Gaps", "of": {"arm": "a"}, "against": {"arm": "b"}, "by": ["size"]}],
    }  # fmt: skip
    return Panel(**{**base, **options})


def test_lines_over_one_value_are_not_drawn(runs):
    lines = [GOOD, {**GOOD, "name": "gaps", "table": "Gaps"}]
    assert list(panel(figures=lines).analyze(runs).figures) == ["a", "gaps"]
    small = [run for run in runs if run.config["model"]["width"] == 32]
    assert list(panel(figures=lines).analyze(small).figures) == []


def test_a_scatter_of_a_measure_that_no_cell_has_is_not_drawn(runs):
    measures = {"loss": LOSS, "human": "human", "other": "absent"}
    scatter = {"name": "s", "title": "S", "form": "scatter", "table": "Means", "x": "loss"}
    figures = [{**scatter, "y": "human"}, {**scatter, "name": "none", "y": "other"}]
    means = [{"title": "Means", "by": ["arm", "size"]}]
    findings = panel(measures=measures, means=means, contrasts=[], figures=figures).analyze(runs)
    assert list(findings.figures) == ["s"]


def test_means_have_the_reference_of_their_measure_and_differences_have_0(runs):
    view = panel().view(runs)
    tables = {title: view.rows_of(table) for title, table in view.tables.items()}
    means, gaps = (selected({**GOOD, "table": title}, view, tables) for title in ("Means", "Gaps"))
    assert means["reference"].tolist() == pytest.approx([0.7] * 4) and gaps["reference"].tolist() == [0.0, 0.0]
    chosen = selected({**GOOD, "where": {"arm": "a", "size": "largest"}}, view, tables)
    assert chosen[["arm", "size"]].values.tolist() == [["a", 64]]


def test_series_are_named_and_ordered_as_levels_are(runs):
    view = panel().view(runs)
    rows = selected(GOOD, view, {"Means": view.rows_of(view.tables["Means"])})
    named, order = in_series(rows, {**GOOD, "series": ["arm", "size"]}, view)
    assert order == ["first, 32", "first, 64", "second, 32", "second, 64"] and set(named["series"]) == set(order)


@pytest.mark.parametrize(
    ("samples", "by", "named"),
    [
        (["seed"], ["size"], "2 seeds"),
        (["size", "seed"], ["arm"], "4 combinations of width and seed"),
        (["size", "seed"], ["size"], "2 seeds"),
        (["size"], ["arm"], "2 values of width"),
    ],
)
def test_a_subtitle_says_what_the_samples_of_a_point_are(runs, samples, by, named):
    keys = {"arm": "study.arm", "size": {"source": "model.width", "title": "width"}}
    figure = {"name": "a", "form": "estimates", "table": "Means", "title": "A", "series": by}
    means = [{"title": "Means", "by": by, "measures": "loss"}]
    study = panel(keys=keys, samples=samples, means=means, contrasts=[], figures=[figure])
    view = study.view(runs)
    (table,) = view.tables.values()
    rows = selected(figure, view, {"Means": view.rows_of(table)})
    assert f"over {named};" in note_of(figure, view, rows)
    alone = study.view([run for run in runs if run.config["seed"] == 0])
    assert (", one seed each" in note_of(figure, alone, rows)) == ("values of" in named or "combinations" in named)
