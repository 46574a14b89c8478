"""The study `ood`: loss on other text against loss on the training domain, and mixtures beside the dense models.

The line of a data set is fitted to the dense models of one seed, so its slope and the distance of a mixture from it
have one value a seed. Raises ValueError for runs without `evals=[ood]`, and for dense models of less than two sizes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from kleiber.config.labels import readable
from kleiber.records.catalog import Run
from kleiber.studies.compare.decision import Estimate, as_row, mean_estimate
from kleiber.studies.compare.places import OneRunStudy, refuse_twin_rows
from kleiber.studies.compare.rows import DENSE, MIXTURE, Rows
from kleiber.studies.study import Findings
from kleiber.types import Config, Json

METRIC = re.compile(r"eval/ood/(.+)/(bits_per_byte|gap)")
UNIT = "bits per byte"
OTHER = "loss on other text (bits per byte)"
METHODS = (
    "Dense models and mixtures of experts of several sizes were trained on one text and scored on its validation split "
    "and on other data sets, in bits per byte. For every data set and seed a line was fitted to the dense models, loss "
    "out of distribution against loss in domain (Brandfonbrener et al. 2024, arXiv:2411.12925). The distance of a "
    "mixture from that line at its own in-domain loss is its effective robustness (Taori et al. 2020, "
    "arXiv:2007.00644); below 0 it does better out of distribution than its in-domain loss predicts. Intervals are "
    "Student's over seeds; those of single data sets are corrected for their number (Bonferroni)."
)


@dataclass(frozen=True)
class OOD(OneRunStudy):
    """Slopes of loss-to-loss lines, and distances of mixtures from them."""

    def arm_of(self, config: Config) -> str:
        """The kind of model, of mixtures with their number of experts."""
        experts = (config["model"].get("mlp") or {}).get("num_experts")
        return DENSE if experts is None else f"{MIXTURE} of {experts} experts"

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Fits a line for each data set and seed, and compares mixtures with it."""
        rows = domain_losses(runs)
        lines = dense_lines(rows)
        if lines.empty:
            raise ValueError(
                "study=ood fits lines to dense models, and needs at least two sizes of each seed: add sizes to "
                "design.cases"
            )
        away = residuals(rows, lines)
        each = 1 - (1 - self.level) / rows["data"].nunique()
        slopes = estimates(lines, "slope", each, "bits per bit")
        distances = estimates(away, "residual", each, UNIT)
        mean_distance = overall(away, self.level)
        tables = {"Slope of the loss out of distribution against the loss in domain": listed(slopes)}
        if distances:
            tables["Mixture of experts relative to the line of dense models"] = listed(distances)
        tables["Losses in bits per byte"] = (
            rows.groupby(["kind", "width", "data"], sort=False)[["inside", "loss"]]
            .mean()
            .reset_index()
            .to_dict("records")
        )
        figures = {"ood_lines": partial(line_figure, rows, lines)}
        if distances:
            figures["ood_mixtures"] = partial(distance_figure, distances)
        return Findings(headline(slopes, mean_distance), tables=tables, figures=figures, methods=METHODS)


def domain_losses(runs: Sequence[Run]) -> Rows:
    """A row for each finished run and data set: seed, kind, width, params, data, loss and inside, in bits per byte.

    inside  the loss on the validation data of the run, the mean over its domains

    Raises ValueError where no run has such scores, and as `refuse_twins`.
    """
    table = []
    for run in (run for run in runs if run.finished):
        matches = {METRIC.fullmatch(key): value for key, value in run.metrics.items()}
        scores = {match.groups(): value for match, value in matches.items() if match is not None}
        outside = {data for data, metric in scores if metric == "gap"}
        inside = [value for (data, metric), value in scores.items() if data not in outside]
        params = run.stage.get("params") or {}
        setting = {
            "run": run.name, "seed": run.summary.get("seed"), "width": run.config["model"].get("width"),
            "params": params.get("active"), "total": params.get("total"),
            "kind": MIXTURE if params.get("total", 0) > params.get("active", 0) else DENSE,
        }  # fmt: skip
        table += [
            {**setting, "data": data, "loss": scores[data, "bits_per_byte"], "inside": float(np.mean(inside))}
            for data in outside
        ]
    if not table:
        raise ValueError("no finished run here has scores of evals=[ood]: train the runs with it")
    rows = pd.DataFrame(table).sort_values(["data", "kind", "width", "seed"], ignore_index=True)
    refuse_twin_rows(rows, ["kind", "width", "params", "total", "data", "seed"], runs)
    return rows


def dense_lines(rows: Rows) -> Rows:
    """Intercept and slope of the line of each data set and seed with dense models of at least two sizes."""
    lines = []
    for (data, seed), part in rows[rows["kind"] == DENSE].groupby(["data", "seed"]):
        if part["params"].nunique() >= 2:
            slope, intercept = np.polyfit(part["inside"], part["loss"], 1)
            lines.append({"data": data, "seed": seed, "slope": float(slope), "intercept": float(intercept)})
    return pd.DataFrame(lines)


def residuals(rows: Rows, lines: Rows) -> Rows:
    """Loss of the mixtures less that of the dense line at equal in-domain loss: mean over sizes, by data and seed."""
    mixtures = rows[rows["kind"] == MIXTURE].merge(lines, on=["data", "seed"])
    mixtures["residual"] = mixtures["loss"] - mixtures["intercept"] - mixtures["slope"] * mixtures["inside"]
    return mixtures.groupby(["data", "seed"])["residual"].mean().reset_index()


