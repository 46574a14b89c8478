"""The source of every value of a composed config: the last file that sets it, an override, or a default."""

import pytest

from kleiber.config.compose import Composer
from kleiber.config.errors import ConfigError
from kleiber.config.provenance import Sources, find_sources
from kleiber.launch.cli import main

OVERRIDES = ["model=moe", "model.depth=3", "budget.tokens=1M", "experiment=smoke", "retention=[replay]"]


@pytest.fixture(scope="module")
def composed():
    return find_sources(Composer(), OVERRIDES)


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("model.depth", "override"),
        ("model.aspect", "conf/model/gpt.yaml"),
        ("model.context", "conf/experiment/smoke.yaml"),
        ("model.mlp.k", "conf/model/mlp/moe.yaml"),
        ("model.mlp.router._target_", "conf/model/router/topk.yaml"),
        ("budget.tokens", "override"),
        ("budget.steps", "cleared by another key of the budget"),
        ("batch.tokens", "conf/train.yaml"),
        ("optimizer.betas", "conf/optimizer/adamw.yaml"),
        ("retention.replay.fraction", "conf/retention/replay.yaml"),
        ("adapter", "conf/train.yaml"),
        ("root", "conf/train.yaml: ${oc.env:KLEIBER_ROOT,multirun}"),
    ],
)
def test_the_source_is_the_last_that_sets_the_value(composed, key, source):
    assert composed.of(key) == source


@pytest.mark.slow
def test_sources_do_not_depend_on_what_was_asked_before():
    cells = [["model=moe", "optimizer.lr=0.1"], ["model=moe", "+retention=replay"], ["model=moe"], ["model.depth=3"]]
    composer = Composer()
    for overrides in (*cells, *cells):
        assert find_sources(composer, overrides) == find_sources(Composer(), overrides)


def test_a_mapping_is_merged_and_a_value_replaces_what_was_below():
    sources = Sources({})
    sources.set("", {"a": {"b": 1, "c": {}}}, "first")
    sources.set("a", {"b": 2}, "second")
    assert (sources.of("a.b"), sources.of("a.c"), sources.of("x")) == ("second", "first", "default")
    sources.set("a", {}, "third")
    assert sources.of("a.b") == "second"
    sources.set("a", None, "fourth")
    assert sources.of("a.b") == "fourth"


def test_completed_values_have_the_named_source_unless_they_were_overridden():
    sources = Sources({"a.b": "override", "a.c": "file", "d": "file"})
    sources.set_changes({"a": {"b": "x", "c": 1}, "d": 1}, {"a": {"b": "/x", "c": 2}, "d": 1}, "start point")
    assert sources.by_key == {"a.b": "override", "a.c": "start point", "d": "file"}


def test_several_values_are_refused():
    with pytest.raises(ConfigError, match="seed=0,1"):
        find_sources(Composer(), ["seed=0,1"])


def test_a_file_of_a_folder_of_the_user_is_named_by_its_path(tmp_path, capsys):
    (tmp_path / "optimizer").mkdir()
    file = tmp_path / "optimizer" / "mine.yaml"
    file.write_text("_target_: kleiber.optimizers.AdamW\nlr: 0.5\n")
    assert main(["config", "--config-dir", str(tmp_path), "optimizer=mine"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("lr:"))
    assert line.split("# ") == [line.partition("#")[0], str(file)] and "0.5" in line


def test_a_wrong_key_exits_with_2(capsys):
    assert main(["config", "model.dept=3"]) == 2
    assert "model.dept" in capsys.readouterr().err
