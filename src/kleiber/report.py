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
    for stage in summary["stages"]:
        for row in stage_rows(stage):
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
    rows = []
    for key, value in stage["metrics"].items():
        _, domain, what = key.split("/")[0], "/".join(key.split("/")[1:-1]), key.split("/")[-1]
        unit = {"loss": "nats/token", "bits_per_byte": "bits/byte"}.get(what, what)
        rows.append((f"validation {domain}", f"{value:.4f} {unit}"))
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
