"""What is printed at the end of a run: a table of losses, cost, speed and files, and commands to go on with."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kleiber.config.cost import describe_costs
from kleiber.config.stages import stage_config
from kleiber.config.targets import class_attribute
from kleiber.records.catalog import stage_scores
from kleiber.records.evaluations import evaluation_lines
from kleiber.records.progress import format_duration
from kleiber.records.regular_files import read_bytes
from kleiber.records.summary_file import read_summary
from kleiber.records.terminal import print_line, print_rich
from kleiber.types import Config, Json, Row
from kleiber.types.score import Score

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 110  # columns of the table in a pipe
MAX_SAMPLES_BYTES = 2**24


def closing_table(folder: Path) -> None:
    """Prints losses, parameters, cost, speed, files and sample continuations of a finished run."""
    from rich.table import Table
    from rich.text import Text

    summary = read_summary(folder) or {}
    title = Text(f"{summary['name']}/{folder.name}: {summary['status']}")
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    stages = summary["stages"]
    if any(stage["trunk"] for stage in stages):
        rows = tree_rows(stages)
    else:
        rows = [row for stage in stages for row in stage_rows(stage, len(stages) > 1)]
    for row in rows:
        table.add_row(*map(Text, row))
    table.add_row("folder", Text(str(folder)))
    for warning in summary.get("warnings", []):
        table.add_row("warning", Text(warning))
    print_rich(table, WIDTH)
    if stages and (scores := evaluation_lines(stages[-1])):
        print_line("\n".join(scores))
    if summary.get("R"):
        print_rich(matrix_table(summary["R"]), WIDTH)
    samples = folder / "samples.txt"
    if samples.is_file():
        print_rich("[bold]continuations[/bold] (prompt>>>model)", WIDTH)
        print_rich(Text(read_bytes(samples, MAX_SAMPLES_BYTES).decode(errors="replace")), WIDTH)


def format_number(value: float) -> str:
    """Returns a number >= 0 as a whole one, or with two digits below 10: `2,281`, `3.4` or `0.047`."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def matrix_table(matrix: Json) -> Table:
    """A printable table of R: the main metric of every task before the first step and after every stage.

    Its last row is the change of each metric during the last stage.

    matrix  the entry "R" of summary.json (see `kleiber.records.summary.score_matrix`)
    """
    from rich.markup import escape
    from rich.table import Table

    names = [matrix["metric"][task].removeprefix("val/") for task in matrix["tasks"]]
    metrics = {name.rsplit("/", 1)[-1] for name in names}
    title = "score after each stage"
    if len(metrics) == 1:
        title = f"{metrics.pop()} after each stage"
        names = [name.rsplit("/", 1)[0] for name in names]
    table = Table(title=title, title_justify="left")
    table.add_column("stage", style="bold")
    for name in names:
        table.add_column(escape(name), justify="right")
    rows = [matrix["baseline"], *matrix["matrix"]]
    for name, row in zip(["start", *matrix["stages"]], rows, strict=True):
        table.add_row(escape(name), *("" if value is None else f"{value:.4f}" for value in row))
    changes = [None if None in pair else pair[1] - pair[0] for pair in zip(*rows[-2:], strict=True)]
    if any(changes):
        last = escape(f"change by {matrix['stages'][-1]}")
        table.add_section()
        table.add_row(last, *("" if change is None else f"{change:+.4f}" for change in changes))
    return table


def stage_rows(stage: Row, show_name: bool = False) -> list[tuple[str, str]]:
    """Labels and values of one stage.

    show_name  whether the first row is the stage's name
    """
    params, tasks = stage["params"], stage.get("tasks")
    scores = scores_by_domain(stage_scores(stage)).items()
    rows = [("stage", stage["name"])] if show_name else []
    rows += [(f"validation {domain}", score) for domain, score in scores if tasks is None or domain in tasks]
    total, active, non_embedding = (f"{params[name]:,}" for name in ("total", "active", "non_embedding"))
    rows.append(("parameters", f"{total} total, {active} active, {non_embedding} outside embeddings"))
    if params["trainable"] < params["total"]:
        rows.append(("trained", f"{params['trainable']:,} parameters"))
    rows += [
        ("tokens", f"{stage['tokens']:,} ({stage['tokens'] / params['active']:.1f} per active parameter)"),
        ("compute", f"{stage['flops']['model']:.3g} FLOPs"),
    ]
    if stage["tokens_per_s"]:
        share = "" if stage["mfu"] is None else f", MFU {format_number(100 * stage['mfu'])}%"
        rows.append(("speed", f"{stage['tokens_per_s']:,.0f} tokens/s over {format_duration(stage['seconds'])}{share}"))
    if costs := describe_costs([stage.get("cost")]):
        rows.append(("energy", costs))
    rows.append(("memory", f"{stage['peak_memory_bytes'] / 2**20:,.0f} MiB peak"))
    rows.append(("checkpoint", stage["checkpoint"] or "none"))
    return rows


