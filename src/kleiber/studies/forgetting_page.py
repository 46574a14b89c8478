"""The page of a comparison of retention methods: figures, the table at matched target loss, claims, methods."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kleiber.catalog import Run
from kleiber.studies import forgetting_plots as plots
from kleiber.studies import outcomes
from kleiber.studies.frontier import CELL


def figures(runs: Sequence[Run], record: Mapping[str, Any]) -> dict[str, Any]:
    rows, points = outcomes.outcomes(runs), pd.DataFrame(record["points"])
    names = plots.methods_of(points)
    made = {"pareto": plots.pareto(points, record["matched_target"])}
    if any(one["reached"] for one in record["matched"]):
        made["matched"] = plots.matched(record)
    keys = ["method", "setting", "lr"]
    chosen = pd.DataFrame(record["chosen"])
    paths = outcomes.trajectories(runs)
    if len(paths):
        paths = paths.merge(chosen[keys], on=keys)
    if len(paths):
        made["trajectory"] = plots.trajectory(paths, names)
    made["matrix"] = plots.heat(scores(rows, chosen, runs))
    return made


def scores(rows: pd.DataFrame, chosen: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Loss of each task by method at its chosen setting, seeds averaged, and before; change is against before."""
    tasks = [name for name in rows.columns if name.startswith("loss/")]
    start = [run.stage["start_metrics"] for run in runs if run.status == "finished" and outcomes.continued(run)]
    first = {task: outcomes.mean([one.get(f"val/{task[5:]}/loss") for one in start]) for task in tasks}
    found = [{"method": "before", "task": task[5:], "loss": first[task], "change": 0.0} for task in tasks]
    for one in chosen.to_dict("records"):
        mine = rows[(rows[CELL] == pd.Series({name: one[name] for name in CELL})).all(axis=1)]
        for task in tasks:
            loss = float(mine[task].mean())
            found.append({"method": one["method"], "task": task[5:], "loss": loss, "change": loss - first[task]})
    return pd.DataFrame(found)


def save(folder: Path, charts: Mapping[str, Any]) -> None:
    (folder / "figures").mkdir(exist_ok=True)
    for name, chart in charts.items():
        chart.save(folder / "figures" / f"{name}.png", scale_factor=2)
        chart.save(folder / "figures" / f"{name}.svg")


def page(found: Mapping[str, Any], record: Mapping[str, Any], charts: Mapping[str, Any]) -> str:
    from kleiber.studies.report import STYLE, scripts

    specs = json.dumps({name: chart.to_dict() for name, chart in charts.items()}).replace("</", "<\\/")
    places = "".join(f'<div id="{name}"></div>' for name in charts)
    draw = f"const specs = {specs}; for (const [id, spec] of Object.entries(specs)) vegaEmbed('#' + id, spec, "
    draw += "{renderer: 'svg', actions: false});"
    said = "".join(f'<div class="verdict note">{html.escape(one["text"])}</div>' for one in found["verdicts"])
    missing = f"<p>Missing: {html.escape(', '.join(found['missing']))}</p>" if found["missing"] else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(found["study"])}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(found['study'])}</h1><p><b>{html.escape(found['headline'])}</b></p>"
        f"<p>{html.escape(found['runs'])}, {found['seconds'] / 60:.0f} minutes of processes.</p>{missing}"
        f'<div class="charts">{places}</div><h2>At equal target loss</h2>{matched_table(record)}'
        f"<h2>Claims</h2>{said}<h2>Method</h2><p>{html.escape(method(record))}</p>"
        f"<h2>Settings</h2>{points_table(record)}"
        f'<script type="module">{scripts()}\n{draw}</script></html>'
    )


def matched_table(record: Mapping[str, Any]) -> str:
    """The comparison, and for each method the setting that stands for it with its cost."""
    by_method = {one["method"]: one for one in record["chosen"]}
    rows = []
    for one in record["matched"]:
        setting = by_method[one["method"]]
        reached = f"{one['reached']} of {one['seeds']}"
        F = number(one["F"], ".4f") if one["reached"] else "does not reach it"
        rows.append([
            one["method"], F, span(one), reached, f"{setting['setting']} lr={setting['lr']:g}".strip(),
            number(setting["F"], ".4f"), number(setting["peak"], ".4f"), number(setting["target"], ".4f"),
            number(setting["target_tokens"], ",.0f"), number(setting["tokens"], ",.0f"),
            cost(setting, "seconds", "steps", 1e3), cost(setting, "memory", None, 2.0**-20),
        ])  # fmt: skip
    heads = [
        "method", "F at equal target", f"{record['level']:.0%}", "seeds", "setting chosen", "F", "peak F", "target",
        "new tokens", "all tokens", "ms a step", "MiB",
    ]  # fmt: skip
    return table(heads, rows)


def points_table(record: Mapping[str, Any]) -> str:
    points = sorted(record["points"], key=lambda one: (one["method"], one["F"] if one["F"] is not None else 0))
    rows = [
        [
            one["method"], one["setting"], f"{one['lr']:g}", str(one["n"]), number(one["F"], ".4f"),
            number(one["F_sd"], ".4f"), number(one["peak"], ".4f"), number(one["target"], ".4f"),
            number(one["target_sd"], ".4f"), "on the frontier" if one["best"] else "",
        ]
        for one in points
    ]  # fmt: skip
    return table(["method", "setting", "lr", "seeds", "F", "sd", "peak F", "target", "sd", ""], rows)


def method(record: Mapping[str, Any]) -> str:
    """A paragraph for a paper."""
    noise = record["seed_noise"]
    spread = "not measured" if noise["F"] is None else f"{noise['F']:.4f} nats ({noise['df']} degrees of freedom)"
    return (
        "All methods go on from the same base run of their seed. F is the rise of the earlier tasks' mean held-out loss "
        "between the first and the last step, peak F its largest rise on a subset while training went on. Every method "
        "was tuned over its settings and learning rates; F is read off its own frontier (straight lines between its "
        f"undominated points, seed by seed) at a target loss of {record['matched_target']:.4f}, which is the best of "
        f"plain fine-tuning and {record['tolerance']:.0%} more. Intervals are Student's at {record['level']:.0%} with the "
        f"seed noise pooled over settings: {spread}. The choice among settings is made on the same runs, which favours "
        "methods with more of them. Replayed tokens count as tokens of the budget unless the design says otherwise."
    )


def number(value: float | None, form: str) -> str:
    return "" if value is None or value != value else format(value, form)


def span(one: Mapping[str, Any]) -> str:
    return "no interval" if one["lo"] is None else f"[{one['lo']:.4f}, {one['hi']:.4f}]"


def cost(setting: Mapping[str, Any], what: str, per: str | None, scale: float) -> str:
    value = setting.get(what)
    return "" if value is None else f"{value * scale / (setting[per] if per else 1):,.1f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(row[0])}</td>" + "".join(f'<td class="n">{html.escape(v)}</td>' for v in row[1:]) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{''.join(f'<th>{html.escape(name)}</th>' for name in heads)}</tr>{cells}</table>"
