"""The study `context`: the gain of a longer context, by its length, the kind of attention and position.

On text the loss falls slowly with position; on associative recall it falls to 0 or not at all. Raises ValueError where
cells differ in width or budget.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.decision import Estimate, as_row
from kleiber.studies.compare.rows import Rows, difference, seed_means
from kleiber.studies.study import Figures, Findings, IntervalStudy
from kleiber.types import Json

KINDS = {"FullAttention": "full", "WindowAttention": "window", "NoMixing": "none"}
MEASURED = re.compile(r"val/(.+?)/(?:position/(\d+)|loss)")


@dataclass(frozen=True)
class Context(IntervalStudy):
    """The gain of a longer context; the noise of seeds is pooled over all settings."""

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates the gain of a longer context for each data set and kind of attention."""
        rows = scored(runs)
        same_budget(rows)
        at_place = rows["position"].notna()
        settings = ["data", "attention", "context"]
        means = seed_means(rows[~at_place], settings, "loss", self.level)
        by_place = seed_means(rows[at_place], [*settings, "position"], "loss", self.level)
        gained = gains(means)
        texts = [gain_sentence(row, estimate) for row, estimate in gained]
        table = [{**row, **as_row(estimate)} for row, estimate in gained]
        tables = {"Loss by context": listed(means), "Loss at the shortest context less that at the longest": table}
        charts: Figures = {}
        several = {data: part for data, part in means.groupby("data") if part["context"].nunique() > 1}
        for data, part in several.items():
            title = f"Loss vs context: {data}"
            charts[file_name("context", data)] = partial(chart, part, "context", "context (tokens)", title)
        for data, part in by_place.groupby("data"):
            longest = part[part["context"] == part["context"].max()]
            title = f"Loss by position, {data}, context {longest['context'].max()}"
            tables[title] = listed(longest)
            if longest["position"].nunique() > 1:
                charts[file_name("position", data)] = partial(
                    chart, longest, "position", "position of the target (up to)", title
                )
        notes = [{"code": "context", "level": "note", "text": text} for text in texts]
        headline = texts[0] if texts else "The gain of a longer context is not determined: all runs have one context."
        return Findings(headline, notes, tables, charts, methods=METHODS)


METHODS = (
    "Models of one width and one number of training tokens were trained at contexts of different length with full "
    "causal attention, attention to a sliding window, and none (each position reads itself alone), on text and on "
    "made-up associative recall (Arora et al. 2023, arXiv:2312.04927). Held-out loss was averaged over the positions "
    "of a row and told by position in bins that double. Intervals are t intervals of means over seeds, their noise "
    "pooled over settings."
)


def scored(runs: Sequence[Run]) -> Rows:
    """Returns losses with a row per finished run and data set, and one per bin of positions, the column `position`.

    Raises ValueError if no run has finished.
    """
    rows = []
    for run in (run for run in runs if run.finished):
        model = run.config["model"]
        kind = str(model["attention"]["_target_"]).rpartition(".")[2]
        setting = {
            "run": run.name, "seed": run.summary.get("seed"), "attention": KINDS.get(kind, kind),
            "context": int(model["context"]), "width": model.get("width"), "tokens": run.stage.get("tokens"),
        }  # fmt: skip
        matches = [(MEASURED.fullmatch(key), value) for key, value in run.metrics.items()]
        rows += [{**setting, "data": m[1], "position": m[2], "loss": value} for m, value in matches if m]
    if not rows:
        raise ValueError("no finished run here: nothing to compare")
    table = pd.DataFrame(rows)
    return table.assign(position=table["position"].astype(float))


def same_budget(rows: Rows) -> None:
    """Raises ValueError where widths or training tokens differ by more than 2 %."""
    for name in ("width", "tokens"):
        values = rows[name].dropna()
        if len(values) and values.max() > 1.02 * values.min():
            raise ValueError(
                f"study=context compares runs of equal {name}, and these have {values.min():g} to {values.max():g}: "
                f"train the runs of each {name} under another name="
            )


def gains(means: Rows) -> list[tuple[Json, Estimate]]:
    """For each data set and attention, the loss at the shortest context less that at the longest.

    Full attention on text comes first.
    """
    gained = []
    for (data, kind), part in means.sort_values("context").groupby(["data", "attention"]):
        short, long = part.iloc[0], part.iloc[-1]
        if short["context"] < long["context"]:
            row = {"data": data, "attention": kind, "from": int(short["context"]), "to": int(long["context"])}
            gained.append((row, difference(short, long, "nats per token")))
    return sorted(gained, key=lambda gain: (gain[0]["data"] == "recall", gain[0]["attention"] != "full"))


def gain_sentence(row: Json, estimate: Estimate) -> str:
    text = f"On {row['data']}, attention {row['attention']}: the loss at a context of {row['from']} tokens less that at"
    return f"{text} {row['to']} is {estimate.text()}."


def file_name(kind: str, data: str) -> str:
    """The name of a figure of a data set, whose own name may contain slashes."""
    return f"{kind}_{data.replace('/', '_')}"


def listed(means: Rows) -> list[Json]:
    return means.drop(columns="half").rename(columns={"mean": "loss"}).to_dict("records")


def chart(means: Rows, x: str, title: str, heading: str) -> object:
    """The figure of the loss vs context or position, a line for each kind of attention."""
    from kleiber.charts.theme import line_chart

    return line_chart(means, x, title, "attention", heading, every=2)
