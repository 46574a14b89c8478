"""Curves of runs: tokens of every logged value over stages and branches, metrics by pattern, labels, files."""

import itertools

import pandas as pd
import pytest
from fake_run import fake_run

from kleiber.launch.cli import main
from kleiber.records.catalog import archive_run, read_runs
from kleiber.studies import curves
from kleiber.studies.curves import curve_rows, draw, labels, matches, thin_lines

BATCH = 100


def logged(stage=None, steps=(1, 2), **values):
    place = {} if stage is None else {"stage": stage}
    return [{**place, "step": step, **{name: value / step for name, value in values.items()}} for step in steps]


@pytest.fixture
def run(tmp_path):
    def make(name, rows, stages=("main",), overrides=(), **config):
        records = [{"name": stage, "batch_tokens": BATCH} for stage in stages]
        fake_run(tmp_path / name, records, config=config, rows=rows, overrides=overrides)
        return read_runs(tmp_path / name)[0]

    return make


def test_a_value_stands_at_the_tokens_that_were_logged_or_at_those_of_its_steps(run):
    rows = [*logged(**{"val/docs/loss": 4.0}), {"step": 2, "train/tokens": 190.0, "train/loss": 3.0}]
    table = curve_rows([run("a", rows)], ["train/loss", "val/*/loss"])
    assert table[["panel", "tokens", "value"]].to_numpy().tolist() == [
        ["val/*/loss", 100.0, 4.0], ["val/*/loss", 200.0, 2.0], ["train/loss", 190.0, 3.0],
    ]  # fmt: skip


def test_stages_of_a_chain_follow_one_another_and_branches_share_their_trunk(run):
    rows = logged("one", **{"train/loss": 4.0}) + logged("two", **{"train/loss": 4.0})
    chain = run("chain", rows, stages=["one", "two"])
    assert curve_rows([chain], ["train/loss"])["tokens"].tolist() == [100.0, 200.0, 300.0, 400.0]
    tree = run("tree", rows, stages=["one", "two"])
    tree.config["stages"] = {"branches": ["1k", "2k"]}
    assert curve_rows([tree], ["train/loss"])["tokens"].tolist() == [100.0, 200.0, 100.0, 200.0]


@pytest.mark.parametrize(
    ("name", "metric", "same"),
    [
        ("train/loss", "train/loss", True), ("train/loss/x", "train/loss", False),
        ("val/a/b/loss", "val/*/loss", True), ("val/loss", "val/*/loss", False), ("val/a/lossy", "val/*/loss", False),
    ],
)  # fmt: skip
def test_a_star_stands_for_any_text(name, metric, same):
    assert matches(name, metric) is same


def test_runs_are_labeled_by_the_overrides_that_they_do_not_share(run):
    runs = [run(name, logged(**{"train/loss": 1.0})) for name in ("a", "b")]
    assert list(labels(runs).values()) == ["a", "b"]
    runs = [run(name, [], overrides=["model=moe", f"seed={at}"]) for at, name in enumerate("cd")]
    assert list(labels(runs).values()) == ["seed=0", "seed=1"]


def test_a_metric_that_no_run_has_is_refused_with_those_that_they_have(run):
    with pytest.raises(ValueError, match=r"train/nothing.*train/loss"):
        draw([run("a", logged(**{"train/loss": 1.0}))], ["train/nothing"])


@pytest.mark.parametrize("number", [1, 2, 8])
def test_there_is_a_panel_for_each_metric_and_a_color_for_each_run(run, number):
    rows = logged(steps=range(1, 5), **{"train/loss": 2.0, "val/docs/loss": 3.0, "val/code/loss": 3.0})
    chart = draw([run(f"r{i}", rows) for i in range(number)]).to_dict()
    assert len(chart["concat"]) == 2
    color = chart["concat"][0]["layer"][0]["encoding"]["color"]
    assert len(set(color["scale"]["range"])) == number and (color["legend"] is None) == (number in (1, 8))


@pytest.mark.slow
def test_the_command_writes_a_picture_and_a_page_without_network(run, tmp_path, capsys):
    run("a", logged(**{"train/loss": 1.0}))
    assert main(["plot", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "a" / "curves.html").read_text(encoding="utf-8")
    assert "train/loss" in page and 'src="http' not in page
    archive_run(tmp_path / "a")
    assert main(["plot", str(tmp_path / "runs.jsonl.gz")]) == 0 and (tmp_path / "curves.png").is_file()
    assert main(["plot", str(tmp_path / "a"), "--out", str(tmp_path / "x.bmp")]) == 2
    assert main(["plot", str(tmp_path / "nowhere")]) == 2


def test_values_that_are_not_finite_are_no_points_and_a_panel_of_them_alone_is_none(run):
    rows = [{"step": 1, "train/loss": 2.0, "val/docs/loss": float("nan")}, {"step": 2, "train/loss": float("inf")}]
    assert len(draw([run("a", rows)]).to_dict()["concat"]) == 1
    with pytest.raises(ValueError, match="finite"):
        draw([run("b", rows[1:])])


def test_of_very_many_runs_some_are_drawn_so_that_each_line_keeps_its_fewest_values(run, monkeypatch):
    monkeypatch.setattr(curves, "MOST_VALUES", 200)
    runs = [
        run(f"r{number:02}", logged(steps=range(1, 41), **{"train/loss": 4.0}), seed=number) for number in range(25)
    ]
    chart = draw(runs, ["train/loss"]).to_dict()
    (rows,) = chart["datasets"].values()
    assert len(rows) <= 200 and len({row["line"] for row in rows}) == 9 == len({row["run"] for row in rows})
    assert chart["title"].startswith("9 of 25 runs")
    assert draw(runs[:3], ["train/loss"]).to_dict()["title"] == "3 runs"


def test_long_lines_are_thinned_evenly_and_keep_their_ends(monkeypatch):
    monkeypatch.setattr("kleiber.studies.curves.MOST_VALUES", 100)
    rows = pd.DataFrame([("a", n) for n in range(1000)] + [("b", n) for n in range(3)], columns=["line", "at"])
    kept = thin_lines(rows)
    a = kept[kept["line"] == "a"]["at"].tolist()
    assert (a[0], a[-1], kept[kept["line"] == "b"]["at"].tolist()) == (0, 999, [0, 1, 2])
    assert 50 <= len(a) <= 52 and max(later - at for at, later in itertools.pairwise(a)) == 20
