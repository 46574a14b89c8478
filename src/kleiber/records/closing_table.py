"""The closing table: what a person wants to know when a run is over, read from what the run wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kleiber.config.signatures import class_attribute, exports
from kleiber.records.summary import read


def closing_table(folder: Path) -> None:
    """Prints losses, speed, cost, places and the continuations of a finished run."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    summary = read(folder / "summary.json") or {}
    table = Table(
        title=f"{summary['name']}/{folder.name}: {summary['status']}", show_header=False, title_justify="left"
    )
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    stages = summary["stages"]
    is_tree = any(stage["trunk"] for stage in stages)
    for row in (
        tree_rows(stages) if is_tree else [row for stage in stages for row in stage_rows(stage, len(stages) > 1)]
    ):
        table.add_row(*row)
    table.add_row("folder", str(folder))
    console = Console(width=110)
    console.print(table)
    if summary.get("R"):
        console.print(matrix_table(summary["R"]))
    samples = folder / "samples.txt"
    if samples.exists():
        console.print("[bold]continuations[/bold] (prompt>>>model)")
        console.print(Text(samples.read_text()))


def matrix_table(found: dict) -> Any:
    """R for a person: the main metric of every task before the first step and after every stage."""
    from rich.table import Table

    units = {key.rsplit("/", 1)[-1] for key in found["metric"].values()}
    title = "after each stage" + (f" ({units.pop()})" if len(units) == 1 else "")
    table = Table(title=title, title_justify="left")
    table.add_column("stage", style="bold")
    for task in found["tasks"]:
        name = found["metric"][task].removeprefix("val/")
        table.add_column(name.rsplit("/", 1)[0] if not units and title != "after each stage" else name, justify="right")
    for name, row in zip(["start", *found["stages"]], [found["baseline"], *found["matrix"]], strict=True):
        table.add_row(name, *("" if value is None else f"{value:.4f}" for value in row))
    return table


def stage_rows(stage: dict, of_several: bool = False) -> list[tuple[str, str]]:
    """Labelled lines for one stage."""
    p, flops = stage["params"], stage["flops"]
    tasks = stage.get("tasks")
    scores = measured(stage["metrics"], stage["objective"]).items()
    rows = [("stage", stage["name"])] if of_several else []
    rows += [(f"validation {domain}", score) for domain, score in scores if tasks is None or domain in tasks]
    rows += [
        ("parameters", f"{p['total']:,} total, {p['active']:,} active, {p['non_embedding']:,} outside embeddings"),
        *([("trained", f"{p['trainable']:,} parameters")] if p["trainable"] < p["total"] else []),
        ("tokens", f"{stage['tokens']:,} ({stage['tokens'] / p['active']:.1f} per active parameter)"),
        ("compute", f"{flops['model']:.3g} FLOPs"),
    ]
    if stage["tokens_per_s"]:
        share = "" if stage["mfu"] is None else f", MFU {100 * stage['mfu']:.0f} %"
        rows.append(("speed", f"{stage['tokens_per_s']:,.0f} tokens/s over {stage['seconds']:,.0f} s{share}"))
    rows.append(("memory", f"{stage['peak_memory_bytes'] / 2**20:,.0f} MiB peak"))
    rows.append(("checkpoint", stage["checkpoint"] or "none"))
    return rows


def measured(metrics: dict[str, float], objective: str) -> dict[str, str]:
    """Scores of the weights themselves in words by domain: `{docs: 1.4023 nats/token, 2.0231 bits/byte}`."""
    scores: dict[str, list[str]] = {}
    units = {"loss": loss_unit(objective), "bits_per_byte": "bits/byte"}
    for key, value in metrics.items():
        kind, *domain, metric = key.split("/")
        if kind != "val":
            continue
        unit = units.get(metric, metric)
        scores.setdefault("/".join(domain), []).append(f"{value:.4f} {unit}")
    return {domain: ", ".join(texts) for domain, texts in scores.items()}


def loss_unit(objective: str) -> str:
    """The unit of the loss of an objective, which is named by its class in lower case."""
    targets = [f"kleiber.objectives.{name}" for name in exports("kleiber.objectives") if name.lower() == objective]
    return class_attribute(targets[0], "unit") if targets else "nats/token"


def tree_rows(stages: list[dict]) -> list[tuple[str, str]]:
    """One line a stage of a tree, and what sharing a trunk saved against a run for each branch."""
    rows = []
    for stage in stages:
        origin = f"from {stage['parent']} at step {stage['branch_step']:,}, " if stage["parent"] else ""
        measures = measured(stage["metrics"], stage["objective"])
        scores = "; ".join(f"{domain} {text}" if len(measures) > 1 else text for domain, text in measures.items())
        rows.append((stage["name"], f"{origin}{stage['tokens']:,} tokens: {scores}"))
    own, apart = costs(stages)
    seconds = sum(stage["seconds"] or 0 for stage in stages)
    rows.append(
        ("cost", f"{own:.3g} FLOPs in {seconds:,.0f} s of training; a run for each branch would take {apart:.3g}")
    )
    rows.append(("saving", f"{1 - own / apart:.0%}"))
    rows.append(("checkpoints", "stages/<stage>/checkpoints"))
    return rows


def costs(stages: list[dict]) -> tuple[float, float]:
    """FLOPs that the tree took, and those of a run of its own for each of its leaves."""
    by_name = {stage["name"]: stage for stage in stages}
    own_flops = 0.0
    for stage in stages:
        parent = by_name.get(stage["parent"])
        shared = parent["flops"]["executed"] * stage["branch_step"] / parent["steps"] if parent else 0.0
        own_flops += stage["flops"]["executed"] - shared
    parents = {stage["parent"] for stage in stages}
    return own_flops, sum(stage["flops"]["executed"] for stage in stages if stage["name"] not in parents)
