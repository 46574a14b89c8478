"""The figures of the study `transfer`: scores by size of text and by labels, gains by domain, and effective data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts import GRAY, KINDS, Chart, change_matrix, estimates, in_rows, kind_color, pointed, span, values_axis
from kleiber.config import readable
from kleiber.studies import SCRATCH, Rows, interval_note
from kleiber.types import Row
from kleiber_topics.transfer.tables import ALL_TASKS, domain_of, size_of

LABELS = {"mlm": "masked", "clm": "causal", SCRATCH: "from scratch", "docs": "documentation"}
PANEL = {"width": 250, "height": 150}


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


def panel_title(task: str, kind: str, kinds: int) -> str:
    return f"{label(task)}, {label(kind)}" if kinds > 1 else label(task)


def panels(rows: Rows, draw: Callable[[Rows, bool], Chart], title: str, subtitle: str) -> Chart:
    """A panel for each task, and beside each other those of its kinds.

    draw  the panel of some rows, and whether it has the legend
    """
    kinds = rows["kind"].nunique()
    parts = list(rows.groupby(["task", "kind"], sort=True))
    charts = [
        draw(part, place == 0).properties(title=panel_title(task, kind, kinds), **PANEL)
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
        y = alt.Y("score:Q", title=axis_title(part), scale=span(part["score"].to_numpy()), axis=alt.Axis(tickCount=5))
        mean = alt.Y("mean(score):Q", title=axis_title(part), scale=span(part["score"].to_numpy()))
        trained = part[part["start"] != SCRATCH]
        base = alt.Chart(trained).encode(x=x, color=color(domains, domains[1:], legend))
        layers = [base.mark_line(strokeWidth=1.5).encode(y=mean), base.mark_point(size=16, filled=True).encode(y=y)]
        control = part.loc[part["start"] == SCRATCH, "score"]
        if len(control):
            layers += dashed(float(control.mean()), y)
        return alt.layer(*layers)

    subtitle = "lines: means over seeds; points: seeds; dashed: training from scratch"
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
        scale = span(part["score"].to_numpy())
        base = alt.Chart(part).encode(x=x, color=color(domains, domains, legend))
        y, mean = (alt.Y(f"{name}:Q", title=axis_title(part), scale=scale) for name in ("score", "mean(score)"))
        return alt.layer(
            base.mark_line(strokeWidth=1.5).encode(y=mean), base.mark_point(size=16, filled=True).encode(y=y)
        )

    return panels(shown, draw, "Score vs share of the labels", "lines: means over seeds; points: seeds")


def gains(gaps: Sequence[Row], rows: Rows, level: float) -> Chart:
    """Gain over training from scratch with the most labels: a panel for each task, a line for each kind and text.

    Of a single kind and text, tasks are lines of one panel.

    level  confidence level of the intervals
    """
    most = max(row["share"] for row in gaps)
    kinds = len({row["kind"] for row in gaps})
    shown = [row for row in gaps if row["share"] == most and row["value"] is not None]
    starts = {text_label(row, kinds) for row in shown}
    entries = [
        {
            **row,
            "panel": label(row["task"]) if starts != {text_label(row, kinds)} else "",
            "series": label(domain_of(row["start"])),
            "name": text_label(row, kinds) if starts != {text_label(row, kinds)} else label(row["task"]),
            "better": "higher",
        }
        for row in sorted(
            shown, key=lambda row: (mean_last(row), row["kind"], domain_of(row["start"]), -size_of(row["start"]))
        )
    ]
    title = f"Score gained by pre-training{f' on {min(starts)}' * (len(starts) == 1)}, {share_label(most)}"
    note = f"{interval_note(level, entries, 'mean differences')}; dashed: the same model from scratch"
    return estimates(
        entries,
        domains_of(rows),
        "score minus that from scratch",
        title,
        True,
        note,
        by_effect=len(starts) == 1,
        step=24,
    )


def mean_last(row: Row) -> tuple[bool, str]:
    """A key that sorts rows by task, with the mean over tasks last."""
    return row["task"] == ALL_TASKS, label(row["task"])


def text_label(row: Row, kinds: int) -> str:
    domain, _, size = row["start"].partition("/")
    text = f"{label(domain)} {size}".strip()
    return f"{label(row['kind'])}, {text}" if kinds > 1 else text


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
        "each number: the score after pre-training minus that of the same model from scratch, mean over seeds; "
        "without a color and in parentheses: undecided, the interval of the difference includes 0"
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
    shown = shown.assign(at=shown["share"] * 1.15**places)  # bars side by side
    shapes = alt.Scale(domain=["estimate", "at least", "at most"], range=["circle", "triangle-up", "triangle-down"])

    def draw(part: Rows, legend: bool) -> Chart:
        """The panel of a task and kind: a point with its interval for each domain and share."""
        scale = alt.Scale(type="log", padding=12)
        ticks = [10.0**power for power in range(-3, 4)]
        axis = alt.Axis(values=ticks, format="~g")
        y, low = (
            alt.Y(f"{name}:Q", title=pointed("times as many labels", "higher"), scale=scale, axis=axis)
            for name in ("value", "lo")
        )
        base = alt.Chart(part).encode(x=x, color=color(domains, domains[1:], legend))
        shape = alt.Shape("bound:N", title=None, scale=shapes, legend=alt.Legend() if legend else None)
        line = alt.Chart(pd.DataFrame({"value": [1.0]})).mark_rule(strokeDash=[4, 4], color=GRAY).encode(y=y)
        bars = base.mark_rule(opacity=0.6).encode(y=low, y2="hi:Q")
        return alt.layer(line, bars, base.mark_point(size=46, filled=True).encode(y=y, shape=shape))

    subtitle = "above 1, pre-training saves labels; triangles: at least or at most"
    subtitle = "; ".join(filter(None, (interval_note(level, factors), subtitle)))
    return panels(shown, draw, "How many times the labels training from scratch needs for the same score", subtitle)


def bounded(row: Row) -> Row:
    """A row of effective data with its numbers moved onto the learning curve of the control, and which were."""
    least, most, factor = row["least"], row["most"], row["factor"]
    bound = "at least" if math.isinf(factor) else "at most" if factor == 0 else "estimate"
    value, lo, hi = (min(max(factor if end is None else end, least), most) for end in (factor, row["lo"], row["hi"]))
    return {**row, "value": value, "lo": lo, "hi": hi, "bound": bound}
