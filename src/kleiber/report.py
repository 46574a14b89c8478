"""The closing table: what a person wants to know when a run is over, read from what the run wrote."""

from __future__ import annotations

from pathlib import Path

from kleiber.summary import read


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
    for row in tree_rows(stages) if len(stages) > 1 else [row for stage in stages for row in stage_rows(stage)]:
        table.add_row(*row)
    table.add_row("folder", str(folder))
    console = Console(width=110)
    console.print(table)
    samples = folder / "samples.txt"
    if samples.exists():
        console.print("[bold]continuations[/bold] (prompt>>>model)")
        console.print(Text(samples.read_text()))


def stage_rows(stage: dict) -> list[tuple[str, str]]:
    """Labelled lines for one stage."""
    p, flops = stage["params"], stage["flops"]
    rows = [(f"validation {domain}", scores) for domain, scores in measured(stage["metrics"]).items()]
    rows += [
        ("parameters", f"{p['total']:,} total, {p['active']:,} active, {p['non_embedding']:,} outside embeddings"),
        ("tokens", f"{stage['tokens']:,} ({stage['tokens'] / p['active']:.1f} per active parameter)"),
        ("compute", f"{flops['model']:.3g} FLOPs"),
    ]
    if stage["tokens_per_s"]:
        share = "" if stage["mfu"] is None else f", MFU {100 * stage['mfu']:.0f} %"
        rows.append(("speed", f"{stage['tokens_per_s']:,.0f} tokens/s over {stage['seconds']:,.0f} s{share}"))
    rows.append(("memory", f"{stage['peak_memory_bytes'] / 2**20:,.0f} MiB peak"))
    rows.append(("checkpoint", stage["checkpoint"] or "none"))
    return rows


def measured(metrics: dict[str, float]) -> dict[str, str]:
    """Scores in words by domain: `{docs: 1.4023 nats/token, 2.0231 bits/byte}`."""
    scores: dict[str, list[str]] = {}
    for key, value in metrics.items():
        _, *domain, what = key.split("/")
        unit = {"loss": "nats/token", "bits_per_byte": "bits/byte"}.get(what, what)
        scores.setdefault("/".join(domain), []).append(f"{value:.4f} {unit}")
    return {domain: ", ".join(found) for domain, found in scores.items()}


def tree_rows(stages: list[dict]) -> list[tuple[str, str]]:
    """One line a stage of a tree, and what sharing a trunk saved against a run for each branch."""
    rows = []
    for stage in stages:
        origin = f"from {stage['parent']} at step {stage['branch_step']:,}, " if stage["parent"] else ""
        found = measured(stage["metrics"])
        scores = "; ".join(f"{domain} {text}" if len(found) > 1 else text for domain, text in found.items())
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
    own = 0.0
    for stage in stages:
        parent = by_name.get(stage["parent"])
        shared = parent["flops"]["executed"] * stage["branch_step"] / parent["steps"] if parent else 0.0
        own += stage["flops"]["executed"] - shared
    parents = {stage["parent"] for stage in stages}
    return own, sum(stage["flops"]["executed"] for stage in stages if stage["name"] not in parents)
