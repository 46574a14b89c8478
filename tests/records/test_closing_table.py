"""The table at the end of a run: units of scores, rows of a stage, the cost of a tree, and the matrix of scores."""

import shlex

import pytest
from fake_run import fake_run, fake_score
from rich.text import Text

from kleiber.records.catalog import stage_scores
from kleiber.records.closing_table import (
    WIDTH,
    closing_table,
    format_number,
    matrix_table,
    next_commands,
    scores_by_domain,
    stage_rows,
    tree_costs,
)

PARAMS = {"total": 1000, "active": 500, "non_embedding": 400, "trainable": 1000}


def stage(name: str = "main", executed: float = 100.0, steps: int = 10, **entries) -> dict:
    return {
        "name": name, "parent": None, "branch_step": None, "objective": "clm", "params": PARAMS, "tokens": 5000,
        "flops": {"model": 90.0, "executed": executed}, "steps": steps, "tokens_per_s": None, "mfu": None,
        "seconds": None, "peak_memory_bytes": 2**21, "checkpoint": None, **measured({"val/docs/loss": 2.0}), **entries,
    }  # fmt: skip


def measured(metrics: dict) -> dict:
    """Metrics and scores of a stage."""
    return {"metrics": metrics, "scores": {key: fake_score(key, value) for key, value in metrics.items()}}


def test_scores_have_their_units_and_leave_out_averaged_and_interpolated_weights():
    metrics = {"val/x/loss": 0.5, "val/x/accuracy": 0.9, "val_ema/x/loss": 0.4, "drift/x/kl": 0.1, "wise/0/x/loss": 2.0}
    assert scores_by_domain(stage_scores(measured(metrics))) == {"x": "0.5000 nats per token, 0.9000 accuracy"}
    both = {"val/x/loss": 0.5, "val/x/bits_per_byte": 1.0}
    assert scores_by_domain(stage_scores(measured(both))) == {"x": "0.5000 nats per token, 1.0000 bits per byte"}
    unknown = stage_scores(measured({"val/x/loss": None}))
    assert scores_by_domain(unknown) == {"x": "- nats per token"}, "recorded for a loss of nan"
    alone = stage_scores({"metrics": {"val/x/mine": 2.0}})
    assert scores_by_domain(alone) == {"x": "2.0000 mine"}, "of a record without scores"


def test_a_stage_shows_its_name_among_several_and_what_it_trains_where_that_is_a_part():
    rows = dict(stage_rows(stage()))
    assert rows["validation docs"] == "2.0000 nats per token" and rows["checkpoint"] == "none"
    assert not {"stage", "trained", "speed"} & rows.keys()
    adapted = dict(stage_rows(stage("two", params=PARAMS | {"trainable": 10}), show_name=True))
    assert adapted["stage"] == "two" and adapted["trained"].startswith("10 ")


def test_small_numbers_keep_two_digits_and_large_ones_have_no_exponent():
    texts = {2281.3: "2,281", 3.413: "3.4", 0.0468: "0.047", 0.0: "0", 12.34: "12"}
    assert {value: format_number(value) for value in texts} == texts
    rows = dict(stage_rows(stage(tokens_per_s=3966.2, seconds=0.26, mfu=0.00013)))
    assert rows["speed"] == "3,966 tokens/s over 0.26 s, MFU 0.013%"


def test_scores_of_the_tasks_of_other_stages_are_left_out():
    both = {"val/docs/loss": 2.0, "val/code/loss": 1.0}
    rows = dict(stage_rows(stage(**measured(both), tasks=["code"])))
    assert "validation code" in rows and "validation docs" not in rows


def test_a_tree_pays_for_its_trunk_once_and_separate_runs_for_each_branch():
    trunk = stage("trunk", executed=100.0, steps=10)
    branches = [stage(name, 130.0, 5, parent="trunk", branch_step=10) for name in ("short", "long")]
    assert tree_costs([trunk, *branches]) == pytest.approx((100 + 30 + 30, 260))
    early = stage("early", 80.0, 5, parent="trunk", branch_step=5)
    assert tree_costs([trunk, early]) == pytest.approx((100 + 80 - 50, 80))


