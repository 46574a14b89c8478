"""Keys, measures and tables are read from a config, patterns of names match metrics, and wrong nodes name their key."""

import pytest

from kleiber.config.errors import ConfigError
from kleiber.studies.panel_declaration import (
    MEANS,
    captured_keys,
    filled,
    pattern_of,
    read_function,
    read_keys,
    read_measures,
    read_tables,
)
from kleiber.types.score import Score


@pytest.mark.parametrize(
    ("source", "metric", "parts"),
    [
        ("val/docs/loss", "val/docs/loss", {}),
        ("val/{data}/loss", "val/docs/loss", {"data": "docs"}),
        ("val/{data}/loss", "val/builtin/docs/loss", None),
        ("val/{data:path}/loss", "val/builtin/docs/loss", {"data": "builtin/docs"}),
        ("eval/*/loss", "eval/docs/loss", {"_0": "docs"}),
        ("eval/*/loss", "eval/builtin/docs/loss", None),
        ("eval/**/loss", "eval/builtin/docs/loss", {"_0": "builtin/docs"}),
        ("eval/docs[/{way}]/loss", "eval/docs/loss", {"way": None}),
        ("eval/docs[/{way}]/loss", "eval/docs/knn/loss", {"way": "knn"}),
        ("val/docs.loss", "val/docs/loss", None),
    ],
)
def test_patterns_match_names_of_metrics(source, metric, parts):
    match = pattern_of(source).fullmatch(metric)
    assert (match and match.groupdict()) == parts


def test_a_name_is_filled_with_the_parts_of_another():
    parts = pattern_of("eval/**/{way}/tokens{n}/loss").fullmatch("eval/a/b/knn/tokens4/loss").groupdict()
    assert filled("start:eval/**/{way}/loss", parts) == "start:eval/a/b/knn/loss"


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"val/\{a\}/\{a\}"):
        pattern_of("val/{a}/{a}")


def test_keys_of_names_of_metrics_come_last_and_a_key_needs_a_source():
    measures = read_measures({"loss": "val/{data}/loss", "gap": {"source": "eval/{data}/{way}"}})
    assert captured_keys(measures) == ["data", "way"]
    keys = read_keys({"way": {"default": "alone"}, "arm": "study.arm"}, ["data", "way"])
    assert [key.name for key in keys] == ["way", "arm", "data"] and keys[1].sources == ["study.arm"]
    with pytest.raises(ValueError, match=r"study\.keys\.size needs a source"):
        read_keys({"size": {"title": "size"}}, ["way"])
    with pytest.raises(ValueError, match=r"study\.keys\.seed"):
        read_keys({"seed": "seed"}, [])


def test_values_are_called_by_their_label_a_template_or_themselves():
    (noise,) = read_keys({"noise": {"source": "data.noise", "labels": {"0.0": "none wrong", "*": "{:.0%} wrong"}}}, [])
    assert [noise.label(value) for value in (0.0, 0.2)] == ["none wrong", "20% wrong"]
    assert noise.label([0.0, 0.2]) == "none wrong or 20% wrong"
    (size,) = read_keys({"size": {"source": "stage.params.total", "labels": "{} parameters"}}, [])
    assert size.label(59584) == "59,584 parameters" and size.label(59584, short=True) == "59.6k parameters"
    (arm,) = read_keys({"arm": "study.arm"}, [])
    assert arm.label("dense") == "dense" and arm.label(True) == "True"


def test_what_a_measure_does_not_state_is_as_the_runs_recorded_it():
    recorded = Score(1.0, unit="nats per token", better="lower", label="loss on docs")
    loss, score = read_measures(
        {"loss": "val/docs/loss", "score": {"source": "x/y", "better": "higher", "unit": "points"}}
    )
    loss, score = loss.as_recorded(recorded), score.as_recorded(recorded)
    assert (loss.better, loss.title, score.better, score.unit) == (
        "lower", "loss on docs (nats per token)", "higher", "points",
    )  # fmt: skip


def test_a_measure_may_have_limits_and_a_reference():
    (share,) = read_measures({"share": {"source": "x", "limits": [0, 1], "reference": {"at": 0.5, "label": "chance"}}})
    assert share.limits == (0.0, 1.0) and (share.reference, share.called) == (0.5, "chance")


WRONG = {
    "without a source": ({"a": {"label": "x"}}, r"study\.measures\.a needs a source"),
    "unknown key": ({"a": {"source": "x", "units": "nats"}}, r"study\.measures\.a\.units.*unit"),
    "direction": ({"a": {"source": "x", "better": "more"}}, r"better=more"),
    "limits": ({"a": {"source": "x", "limits": [0]}}, r"limits=\[0\]"),
    "reference": ({"a": {"source": "x", "reference": {"label": "chance"}}}, r"reference="),
    "source": ({"a": {"source": 3}}, r"study\.measures\.a\.source=3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_measure_that_is_wrong_is_refused_with_its_key(case):
    node, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        read_measures(node)


def test_a_measure_that_a_function_computes_has_no_source():
    (measure,) = read_measures({"agreement": {"label": "pairs in order"}}, sources=False)
    assert measure.sources == [] and measure.label == "pairs in order"


def test_tables_name_known_measures():
    (table,) = read_tables(
        [{"title": "Means", "by": "arm", "noise": "pooled", "joint": True}], "study.means", ["a"], MEANS
    )
    assert (table.measures, table.by, table.pooled, table.joint) == (["a"], ["arm"], [], True)
    for node, message in (
        ({"by": ["arm"]}, r"study\.means\[0\] needs a title"),
        ({"title": "x", "measures": "b"}, r"study\.means\[0\]\.measures: b"),
        ({"title": "x", "noise": "both"}, r"study\.means\[0\]\.noise=both"),
        ({"title": "x", "against": {}}, r"study\.means\[0\]\.against"),
    ):
        with pytest.raises(ValueError, match=message):
            read_tables([node], "study.means", ["a"], MEANS)


def test_a_function_of_a_table_and_runs_computes_measures_and_nothing_else_is_one(tmp_path, monkeypatch):
    assert read_function("kleiber.studies.loss_lines").__name__ == "loss_lines"
    (tmp_path / "my_lab.py").write_text("def shares(table, runs):\n    return table\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="KLEIBER_EXTENSIONS"):
        read_function("my_lab.shares")
    monkeypatch.setenv("KLEIBER_EXTENSIONS", "my_lab")
    assert read_function("my_lab.shares").__module__ == "my_lab"
    for name in ("kleiber.studies.Panel", "kleiber.studies.agreement", "kleiber.fit"):
        with pytest.raises(ConfigError, match=name):
            read_function(name)
