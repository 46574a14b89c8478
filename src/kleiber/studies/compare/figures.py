"""The figures of studies of arms, and of arms that fine-tune common bases, drawn with the forms of charts/."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.distribution import distribution
from kleiber.charts.intervals import LETTER, estimates
from kleiber.charts.matrix import change_matrix
from kleiber.charts.scatter import point_names
from kleiber.charts.scatter import scatter as points
from kleiber.charts.series import Marks, arm_color, lines, seed_lines, set_apart
from kleiber.charts.theme import (
    BLACK,
    FEW,
    PALETTE,
    WIDTH,
    Chart,
    Rows,
    colors_of,
    format_count,
    heading,
    pointed,
    values_axis,
)
from kleiber.studies.compare.chart_forms import DODGE, FORGETTING, apart, interval_note, shifted
from kleiber.studies.compare.differences import AS_RUN
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.figures import curve
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.studies.compare.arms import Arm

WAYS = {"": "equal training tokens", " at equal time": "equal training time"}


def losses_of(arms: Mapping[str, Arm]) -> list[Json]:
    """A row for each run of the arms that has a finite measure: series (the arm), lr, seed, value."""
    return [
        {"series": name, "lr": lr, "seed": seed, "value": loss}
        for name, arm in arms.items()
        for lr, by_seed in arm.values_by_rate.items()
        for seed, loss in by_seed.items()
        if math.isfinite(loss)
    ]


def tuning(
    arms: Mapping[str, Arm], measure: str, panels: Mapping[str, str] | None = None, better: str = "none"
) -> Chart:
    """A measure vs learning rate: a line for the mean of each arm, a point for each seed.

    measure  label of the axis
    panels   the panel of each arm, of arms whose measures do not compare between panels
    better   the side of the axis that is: lower, higher or none
    """
    rows = in_own_panels(pd.DataFrame(losses_of(arms)), panels)
    if panels is not None:  # which have titles
        rows["series"] = [
            name.removeprefix(f"{panel} ") for name, panel in zip(rows["series"], rows["panel"], strict=True)
        ]
    x = values_axis("lr", "learning rate", apart(rows["lr"]), "~g")
    title, note = f"{heading(measure)} vs learning rate", "points: seeds; lines: means over seeds"
    parts = [rows] if panels is None else [part for _, part in rows.groupby("panel", sort=False)]
    if max(part["series"].nunique() for part in parts) > 1:
        note += "; models are set slightly apart at each rate"
        step = (rows["lr"].max() / rows["lr"].min()) ** (2 * DODGE)
        rows = pd.concat([set_apart(part, "lr", "series", list(part["series"].unique()), step) for part in parts])
    order = [*arms] if panels is None else [*rows["series"].unique()]
    return seed_lines(rows, x, pointed(measure, better), order, title, own_scales=True, subtitle=note)


def in_own_panels(rows: Rows, panels: Mapping[str, str] | None) -> Rows:
    """The rows with the panel of their arm in the column `panel`, if there are panels."""
    return rows if panels is None else rows.assign(panel=rows["series"].map(panels))


def side_by_side(
    arms: Mapping[str, Arm], measure: str, panels: Mapping[str, str] | None = None, better: str = "none"
) -> Chart:
    """A measure of each arm at its best learning rate, a point for each seed; those of untuned arms are hollow.

    panels  as in `tuning`
    better  the side of the axis that is: lower, higher or none
    """
    rows = in_own_panels(
        pd.DataFrame([row for row in losses_of(arms) if row["lr"] == arms[row["series"]].best_lr]), panels
    )
    untuned = {name for name, arm in arms.items() if arm.untuned_because}
    rows = rows.assign(hollow=[name in untuned and len(untuned) < len(arms) for name in rows["series"]])
    several = len(set(rows["seed"])) > 1
    note = "points: seeds" if several else "points: one run each"
    note += "; hollow: the learning rate is not tuned" if rows["hollow"].to_numpy().any() else ""
    tuned = any(len(arm.values_by_rate) > 1 for arm in arms.values())
    best = "each model at the best learning rate tried" if untuned else "each model at its best learning rate"
    title = f"{heading(measure)}{f', {best}' * tuned}"
    return distribution(rows, [*arms], measure, title, note, better)


def differences(
    gaps: Mapping[str, Sequence[Row]], order: Sequence[str], level: float, joint: bool = False,
    panels: Mapping[str, str] | None = None,
) -> Chart:  # fmt: skip
    """Differences between arms with their intervals at equal quantities, a panel for each measure.

    gaps    rows with arm, against, equal, value, lo, hi and n, by the label of their measure
    order   the arms
    level   confidence level of the intervals, of each or, where they are `joint`, of all together
    panels  the panel of each arm, of arms whose measures do not compare between panels: their differences are left out

    Equal differences at several equal quantities are one line.
    """
    panels = panels or {}
    drawn = one_way([
        {**gap, "of": measure}
        for measure, part in gaps.items()
        for gap in part
        if panels.get(gap["arm"]) == panels.get(gap["against"])
    ])  # fmt: skip
    gaps = {measure: [gap for gap in drawn if gap["of"] == measure] for measure in gaps}
    gaps = {measure: part for measure, part in gaps.items() if part}
    lines: dict[tuple[str, ...], list[Row]] = {}
    for measure, part in gaps.items():
        for gap in part:
            place = (measure, *(str(gap[name]) for name in ("arm", "against", "value", "lo", "hi")))
            lines.setdefault(place, []).append(gap)
    ways = {place: listed(dict.fromkeys(gap["equal"] for gap in part)) for place, part in lines.items()}
    plain, several = common_arm(drawn), len(set(ways.values())) > 1
    rows = [
        {
            "series": pair_arm(part[0], order),
            "name": pair_name(part[0], plain) + (f", equal {ways[place]}" if several else ""),
            "panel": panels.get(part[0]["arm"]) or (heading(place[0]) if len(gaps) > 1 else ""),
            "below": f"difference in {place[0]}",
            **{name: part[0][name] for name in ("value", "lo", "hi")}, "better": part[0].get("better", "none"),
        }
        for place, part in lines.items()
    ]  # fmt: skip
    equal = "" if several or AS_RUN in ways.values() else f" at equal {next(iter(ways.values()))}"
    notes = [interval_note(level, drawn, "mean differences", joint), "dashed: no difference"]
    measure = next(iter(gaps))
    title = f"Difference in {measure.partition(' (')[0]}" if len(gaps) == 1 else "Differences"
    title += (f" from {plain}" if plain else " between models") + equal
    return estimates(
        rows, order, "", title, zero=True, by_effect=True, step=24, subtitle="; ".join(filter(None, notes))
    )


def one_way(rows: Sequence[Row]) -> list[Row]:
    """Returns differences of which each arm is on one side: one that was the first arm of a row stays the first."""
    firsts, turned = list[str](), []
    for row in rows:
        if row["against"] in firsts and row["arm"] not in firsts:
            value, lo, hi = (None if row[name] is None else -row[name] for name in ("value", "hi", "lo"))
            row = {**row, "arm": row["against"], "against": row["arm"], "value": value, "lo": lo, "hi": hi}
        firsts.append(row["arm"])
        turned.append(row)
    return turned


def listed(names: Iterable[str]) -> str:
    """Returns names as a list in a sentence: `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def unit_of(labels: Iterable[str]) -> str:
    """Returns the unit in parentheses that all labels end with, after a space; "" if they differ."""
    units = {label.partition(" (")[2] for label in labels}
    return f" ({units.pop()}" if len(units) == 1 and units != {""} else ""


def common_arm(rows: Sequence[Row]) -> str:
    """Returns the arm against which all rows compare; "" if there are several."""
    against = {row["against"] for row in rows}
    return against.pop() if len(against) == 1 else ""


def pair_name(row: Row, plain: str = "") -> str:
    """Returns the label of the difference between two arms: the first arm alone if all are compared with `plain`."""
    return row["arm"] if plain else f"{row['arm']} \N{MINUS SIGN} {row['against']}"


def pair_arm(row: Row, order: Sequence[str]) -> str:
    """Returns the arm whose color a pair of arms has: the first that is not black, which is the color of references."""
    colors = colors_of(order)
    return next((row[name] for name in ("arm", "against") if colors[row[name]] != BLACK), row["arm"])


def over_tokens(rows: Sequence[Row], order: Sequence[str], measure: str, level: float, better: str = "none") -> Chart:
    """Differences of pairs of arms vs training tokens, a panel at equal tokens and one at equal training time.

    level   confidence level of each interval
    better  the side of the axis that is: lower, higher or none
    order  the arms; a pair has the color of `pair_arm`, and a further pair of this arm has a color of its own
    """
    plain = common_arm(rows)
    shown = [
        {
            "arm": pair_arm(row, order), "series": pair_name(row, plain), "tokens": row["tokens"], "n": row["n"],
            "panel": f"At {way}", **{name: row[f"{name}{suffix}"] for name in ("value", "lo", "hi")},
        }
        for suffix, way in WAYS.items()
        for row in rows
        if row[f"value{suffix}"] is not None
    ]  # fmt: skip
    frame = pd.DataFrame(shown).astype({"lo": float, "hi": float})
    first = f"training tokens of the {'changed model' if plain else 'model named first'}"
    x = values_axis("tokens", first, frame["tokens"])
    title = f"Difference in {measure.partition(' (')[0]}{f' from {plain}' * bool(plain)} vs training tokens"
    lengths = {max(part["tokens"].tolist()) for _, part in frame.groupby(["panel", "series"])}
    ends = "a line ends where one of its two models has no longer run" if len(lengths) > 1 else ""
    note = "; ".join(filter(None, [interval_note(level, frame, "mean differences"), "dashed: no difference", ends]))
    frame = frame.assign(tokens=shifted(frame, "tokens", list(frame["series"].unique()), linear=False, by=1.5 * DODGE))
    pairs = {str(arm): list(part.unique()) for arm, part in frame.groupby("arm")["series"]}
    further = [series for arm in order for series in pairs.get(arm, [])[1:]]
    colors = colors_of([*order, *further])
    sides = {pair_name(row, plain): (row["arm"], row["against"]) for row in rows}
    for arm, each in pairs.items():  # black is the color of references
        hues = [colors[name] for name in (arm, *sides[each[0]]) if colors[name] != BLACK]
        colors[each[0]] = hues[0] if hues else BLACK
    return seed_lines(
        frame.drop(columns="arm"), x, pointed(f"difference{unit_of([measure])}", better), colors, title, reference=0.0,
        subtitle=note,
    )  # fmt: skip


def scatter(
    rows: Sequence[Row], order: Sequence[str], x: tuple[str, str], y: tuple[str, str], better: str = "none"
) -> Chart:
    """A point for each arm with its name, by two columns of the rows.

    order   the arms
    x, y    a column and its label
    better  the side of the vertical axis that is: lower, higher or none
    """
    frame = pd.DataFrame([{"series": row["arm"], "x": row[x[0]], "value": row[y[0]]} for row in rows])
    places = frame["x"].to_numpy(dtype=float)
    low, high = float(places.min()), float(places.max())
    letters = LETTER * max(map(len, frame["series"])) + 12
    wide = high - low or abs(high) or 1.0
    room, margin = wide * letters / (WIDTH - letters), 0.08 * wide
    start = 0.0 if 0 <= low < margin else low - margin  # no ticks below 0 for what cannot be negative
    scale = alt.Scale(domain=[start, high + room], nice=False)
    ticks, style = spaced(sorted(set(places.tolist())), margin), ".3~s" if high >= 1e3 else ".3~g"
    axis = alt.Axis(format=style, grid=False, values=ticks if len(ticks) <= FEW else alt.Undefined)
    across = alt.X("x:Q", scale=scale, title=x[1], axis=axis)
    up = alt.Y("value:Q", title=pointed(y[1], better), scale=alt.Scale(zero=False, padding=12))
    letter = LETTER * (high + room - start) / WIDTH
    tables = [Marks(rows=frame, points=46), point_names(frame, "series", "x", "value", letter)]
    title, note = f"{heading(y[1])} vs {x[1].partition(' (')[0]}", "points: means over seeds"
    return points(tables, across, up, title, color=arm_color(order, order, legend=False), subtitle=note)


def spaced(values: Sequence[float], gap: float) -> list[float]:
    """Returns ascending values without those less than `gap` above the one before."""
    kept = [*values[:1]]
    for value in values[1:]:
        if value - kept[-1] >= gap:
            kept.append(value)
    return kept


def score_matrix(cells: Rows, title: str) -> Chart:
    """R of each method, tasks by their place in the order; color is the change since the task was learned."""
    x = alt.X("task:O", title="task in order", axis=alt.Axis(labelAngle=0))
    return change_matrix(cells, x, alt.Y("stage:O", title="after stage"), "since learned", title)


def first_task(rows: Rows, order: Sequence[str], unit: str, title: str) -> Chart:
    """The score of the first task of each sequence vs the stage, a point for each order and seed."""
    x = alt.X("stage:O", title="tasks learned so far", axis=alt.Axis(labelAngle=0))
    return seed_lines(rows, x, unit, order, title, subtitle="points: runs; lines: means over orders and seeds")


def named_cells(record: Json) -> Rows:
    """The cells of the grid of the forgetting law, each with the name of its size and pre-training."""
    rows = pd.DataFrame(record["rows"]).sort_values(["N", "M"])
    sizes = zip(rows["N"], rows["M"], strict=True)
    return rows.assign(series=[f"{format_count(n)} parameters, {m:g} tokens per parameter" for n, m in sizes])


def series_color(rows: Rows) -> alt.Color:
    """By size, then by pre-training, dark to light."""
    order = list(dict.fromkeys(rows["series"]))
    return alt.Color("series:N", title=None, sort=order, scale=alt.Scale(scheme=PALETTE, domain=order))


def fitted(record: Json, rows: Rows) -> np.ndarray:
    law = find(record["main"]["law"])
    return curve(law, record["main"], **{name: rows[name].to_numpy(dtype=float) for name in law.inputs})


TIPS = ["series:N", "D:Q", "p:Q", "n:Q", alt.Tooltip("F:Q", format=".4f")]


def replay(rows: Rows, record: Json) -> Chart:
    """F vs the replayed share where the new text is longest, the law as lines; the dashed line is what is tolerated."""
    longest = rows[rows["beside"] == rows["beside"].max()]
    shares = np.linspace(0, longest["p"].max(), 60)
    parts = []
    for name, part in longest.groupby("series"):
        part = part.sort_values("p")
        new = np.interp(shares, part["p"], part["D"])  # what is replayed may be part of the budget
        line = pd.DataFrame([part.iloc[0]] * len(shares)).assign(p=shares, D=new, series=name)
        parts.append(line.assign(F=fitted(record, line)))
    x = alt.X("p:Q", title="replayed share of the tokens", axis=alt.Axis(format="%"))
    tolerate, y = record["critical"]["tolerate"], alt.Y("F:Q", title=FORGETTING)
    tables = [Marks(rows=pd.concat(parts), value="F", line=1.5), Marks(rows=longest, value="F", points=46, tips=TIPS)]
    return lines(
        tables, x, y, "Forgetting vs replayed share, longest fine-tuning", color=series_color(rows), reference=tolerate,
        subtitle=f"lines: the fitted law; dashed: {tolerate:g} nats, which are tolerated",
    )  # fmt: skip


def tokens(rows: Rows) -> Chart:
    """F vs the tokens of new text, without replay."""
    plain = rows[rows["p"] == 0]
    x, y = values_axis("D", "tokens of new text", plain["D"].round(-3), ".3~s"), alt.Y("F:Q", title=FORGETTING)
    table = Marks(rows=plain, value="F", line=2, points=30, tips=TIPS)
    return lines([table], x, y, "Forgetting vs new tokens, no replay", color=series_color(rows))


def observed(rows: Rows, record: Json) -> Chart:
    """Every cell of the grid vs the law; the dashed line is equality."""
    shown = rows.assign(law=fitted(record, rows))
    color = alt.Color("p:Q", title="replayed", scale=alt.Scale(scheme=PALETTE), legend=alt.Legend(format="%"))
    x, y = alt.X("law:Q", title="F of the law (nats)"), alt.Y("F:Q", title="F observed (nats)")
    table, title = Marks(rows=shown, value="F", points=46, tips=TIPS), "Observed vs fitted forgetting"
    return points([table], x, y, title, color=color, subtitle="dashed: equality", equality=True)
