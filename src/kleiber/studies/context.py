"""The study `context`: the gain of a longer context, by its length, the kind of attention and position.

On text the loss falls slowly with position; on associative recall it falls to 0 or not at all. Raises ValueError where
cells differ in width or budget.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.rows import Rows, difference, format_mean, seed_means
from kleiber.studies.study import Figures, Findings, IntervalStudy
from kleiber.types import Json

KINDS = {"FullAttention": "full", "WindowAttention": "window", "NoMixing": "none"}
POSITION = re.compile(r"val/([^/]+)/position/(\d+)")


@dataclass(frozen=True)
class Context(IntervalStudy):
    """The gain of a longer context; the noise of seeds is pooled over all settings."""

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates the gain of a longer context for each data set and kind of attention."""
        rows, places = scored(runs)
        same_budget(rows)
        means = seed_means(rows, ("data", "attention", "context"), "loss", self.level)
        by_place = seed_means(places, ("data", "attention", "context", "position"), "loss", self.level)
        gains = [gain for data in sorted(rows["data"].unique()) for gain in worth(means, data)]
        tables = {"Loss by context": listed(means), "What context is worth": gains}
        for data, part in by_place.groupby("data"):
            longest = part[part["context"] == part["context"].max()]
            tables[f"Loss by position, {data}, context {int(longest['context'].max())}"] = listed(longest)
        notes = [{"code": "context", "level": "note", "text": gain["in words"]} for gain in gains]
        charts = figures(means, by_place)
        return Findings(headline(gains), notes, tables, charts, methods=METHODS)


METHODS = (
    "Models of one width and one number of training tokens were trained at contexts of different length with full "
    "causal attention, attention to a sliding window, and none (each position reads itself alone), on text and on "
    "made-up associative recall (Arora et al. 2023, arXiv:2312.04927). Held-out loss was averaged over the positions "
    "of a row and told by position in bins that double. Intervals are t intervals of means over seeds, their noise "
    "pooled over settings."
)


def scored(runs: Sequence[Run]) -> tuple[Rows, Rows]:
    """Returns two tables: losses with a row per finished run, and with a row per run and bin of positions.

    Raises ValueError if no run has finished.
    """
    rows, places = [], []
    for run in (run for run in runs if run.status == "finished"):
        model = run.config["model"]
        kind = str(model["attention"]["_target_"]).rpartition(".")[2]
        told_of = {
            "run": run.name, "seed": run.summary.get("seed"), "attention": KINDS.get(kind, kind),
            "context": int(model["context"]), "width": model.get("width"), "tokens": run.stage.get("tokens"),
        }  # fmt: skip
        for key, value in run.metrics.items():
            if key.startswith("val/") and key.endswith("/loss"):
                rows.append({**told_of, "data": key.split("/")[1], "loss": value})
            elif match := POSITION.fullmatch(key):
                places.append({**told_of, "data": match[1], "position": int(match[2]), "loss": value})
    if not rows:
        raise ValueError("no finished run here: nothing to compare")
    columns = ["data", "attention", "context", "position", "loss"]
    return pd.DataFrame(rows), pd.DataFrame(places, columns=None if places else pd.Index(columns))


def same_budget(rows: Rows) -> None:
    """Raises ValueError where widths or training tokens differ by more than 2 %."""
    for name in ("width", "tokens"):
        values = rows[name].dropna()
        if len(values) and values.max() > 1.02 * values.min():
            raise ValueError(
                f"study=context compares runs of equal {name}, and these have {values.min():g} to {values.max():g}: "
                f"train the runs of each {name} under another name="
            )


def worth(means: Rows, data: str) -> list[Json]:
    """For each kind of attention, the loss at the shortest context less that at the longest."""
    out = []
    for kind, part in means[means["data"] == data].groupby("attention"):
        part = part.sort_values("context")
        short, long = part.iloc[0], part.iloc[-1]
        if short["context"] == long["context"]:
            continue
        gain, half = difference(short, long)
        verb = "gains" if gain >= 0 else "loses"
        words = f"{data}: {kind} attention {verb} {format_mean(abs(gain), half)} nats per token from context "
        words += f"{short['context']} to {long['context']}"
        out.append({"data": data, "attention": kind, "from": int(short["context"]), "to": int(long["context"]),
                    "gain": gain, "half": half, "in words": words})  # fmt: skip
    return out


def headline(gains: Sequence[Json]) -> str:
    if not gains:
        return "One length of context only: what more of it is worth cannot be said."
    first = min(gains, key=lambda gain: (gain["data"] == "recall", gain["attention"] != "full"))
    return first["in words"][0].upper() + first["in words"][1:] + "."


def listed(means: Rows) -> list[Json]:
    return means.drop(columns="half").rename(columns={"mean": "loss"}).to_dict("records")


def figures(means: Rows, places: Rows) -> Figures:
    """The figures of the loss vs context and vs position."""
    from kleiber.charts.theme import line_chart

    charts: Figures = {}
    for data, part in means.groupby("data"):
        charts[f"context_{data}"] = lambda part=part, data=data: line_chart(
            part, "context", "context (tokens)", "attention", f"Loss against context: {data}", every=2
        )
    for data, part in places.groupby("data"):
        longest = part[part["context"] == part["context"].max()]
        charts[f"position_{data}"] = lambda part=longest, data=data: line_chart(
            part, "position", "position of the target (up to)", "attention",
            f"Loss by position: {data}, context {int(part['context'].max())}", every=2,
        )  # fmt: skip
    return charts