def test_the_matrix_has_a_column_per_task_and_names_a_shared_metric_once():
    matrix = {
        "tasks": ["docs", "code"], "stages": ["one"], "metric": {"docs": "val/docs/loss", "code": "val/code/loss"},
        "baseline": [5.0, None], "matrix": [[2.0, 3.0]],
    }  # fmt: skip
    table = matrix_table(matrix)
    assert [column.header for column in table.columns] == ["stage", "docs", "code"] and "loss" in str(table.title)
    assert [list(column.cells)[:2] for column in table.columns] == [
        ["start", "one"], ["5.0000", "2.0000"], ["", "3.0000"]
    ]  # fmt: skip
    marked = matrix_table({**matrix, "metric": {"docs": "val/docs[v2]/loss", "code": "val/code/loss"}})
    assert Text.from_markup(str(marked.columns[1].header)).plain == "docs[v2]"
    mixed = matrix_table({**matrix, "metric": {"docs": "val/docs/loss", "code": "val/code/accuracy"}})
    assert [column.header for column in mixed.columns] == ["stage", "docs/loss", "code/accuracy"]


def test_the_last_row_of_the_matrix_is_the_change_by_the_last_stage():
    metrics = {"docs": "val/docs/loss", "code": "val/code/loss"}
    matrix = {"tasks": [*metrics], "stages": ["docs", "code"], "metric": metrics, "baseline": [5.0, 5.0]}
    table = matrix_table({**matrix, "matrix": [[2.0, None], [2.25, 3.0]]})
    assert [list(column.cells)[-1] for column in table.columns] == ["change by code", "+0.2500", ""]
    assert table.row_count == 4


def test_the_next_commands_fit_the_run(tmp_path):
    plain = {"objective": {"_target_": "kleiber.objectives.CLM"}}
    fake_run(tmp_path, [{"lr": 0.02}], config={})  # damaged since
    lines = next_commands(tmp_path, plain, ["model=moe", "optimizer.lr=1"])
    commands = list(filter(None, (shlex.split(line, comments=True) for line in lines[1:])))
    names = {"plot", "runs", "train"}
    assert [words[next(i for i, word in enumerate(words) if word in names) :] for words in commands] == [
        ["plot", str(tmp_path)],
        ["runs", str(tmp_path.parent)],
        ["train", "-m", "model=moe", "optimizer.lr=0.01,0.02,0.04", "name=rates"],
    ]
    (tmp_path / "samples.txt").touch()
    lines = next_commands(tmp_path, plain, [])
    assert any("generate" in line for line in lines), "of a model that can generate"
    assert not any(" chat " in line for line in lines)
    tuned = {"objective": {"_target_": "kleiber.objectives.SFT"}}
    fake_run(tmp_path / "tuned", [{"objective": "sft"}], config=tuned)
    assert any(f" chat {tmp_path / 'tuned'}" in line for line in next_commands(tmp_path / "tuned", tuned, []))
    data = {"_target_": "kleiber.data.Task", "prompt": "English: {en}\\nGerman:", "target": "{de}"}
    fake_run(tmp_path / "task", [{"objective": "sft"}])
    (tmp_path / "task/samples.txt").write_text("--- 1\nEnglish: a dog\nGerman:>>> ein Hund\n--- 2\n")
    text = "\n".join(next_commands(tmp_path / "task", {**tuned, "data": data}, []))
    assert " chat " not in text and "--prompt 'English: a dog\nGerman:'" in text


@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_the_table_holds_the_width_of_the_terminal(width, tmp_path, capsys, monkeypatch):
    """Its borders stay in line: each line has the width of the table."""
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    fake_run(tmp_path / "run", [{"tokens_per_s": 3966.2, "seconds": 754.0, "mfu": 0.1}])
    closing_table(tmp_path / "run")
    _, *lines = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if line.startswith(("┏", "┌", "│", "└"))]
    assert lines and len({*map(len, lines)}) == 1 and len(lines[0]) <= (width or WIDTH)
    assert "13 min" in " ".join(lines)
