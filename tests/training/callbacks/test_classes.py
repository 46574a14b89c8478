"""The table of classes and the confusion matrix after training, for single labels only."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from html_elements import HOSTILE, elements
from tables import folder

from kleiber.objectives.classify import ClassRow
from kleiber.objectives.clm import CLM
from kleiber.training.callbacks.classes import Classes, figure


@pytest.mark.slow
def test_a_run_leaves_its_table_and_its_figure(launch, tmp_path: Path) -> None:
    table = [{"text": f"{'good' if i % 3 else 'bad'} {i}", "label": ("bad", "good")[i % 3 > 0]} for i in range(60)]
    path = folder(tmp_path / "t", train=table, validation=table[:20])
    run = launch("data=labelled", f"data.path={path}", "objective=classify")
    results = json.loads((run / "classes/t.json").read_text())
    assert [row["name"] for row in results["classes"]] == ["bad", "good"]
    assert [row["support"] for row in results["classes"]] == [sum(row) for row in results["confusion"]] == [7, 13]
    metrics = json.loads((run / "summary.json").read_text())["stages"][0]["metrics"]
    right = results["confusion"][0][0] + results["confusion"][1][1]
    assert metrics["val/t/accuracy"] == pytest.approx(right / 20)
    pytest.importorskip("altair")
    assert "vega" in (run / "classes/t.html").read_text()


def test_a_figure_shows_counts_and_shares() -> None:
    pytest.importorskip("altair")
    chart = figure(["a", "b"], [[3, 1], [0, 0]])
    assert chart is not None
    cells = chart.to_dict()["data"]["values"]
    assert cells[1] == {"true": "a", "predicted": "b", "count": 1, "share": 0.25}
    assert cells[3]["share"] == 0


def test_it_leaves_other_objectives_alone(tmp_path: Path) -> None:
    trainer = SimpleNamespace(global_step=5, max_steps=5)
    Classes(tmp_path, SimpleNamespace()).on_train_end(trainer, SimpleNamespace(objective=CLM()))  # type: ignore
    assert not (tmp_path / "classes").exists()


def test_a_label_that_is_a_script_is_only_text_in_the_page(tmp_path: Path) -> None:
    pytest.importorskip("altair")
    pages: list[str] = []
    for label in ("harmless", "<script>alert(1)</script>", HOSTILE):
        callback = Classes(tmp_path, SimpleNamespace())  # type: ignore[arg-type]
        callback.write("t", [ClassRow(label, 3, 1.0, 1.0, 1.0), ClassRow("b", 3, 1.0, 1.0, 1.0)], [[3, 0], [0, 3]])
        pages.append((tmp_path / "classes/t.html").read_text(encoding="utf-8"))
    assert elements(pages[0]) == elements(pages[1]) == elements(pages[2]) and "<script>alert" not in pages[1]