def scores_by_domain(scores: Mapping[str, Score]) -> dict[str, str]:
    """The validation scores as text by domain: `{docs: 1.4023 nats per token, 2.0231 bits per byte}`; `-` for nan.

    Only scores of the last weights count: those of averaged or interpolated weights are left out.
    """
    texts: dict[str, list[str]] = {}
    for key, score in scores.items():
        kind, *names, metric = key.split("/")
        if kind == "val":
            number = "-" if math.isnan(score.value) else f"{score.value:.4f}"
            texts.setdefault("/".join(names), []).append(f"{number} {score.unit or metric}")
    return {domain: ", ".join(parts) for domain, parts in texts.items()}


def tree_rows(stages: Sequence[Row]) -> list[tuple[str, str]]:
    """A row per stage of a tree, and the cost of the tree compared with a separate run for each branch."""
    rows = []
    for stage in stages:
        start = f"from {stage['parent']} at step {stage['branch_step']:,}, " if stage["parent"] else ""
        by_domain = scores_by_domain(stage_scores(stage))
        scores = "; ".join(f"{domain} {text}" if len(by_domain) > 1 else text for domain, text in by_domain.items())
        rows.append((stage["name"], f"{start}{stage['tokens']:,} tokens: {scores}"))
    tree, separate = tree_costs(stages)
    seconds = sum(stage["seconds"] or 0 for stage in stages)
    energy = describe_costs([stage.get("cost") for stage in stages])
    trained = f"{tree:.3g} FLOPs in {format_duration(seconds)} of training"
    cost = f"{trained}; separate runs of each branch would take {separate:.3g}"
    rows += [
        ("cost", cost),
        *([("energy", energy)] if energy else []),
        ("saving", f"{1 - tree / separate:.0%}"),
        ("checkpoints", "stages/<stage>/checkpoints"),
    ]
    return rows


def tree_costs(stages: Sequence[Row]) -> tuple[float, float]:
    """Executed FLOPs of a tree of stages, and those of a separate run for each of its leaves."""
    by_name = {stage["name"]: stage for stage in stages}
    tree = 0.0
    for stage in stages:
        parent = by_name.get(stage["parent"])
        shared = parent["flops"]["executed"] * stage["branch_step"] / parent["steps"] if parent else 0.0
        tree += stage["flops"]["executed"] - shared
    parents = {stage["parent"] for stage in stages}
    return tree, sum(stage["flops"]["executed"] for stage in stages if stage["name"] not in parents)


def next_commands(run: Path, run_config: Config, overrides: Sequence[str]) -> list[str]:
    """Returns what can be done next with a finished run: each command below a line that says what it does.

    run_config, overrides  those of the command that trained it
    """
    last = ((read_summary(run) or {}).get("stages") or [{}])[-1]
    place, lr = shorten(run), last.get("lr") or 0.01
    kept = [text for text in overrides if not text.lstrip("+").startswith(("optimizer.lr=", "name="))]
    rates = ",".join(f"{lr * factor:.3g}" for factor in (0.5, 1, 2))
    hints = [
        (["plot", place], "draw its curves"),
        (["runs", shorten(run.parent)], "list the runs of its folder"),
        (["train", "-m", *kept, f"optimizer.lr={rates}", "name=rates"], "train it at three rates"),
    ]
    config = stage_config(run_config, str(last.get("name")))
    objective, data, prompt = str(config["objective"]["_target_"]), config.get("data") or {}, "The "
    samples = run / "samples.txt"
    if data.get("target"):  # of a task, whose prompts are in no chat template: the first one that the model continued
        text = read_bytes(samples, MAX_SAMPLES_BYTES).decode(errors="replace") if samples.is_file() else ""
        prompt = text.partition("\n")[2].partition(">>>")[0]
    elif class_attribute(objective, "trains_answers"):
        hints.insert(0, (["chat", place], "talk to it"))
    if samples.is_file():
        hints.insert(0, (["generate", place, "--prompt", prompt], "continue a prompt"))
    return ["next", *(line for words, text in hints for line in (f"  # {text}", f"  {command(words)}"))]


def command(arguments: Sequence[str]) -> str:
    """Returns a command of kleiber as a shell takes it, with the program of this environment."""
    installed = Path(sys.executable).parent / "kleiber"
    if shutil.which("kleiber") == str(installed):
        program = ["kleiber"]
    elif installed.is_file():
        program = [shorten(installed)]
    else:
        program = [shorten(Path(sys.executable)), "-P", "-m", "kleiber"]
    return shlex.join([*program, *arguments])


def shorten(path: Path) -> str:
    """Returns a path relative to the working folder, if it is in there."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
