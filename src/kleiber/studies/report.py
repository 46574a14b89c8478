"""A study's report: laws.json, findings.json, figures and one HTML page that needs no network.

It refits from what the runs wrote, so it can be made again at any time and says what is missing. The page holds its own
scripts (vl-convert's bundle); hovering a point names its run.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kleiber.catalog import Run, counts, read_runs
from kleiber.folder import read_config
from kleiber.studies import record as records
from kleiber.studies.command import lines
from kleiber.studies.law import find
from kleiber.studies.scaling import SIZES, Scaling, points
from kleiber.summary import write_json

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1040px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.1em; margin-top: 2em } .charts { display: flex; flex-wrap: wrap; gap: 1.5em }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 2px 10px 2px 0; text-align: left }
th { border-bottom: 1px solid #999 } td.n { text-align: right; font-variant-numeric: tabular-nums }
.refuse { border-left: 4px solid #b00020 } .warn { border-left: 4px solid #c77700 }
.note { border-left: 4px solid #999 } .verdict { padding: 2px 10px; margin: 4px 0 }
pre { font-size: 12px; background: #f6f6f6; padding: 1em; overflow: auto }
"""


def study_of(runs: Sequence[Run], name: str | None = None) -> Any:
    """The study `name`, else the one that the runs were made for; a plain sweep is read as a ladder."""
    from omegaconf import OmegaConf

    from kleiber.build import build

    if name is not None:
        return build(named(name))
    nodes = [node for run in runs if (node := read_config(run.folder).get("study"))]
    return build(OmegaConf.create(dict(nodes[0]))) if nodes else Scaling()


def named(name: str) -> Any:
    """The `study` node of conf/study/<name>.yaml. Raises ValueError for a name that is none."""
    from omegaconf import OmegaConf

    from kleiber.compose import conf_dir
    from kleiber.errors import did_you_mean

    known = [path.stem for path in sorted((conf_dir() / "study").glob("*.yaml"))]
    if name not in known:
        raise ValueError(f"--study {name}: no such study.{did_you_mean(name, known)} One of {', '.join(known)}")
    return OmegaConf.load(conf_dir() / "study" / f"{name}.yaml").study  # type: ignore[union-attr]


def report(
    folder: Path, out: Path | None = None, study_name: str | None = None, also: Sequence[Path] = ()
) -> dict[str, Any]:
    """Analyses the runs of a folder, with those of `also`, and writes everything into the first; returns findings.json.

    A study whose findings are no law has `report(folder, runs, out)`, and writes them itself.
    """
    runs = [run for place in (folder, *also) for run in read_runs(place)]
    study = study_of(runs, study_name)
    if not isinstance(study, Scaling):
        return study.report(folder, runs, out)
    law = records.finite(study.analyse(runs))
    rows = points(runs).rename(columns={SIZES[study.size]: "N", "tokens": "D", "flops": "C"})
    records.write(law, folder / "laws.json")
    charts = figures(rows, law)
    save_figures(folder, charts)
    found = findings(folder, runs, law)
    write_json(folder / "findings.json", found)
    (out or folder / "report.html").write_text(page(found, law, charts, rows))
    return found


def save_figures(folder: Path, charts: Mapping[str, Any]) -> None:
    (folder / "figures").mkdir(exist_ok=True)
    for name, chart in charts.items():
        chart.save(folder / "figures" / f"{name}.png", scale_factor=2)
        chart.save(folder / "figures" / f"{name}.svg")


def figures(rows: pd.DataFrame, law: Mapping[str, Any]) -> dict[str, Any]:
    from kleiber.studies import plots

    form = find(law["law"])
    made = {
        "ladder": plots.ladder(rows, form, law),
        "frontier": plots.frontier(rows, form, law),
        "residuals": plots.residuals(rows, form, law),
    }
    if law["approaches"]:
        made["exponents"] = plots.exponents(law)
    if law["backtests"]:
        made["backtests"] = plots.backtests(law)
    return made


def findings(folder: Path, runs: Sequence[Run], law: Mapping[str, Any]) -> dict[str, Any]:
    """What may be said, in order of weight, and what is missing."""
    refused = [verdict["text"] for verdict in law["verdicts"] if verdict["level"] == "refuse"]
    first = "This is a law only within its rows: " + refused[0] if refused else headline(law)
    missing = [f"{run.name} ({run.status})" for run in runs if run.status != "finished"]
    return {
        "schema": "kleiber.findings/1",
        "study": folder.name,
        "headline": first,
        "runs": counts(runs),
        "missing": missing,
        "seconds": sum(run.summary.get("seconds") or 0 for run in runs),
        "verdicts": law["verdicts"],
        "laws": "laws.json",
    }