def estimates(table: Rows, column: str, level: float, unit: str) -> dict[str, Estimate]:
    """The mean of a column over seeds, by data set."""
    by_data = {str(data): mean_estimate(list(part[column]), level, unit) for data, part in table.groupby("data")}
    return {data: estimate for data, estimate in by_data.items() if estimate is not None}


def overall(away: Rows, level: float) -> Estimate | None:
    """The mean distance over data sets, with an interval over seeds; None without mixtures."""
    return mean_estimate(list(away.groupby("seed")["residual"].mean()), level, UNIT)


def headline(slopes: dict[str, Estimate], distance: Estimate | None) -> str:
    """The result in two sentences."""
    lowest, highest = min(slopes, key=lambda d: slopes[d].value), max(slopes, key=lambda d: slopes[d].value)
    between = (
        "With each bit by which the loss in domain falls, the loss on other text changes by "
        f"{-slopes[lowest].value:+.2f} ({label(lowest)}) to {-slopes[highest].value:+.2f} bits ({label(highest)})."
    )
    if distance is None:
        return f"{between} There are no mixtures of experts to compare with the dense models."
    if distance.lo is None or distance.hi is None:
        return f"{between} The effective robustness of the mixtures has no interval: it needs two seeds or more."
    if distance.lo <= 0 <= distance.hi:
        verdict = "Whether mixtures of experts generalize better than dense models of equal in-domain loss is undecided"
    else:
        direction = "lower" if distance.hi < 0 else "higher"
        verdict = (
            f"Mixtures of experts have a {direction} loss out of distribution than dense models of equal in-domain loss"
        )
    return f"{between} {verdict}: {distance.text()}, mean over {len(slopes)} data sets."


def label(data: str) -> str:
    """The name of a data set in sentences."""
    return data.rpartition("/")[2].replace("_", " ")


def listed(by_data: dict[str, Estimate]) -> list[Json]:
    return [{"data": label(data), **as_row(estimate)} for data, estimate in by_data.items()]


def line_figure(rows: Rows, lines: Rows) -> object:
    """The figure of the loss on each data set against the in-domain loss, with the mean line of the dense models."""
    import altair as alt

    from kleiber.charts.theme import HEIGHT, LABEL_GAP, kind_color, separate_labels, with_title

    names = {DENSE: "dense", MIXTURE: readable(MIXTURE)}
    points = rows.assign(kind=rows["kind"].map(names), name=rows["data"].map(label))
    low, high = float(points["inside"].min()), float(points["inside"].max())
    mean = lines.groupby("data")[["slope", "intercept"]].mean()
    ends: Rows = pd.DataFrame(
        [
            {"data": data, "inside": x, "loss": line["intercept"] + line["slope"] * x}
            for data, line in mean.iterrows()
            for x in (low, high)
        ]
    )
    right = ends[ends["inside"] == high]
    at = separate_labels(right["loss"].to_numpy(), LABEL_GAP * float(np.ptp(points["loss"])))
    right = right.assign(at=at, name=right["data"].map(label))
    room = 0.03 * (high - low)
    span = alt.Scale(domain=[low - room, high + room], nice=False)
    x = alt.X("inside:Q", title="loss in domain (bits per byte)", scale=span, axis=alt.Axis(tickCount=7))
    y, label_y = (alt.Y(f"{name}:Q", title=OTHER, scale=alt.Scale(zero=False)) for name in ("loss", "at"))
    color = kind_color(list(names.values()), legend=alt.Legend(orient="top", title=None))
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=list(names.values()), range=["circle", "diamond"]), legend=None)
    numbers = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("inside", "loss")]
    marks = alt.Chart(points).mark_point(filled=True, size=40, opacity=0.9)
    text = alt.Chart(right).mark_text(align="left", dx=12, fontSize=11, color="#333")
    chart = alt.layer(
        alt.Chart(ends).mark_line(color="#999", strokeWidth=1.2).encode(x=x, y=y, detail="data:N"),
        marks.encode(x=x, y=y, color=color, shape=shape, tooltip=["kind:N", "name:N", "width:Q", "seed:Q", *numbers]),
        text.encode(x=x, y=label_y, text="name:N"),
    )
    title, subtitle = "Loss on other text vs loss in domain", "a point a run; gray: line of the dense models"
    return with_title(chart, title, round(1.3 * HEIGHT), subtitle)


def distance_figure(distances: dict[str, Estimate]) -> object:
    """The figure of the distance of the mixtures from the dense line, by data set."""
    import altair as alt

    from kleiber.charts.theme import KINDS, with_title

    rows: Rows = pd.DataFrame(
        [{"data": label(d), "value": e.value, "lo": e.lo, "hi": e.hi} for d, e in distances.items()]
    )
    rows = rows.sort_values("value")
    title = "loss less that of the dense line (bits per byte)"
    base = alt.Chart(rows).encode(y=alt.Y("data:N", sort=list(rows["data"]), title=None), color=alt.value(KINDS[1]))
    layers = [alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(color="#888").encode(x="x:Q")]
    if rows["lo"].notna().all():
        layers.append(base.mark_rule(strokeWidth=1.6).encode(x=alt.X("lo:Q", title=title), x2="hi:Q"))
    layers.append(base.mark_point(filled=True, size=60, opacity=1).encode(x=alt.X("value:Q", title=title)))
    heading = "Mixtures of experts out of distribution, at equal in-domain loss"
    return with_title(alt.layer(*layers), heading, 40 + 24 * len(rows), "left of 0: better than the dense models")
