"""The figures of the study `transfer`: scores by size of text and by labels, gains by domain, and effective data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts import (
    GRAY,
    KINDS,
    Chart,
    change_matrix,
    estimates,
    in_rows,
    kind_color,
    over,
    pointed,
    span,
    values_axis,
)
from kleiber.config import readable
from kleiber.studies import SCRATCH, Rows, interval_note
from kleiber.types import Row
from kleiber_topics.transfer.tables import ALL_TASKS, domain_of, size_of

LABELS = {"mlm": "masked", "clm": "causal", SCRATCH: "from scratch", "docs": "documentation", "f1": "F1"}
PANEL = {"width": 250, "height": 150}
EDGE = 48  # width of the numbers beside an axis, with which panels have one left edge
DASHES = [[1, 0], [1, 0], [6, 3], [2, 2]]  # of domains, whose lines stay visible on each other
ARROW = 1.9  # factor by which an arrow leads away from a bound


def label(name: str) -> str:
    """What a kind, task or domain is called in figures."""
    return LABELS.get(name) or readable(name)


def domains_of(rows: Rows) -> list[str]:
    """The labels of the domains, after that of training from scratch; their order sets their colors."""
    return [label(SCRATCH), *(label(name) for name in sorted(set(rows["start"].map(domain_of)) - {SCRATCH}))]


def color(domains: Sequence[str], shown: Sequence[str], legend: bool) -> alt.Color:
    """The colors of the domains `shown`, each as it is among all; the same in every panel, so that they share one
    legend."""
    return kind_color(shown, "series", alt.Legend() if legend else None, domains)


def share_label(share: float) -> str:
    return "all labels" if share == 1 else f"{share:.0%} of the labels" if share >= 0.01 else f"{share:g} of the labels"


def dash(domains: Sequence[str], shown: Sequence[str], legend: bool) -> alt.StrokeDash:
    """The dashes of the domains `shown`, as `color`."""
    dashes = alt.Scale(domain=[*shown], range=[DASHES[domains.index(name) % len(DASHES)] for name in shown])
    symbols = alt.Legend(symbolType="stroke", symbolSize=300) if legend else None
    return alt.StrokeDash("series:N", title=None, sort=[*shown], scale=dashes, legend=symbols)


def metric_note(rows: Rows) -> str:
    """What scores are, of tasks whose metrics differ."""
    named = {metric: [label(task) for task in sorted(set(part["task"]))] for metric, part in rows.groupby("metric")}
    first, *others = sorted(named, key=lambda metric: -len(named[metric]))
    parts = [label(first), *(f"{' and '.join(named[metric])} {label(metric)}" for metric in others)]
    return f"score: {', '.join(parts)}"


def constant_note(rows: Rows) -> str:
    """Why a Matthews correlation is 0 where one is."""
    zero = (rows["metric"] == "mcc") & (rows["score"] == 0)
    return "Matthews correlation 0: every prediction is one class" if zero.any() else ""


def panel_title(task: str, kind: str, kinds: int) -> str:
    return f"{label(task)}, {label(kind)}" if kinds > 1 else label(task)


def panels(rows: Rows, draw: Callable[[Rows, bool], Chart], title: str, subtitle: str) -> Chart:
    """A panel for each task, and beside each other those of its kinds.

    draw  the panel of some rows, and whether it has the legend
    """
    kinds = rows["kind"].nunique()
    parts = list(rows.groupby(["task", "kind"], sort=True))
    charts = [
        draw(part, place == 0).properties(title=alt.TitleParams(panel_title(task, kind, kinds), frame="group"), **PANEL)
        for place, ((task, kind), part) in enumerate(parts)
    ]
    return in_rows(charts, title, subtitle, columns=2)


def scores_by_text(rows: Rows) -> Chart:
    """Score with the most labels vs the size of the text, a line for each domain; training from scratch is dashed."""
    rows = rows[rows["share"] == rows["share"].max()]
    domains = domains_of(rows)
    shown = rows.assign(bytes=rows["start"].map(size_of), series=rows["start"].map(domain_of).map(label))
    x = values_axis("bytes", "text (bytes)", shown.loc[shown["bytes"] > 0, "bytes"])

    def draw(part: Rows, legend: bool) -> Chart:
        """The panel of a task and kind: a line for each domain, and a dashed one from scratch."""
        trained = part[part["start"] != SCRATCH]
        y, layers = score_lines(part, trained, x, domains, domains[1:], legend)
        control = part.loc[part["start"] == SCRATCH, "score"]
        if len(control):
            layers += dashed(float(control.mean()), y)
        return alt.layer(*layers)

    notes = ["lines: means over seeds; points: seeds; black: training from scratch", constant_note(shown)]
    subtitle = "; ".join(filter(None, notes))
    return panels(shown, draw, "Score with all labels vs size of the pre-training text", subtitle)


def dashed(value: float, y: alt.Y) -> list[Chart]:
    """A dashed line across the panel with the words `from scratch` to its right."""
    line = alt.Chart(pd.DataFrame({"score": [value]}))
    text = line.mark_text(align="left", dx=4, fontSize=10, color=KINDS[0]).encode(
        x=alt.value(PANEL["width"]), y=y, text=alt.value("scratch")
    )
    return [line.mark_rule(strokeDash=[5, 4], color=KINDS[0]).encode(y=y), text]


def axis_title(rows: Rows) -> str:
    """The names of the metrics of some rows."""
    metrics: list[str] = sorted(set(rows["metric"]))
    return ", ".join(readable(name) for name in metrics)


def scores_by_labels(rows: Rows) -> Chart:
    """Score vs the share of the labels: a line for each domain whose models were trained with several shares."""
    counts = rows.groupby(["task", "kind", "start"])["share"].transform("nunique")
    rows = rows[counts > 1]
    domains = domains_of(rows)
    shown = rows.assign(series=rows["start"].map(domain_of).map(label))
    x = values_axis("share", "share of the labels", shown["share"], "~%")

    def draw(part: Rows, legend: bool) -> Chart:
        """The panel of a task and kind: a line for each domain and for training from scratch."""
        return alt.layer(*score_lines(part, part, x, domains, domains, legend)[1])

    skipped = shown.groupby("series")["share"].nunique().nunique() > 1
    notes = ["lines: means over seeds; points: seeds", "some lines skip shares of the labels" * skipped]
    return panels(shown, draw, "Score vs share of the labels", "; ".join(filter(None, [*notes, constant_note(shown)])))


def score_lines(
    rows: Rows, drawn: Rows, x: alt.X, domains: Sequence[str], shown: Sequence[str], legend: bool
) -> tuple[alt.Y, list[Chart]]:
    """The vertical axis over the scores of `rows`, and a line of means with points of seeds for each series of
    `drawn`."""
    scale, axis = span(rows["score"].to_numpy()), alt.Axis(tickCount=5, minExtent=EDGE)
    y, mean = (alt.Y(f"{name}:Q", title=axis_title(rows), scale=scale, axis=axis) for name in ("score", "mean(score)"))
    base = alt.Chart(drawn).encode(x=x, color=color(domains, shown, legend))
    line = base.mark_line(strokeWidth=1.5).encode(y=mean, strokeDash=dash(domains, shown, legend))
    return y, [line, base.mark_point(size=16, filled=True, opacity=0.7).encode(y=y)]


def gains(gaps: Sequence[Row], rows: Rows, level: float) -> Chart:
    """Gain over training from scratch with the most labels: a panel for each task and kind, a line for each text, and
    its sizes side by side.

    Of a single kind and text, tasks are lines of one panel.

    level  confidence level of the intervals
    """
    most = max(row["share"] for row in gaps)
    shown = [row for row in gaps if row["share"] == most and row["value"] is not None]
    kinds, starts = len({row["kind"] for row in shown}), {row["start"] for row in shown}
    single = len(starts) == 1 and kinds == 1
    sizes = [f"{size} bytes" for size in sorted({row["start"].partition("/")[2] for row in shown}, key=bytes_of)]
    ranked = sorted(shown, key=lambda row: (*mean_last(row), row["kind"], domain_of(row["start"])))
    if single:
        ranked = sorted(shown, key=lambda row: (row["task"] == ALL_TASKS, -row["value"]))
    entries = [
        {
            **row, "panel": "" if single else panel_title(row["task"], row["kind"], kinds),
            "series": label(domain_of(row["start"])) if single else f"{row['start'].partition('/')[2]} bytes",
            "name": label(row["task"]) if single else label(domain_of(row["start"])), "better": "higher",
        }
        for row in ranked
    ]  # fmt: skip
    domain, _, size = shown[0]["start"].partition("/")
    text = f" on {f'{size} bytes of ' if size else ''}{label(domain)} text" * single
    title = f"Score gained by pre-training{text}, {share_label(most)}"
    notes = [interval_note(level, entries, "mean differences"), "dashed: the same model from scratch"]
    notes += [metric_note(rows), "no bar: no difference in any seed" * any(row["value"] == 0 for row in shown)]
    return estimates(
        entries, domains_of(rows) if single else sizes, "score minus that from scratch", title, True,
        "; ".join(filter(None, notes)), dodge=not single, step=24 if single else 14 * len(sizes), own_scales=single,
        width=250,
    )  # fmt: skip


def bytes_of(size: str) -> float:
    """The number of bytes of a size such as 4M."""
    return size_of(f"/{size}")


def mean_last(row: Row) -> tuple[bool, str]:
    """A key that sorts rows by task, with the mean over tasks last."""
    return row["task"] == ALL_TASKS, label(row["task"])


def gain_matrix(gaps: Sequence[Row]) -> Chart:
    """Gain by domain and task from the largest text of each domain: a panel for each kind and share of the labels."""
    kinds = len({row["kind"] for row in gaps})
    cells = [
        {
            "series": f"{label(row['kind'])}, {share_label(row['share'])}" if kinds > 1 else share_label(row["share"]),
            "task": label(row["task"]), "domain": label(domain_of(row["start"])),
            "change": row["value"] if is_decided(row) else math.nan,
            "value": row["value"], "text": cell_text(row),
        }
        for row in sorted(largest_texts(gaps), key=lambda row: (-row["share"], row["kind"], mean_last(row)))
        if row["value"] is not None
    ]  # fmt: skip
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    x = alt.X("task:N", title=None, sort=tasks, axis=alt.Axis(labelAngle=0))
    y = alt.Y("domain:N", title="pre-training text")
    note = (
        "score (accuracy, CoLA Matthews correlation) after pre-training minus that from scratch, mean over seeds; "
        "blue: pre-training helps; red: it harms; in parentheses: undecided, the interval includes 0"
    )
    return change_matrix(
        pd.DataFrame(cells), x, y, "difference in score", "Score gained by pre-training", subtitle=note, columns=kinds
    )


def largest_texts(rows: Sequence[Row]) -> list[Row]:
    """The rows whose start is the largest text of its domain."""
    largest: dict[str, float] = {}
    for row in rows:
        domain = domain_of(row["start"])
        largest[domain] = max(largest.get(domain, 0.0), size_of(row["start"]))
    return [row for row in rows if size_of(row["start"]) == largest[domain_of(row["start"])]]


def cell_text(row: Row) -> str:
    """The gain of a cell, in parentheses where its interval does not exclude zero."""
    text = f"{row['value']:+.3f}".replace("-", "\N{MINUS SIGN}")
    text = "0.000" if text[1:] == "0.000" else text
    return text if is_decided(row) else f"({text})"


def is_decided(row: Row) -> bool:
    """Whether the interval of a gain excludes 0."""
    return row["lo"] is not None and (row["lo"] > 0 or row["hi"] < 0)


def effective_data(factors: Sequence[Row], rows: Rows, level: float) -> Chart:
    """How many times the labels training from scratch needs, with intervals; from the largest text of each domain.

    level  confidence level of the intervals
    """
    shown = pd.DataFrame([bounded(row) for row in largest_texts(factors)])
    domains = domains_of(rows)
    shown = shown.assign(series=shown["start"].map(domain_of).map(label))
    places = np.array([domains.index(name) - len(domains) / 2 for name in shown["series"]])
    x = values_axis("at", "share of the labels", shown["share"], "~%")
    shares = [float(share) for share in shown["share"]]
    x["scale"] = alt.Scale(type="log", domain=[min(shares) / 1.6, max(shares) * 1.6], nice=False)
    shown = shown.assign(at=shown["share"] * 1.15**places)  # side by side
    ends = shown[["value", "lo", "hi", "tip"]].to_numpy(dtype=float)
    domain = [float(np.nanmin(ends)) / 1.2, float(np.nanmax(ends)) * 1.2]
    powers = range(math.ceil(math.log10(domain[0])), math.floor(math.log10(domain[1])) + 1)
    axis = alt.Axis(values=[10.0**power for power in powers], format="~g", minExtent=EDGE)

    def draw(part: Rows, legend: bool) -> Chart:
        """The panel of a task and kind: for each domain and share a point with its interval, or an arrow."""
        title, scale = pointed("times as many labels", "higher"), alt.Scale(type="log", domain=domain, nice=False)
        y, low = (alt.Y(f"{name}:Q", title=title, scale=scale, axis=axis) for name in ("value", "lo"))
        base = alt.Chart(part).encode(x=x, color=color(domains, domains[1:], legend))
        layers = [alt.Chart(pd.DataFrame({"value": [1.0]})).mark_rule(strokeDash=[4, 4], color=GRAY).encode(y=y)]
        layers += [
            base.mark_rule(opacity=0.6).encode(y=low, y2="hi:Q"),
            base.transform_filter("datum.bound == 'estimate'").mark_point(size=46, filled=True, opacity=1).encode(y=y),
            base.mark_rule(strokeWidth=1.6).encode(y=y, y2="tip:Q"),
        ]
        for bound, head in (("at least", "triangle-up"), ("at most", "triangle-down")):
            arrow = base.transform_filter(f"datum.bound == '{bound}'").mark_point(
                shape=head, size=46, filled=True, opacity=1
            )
            layers.append(arrow.encode(y=over(y, "tip")))
        return alt.layer(*layers)

    notes = [interval_note(level, factors), "arrow up: at least the value at its blunt end; arrow down: at most"]
    notes.append("dashed: equally many")
    notes.insert(0, "labels that training from scratch needs for the same score, relative to those after pre-training")
    return panels(shown, draw, "Labels saved by pre-training", "; ".join(filter(None, notes)))


def bounded(row: Row) -> Row:
    """A row of effective data with its numbers moved onto the learning curve of the control.

    Where only a bound is known, an arrow leads from it to `tip`, and there is no interval.
    """
    least, most, factor = row["least"], row["most"], row["factor"]
    bound = "at least" if math.isinf(factor) else "at most" if factor == 0 else "estimate"
    value, lo, hi = (min(max(factor if end is None else end, least), most) for end in (factor, row["lo"], row["hi"]))
    tip = {"at least": value * ARROW, "at most": value / ARROW}.get(bound, math.nan)
    is_bound = bound != "estimate"
    return {
        **row, "value": value, "bound": bound, "tip": tip,
        "lo": math.nan if is_bound else lo, "hi": math.nan if is_bound else hi,
    }  # fmt: skip