def headline(law: Mapping[str, Any]) -> str:
    """The farthest backtest in words: what a prediction of this law is worth."""
    if not law["backtests"]:
        return f"{law['formula']} fits {law['n']} points to {law['residual_rms']:.2%} rms; no backtest was possible."
    test = max(law["backtests"], key=lambda test: test["cut"])
    naive = min(test["naive"].values())
    return (
        f"Fitted below {test['cut']:.2g} FLOPs, the law predicts the {test['n_test']} larger points to "
        f"{test['mare']:.2%} (best naive predictor {naive:.2%}), bias {test['bias']:+.2%}."
    )


def methods(law: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """A paragraph for a paper, with its sources."""
    goal, boot = law["objective"], law["bootstrap"]
    spans = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in sorted(law["domain"].items()))
    drawn = f" and {boot['draws']} {boot['kind']} resamples" if boot else ""
    return (
        f"We trained {found['runs']} ({found['seconds'] / 3600:.2f} hours of processes), each a trunk at a constant "
        "learning rate with cooldowns to every number of tokens (Hägele et al. 2024, arXiv:2405.18392), under muP "
        f"(Yang et al. 2022, arXiv:2203.03466). {law['formula']} ({law['source']}) was fitted to {law['n']} points "
        f"({spans}), seeds averaged within a size, by variable projection and a {goal['kind']} loss in "
        f"{goal['space']} space. Intervals are at {law['level']:.0%}, by profile likelihood{drawn}. Extrapolation was "
        "tested by leaving out the largest compute, beside two predictors that know no law."
    )


def page(found: Mapping[str, Any], law: Mapping[str, Any], charts: Mapping[str, Any], rows: pd.DataFrame) -> str:
    text = html.escape("\n".join(lines(law)))
    methods_text = html.escape(methods(law, found))
    body = f"<h2>The fit</h2><pre>{text}</pre><h2>Methods</h2><p>{methods_text}</p><h2>Runs</h2>{table(rows)}"
    return sheet(found, charts, body)


def sheet(found: Mapping[str, Any], charts: Mapping[str, Any], body: str) -> str:
    """The page of any study: headline, what is missing, verdicts, charts, and a body of its own."""
    specs = json.dumps({name: chart.to_dict() for name, chart in charts.items()}).replace("</", "<\\/")
    places = "".join(f'<div id="{name}"></div>' for name in charts)
    draw = f"const specs = {specs}; for (const [id, spec] of Object.entries(specs)) vegaEmbed('#' + id, spec, "
    draw += "{renderer: 'svg', actions: false});"
    told = "".join(
        f'<div class="verdict {one["level"]}">{html.escape(one["level"])}: {html.escape(one["text"])}</div>'
        for one in found["verdicts"]
    )
    missing = f"<p>Missing: {html.escape(', '.join(found['missing']))}</p>" if found["missing"] else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(found["study"])}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(found['study'])}</h1><p><b>{html.escape(found['headline'])}</b></p>"
        f"<p>{html.escape(found['runs'])}, {found['seconds'] / 60:.0f} minutes of processes.</p>{missing}{told}"
        f'<div class="charts">{places}</div>{body}'
        f'<script type="module">{scripts()}\n{draw}</script></html>'
    )


def scripts() -> str:
    """The drawing code, 0.9 MB, with everything it needs."""
    import vl_convert

    return vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]  (its stub asks for an optional argument)


def table(rows: pd.DataFrame) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(str(row['run']))}</td><td>{html.escape(str(row['stage']))}</td>"
        f'<td class="n">{row["seed"]}</td><td class="n">{row["N"]:,.0f}</td><td class="n">{row["D"]:,.0f}</td>'
        f'<td class="n">{row["C"]:.3g}</td><td class="n">{row["loss"]:.4f}</td></tr>'
        for row in rows.to_dict("records")
    )
    heads = "".join(f"<th>{name}</th>" for name in ("run", "stage", "seed", "N", "D", "C", "loss"))
    return f"<table><tr>{heads}</tr>{cells}</table>"
