"""The losses that the study `retrieval` compares: by arm, way of retrieval, domain and seed, as tables and figures."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.decision import as_row, gaps_by_seed, mean_estimate
from kleiber.studies.compare.places import refuse_twin_rows
from kleiber.studies.compare.rows import PLAIN, Rows, method_of, seed_means, values_by
from kleiber.types import Config, Json

UNIT = "nats per token"
BASE = "base"
ALONE, KNN = "alone", "knn"
WAYS = {
    ALONE: "",
    KNN: "with nearest neighbors",
    "bm25": "with BM25 text in front",
    "dense": "with dense text in front",
}
METRIC = re.compile(r"(?:(knn|bm25|dense)/)?(?:tokens(\d+)/|interpolation([\d.]+)/)?loss")
COSTS = ("store_bytes", "seconds_per_token")

BySeed = Mapping[int, float]


def label(arm: str) -> str:
    """What an arm is called: `replay of 5 %`, with its other settings behind: `replay of 5 %, memory=100K`."""
    named = {BASE: "before fine-tuning", PLAIN: "plain fine-tuning"}
    replay = re.fullmatch(r"replay fraction=([\d.]+)(?: (.+))?", arm)
    if replay is None:
        return named.get(arm, arm)
    return ", ".join([f"replay of {100 * float(replay[1]):g} %", *filter(None, [replay[2]])])


def used(arm: str, way: str) -> str:
    """What an arm with a way of retrieval is called."""
    return f"{label(arm)} {WAYS[way]}".strip()


def arm_of(config: Config) -> str:
    """The method of fine-tuning and its setting; BASE for a run that started from random weights."""
    return " ".join(method_of(config)).strip() if (config.get("init") or {}).get("path") else BASE


def evaluated(runs: Sequence[Run], old: str, new: str) -> Rows:
    """A row for each loss of each evaluated run.

    Columns: run, seed, arm, domain (old or new), way, tokens (of a smaller store; nan for the largest), weight (of the
    neighbors, where it was set; else nan), loss, store_bytes, seconds_per_token. Raises ValueError where no run of
    plain fine-tuning, or none of a base, was evaluated.
    """
    table = []
    for run in (run for run in runs if run.finished):
        arm = arm_of(run.config)
        for domain, data in (("old", old), ("new", new)):
            prefix = f"eval/retrieval/{data}/"
            scores = {key.removeprefix(prefix): v for key, v in run.metrics.items() if key.startswith(prefix)}
            for name, loss in scores.items():
                if (match := METRIC.fullmatch(name)) is None:
                    continue
                costs = {cost: scores.get(name.removesuffix("loss") + cost, np.nan) for cost in COSTS}
                place = {
                    "way": match[1] or ALONE,
                    "tokens": float(match[2] or "nan"),
                    "weight": float(match[3] or "nan"),
                }
                row = {"run": run.name, "seed": run.config["seed"], "arm": arm, "domain": domain}
                table.append({**row, **place, "loss": loss, **costs})
    rows = pd.DataFrame(table)
    missing = {BASE, PLAIN} - set(rows["arm"] if len(rows) else ())
    if missing:
        names = " and ".join(sorted(label(arm) for arm in missing))
        raise ValueError(
            f"no finished run of {names} was evaluated by retrieval on {old} and {new}: train the runs with "
            f"evals=[retrieval] 'evals.retrieval.data=[{old},{new}]', or set study.old and study.new"
        )
    refuse_twin_rows(rows, ["arm", "seed"], runs)
    return rows


class Losses:
    """The losses of all runs by arm, way and domain."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.largest = rows[rows["tokens"].isna() & rows["weight"].isna()]

    def arms(self) -> list[str]:
        """All arms: the base, plain fine-tuning, then the others in order of their name."""
        return sorted(set(self.rows["arm"]), key=lambda arm: (arm != BASE, arm != PLAIN, arm))

    def has(self, arm: str, way: str) -> bool:
        """Whether an arm was evaluated in this way."""
        return bool(((self.largest["arm"] == arm) & (self.largest["way"] == way)).any())

    def of(self, arm: str, way: str = ALONE) -> Mapping[str, BySeed]:
        """The losses of an arm with the largest store, by domain and seed."""
        return {
            domain: values_by(self.largest, ["seed"], "loss", arm=arm, way=way, domain=domain)
            for domain in ("old", "new")
        }

    def at_weights(self, arm: str) -> Mapping[str, Mapping[float, BySeed]]:
        """The losses of an arm with nearest neighbors by domain, weight of the neighbors (0: alone) and seed."""
        part = self.rows[(self.rows["arm"] == arm) & self.rows["weight"].notna()]
        alone = self.of(arm)
        return {
            domain: {0.0: alone[domain]}
            | {float(w): values_by(of, ["seed"], "loss") for w, of in part[part["domain"] == domain].groupby("weight")}
            for domain in ("old", "new")
        }


def change(ours: Mapping[str, BySeed], theirs: Mapping[str, BySeed], domain: str) -> list[float]:
    """The difference of the losses on a domain, of each common seed."""
    return gaps_by_seed(ours[domain], theirs[domain])


def matched(losses: Losses, arm: str) -> dict[int, float]:
    """By seed, the old-domain loss of plain fine-tuning with neighbors less that of an arm, at its new-domain loss.

    The weight of the neighbors is that at which both have the same loss on the new domain, between two weights on a
    straight line. Seeds whose loss on the new domain is not reached at any weight are left out.
    """
    curve, other = losses.at_weights(PLAIN), losses.of(arm)
    gaps = {}
    for seed in sorted(other["new"].keys() & curve["new"][0.0].keys()):
        points = [
            (curve["new"][w][seed], curve["old"][w][seed]) for w in sorted(curve["new"]) if seed in curve["new"][w]
        ]
        for (x, y), (next_x, next_y) in itertools.pairwise(points):
            if x <= other["new"][seed] <= next_x:
                share = (other["new"][seed] - x) / (next_x - x) if next_x > x else 0.0
                gaps[seed] = y + share * (next_y - y) - other["old"][seed]
                break
    return gaps


def matched_table(losses: Losses, level: float) -> list[Json]:
    """The old-domain loss of plain fine-tuning with neighbors less that of each other arm, at equal new-domain loss."""
    rows = []
    for arm in losses.arms():
        if arm not in (BASE, PLAIN) and len(losses.at_weights(PLAIN)["new"]) > 1:
            gaps, seeds = matched(losses, arm), len(losses.of(arm)["new"])
            row = {"arm": used(PLAIN, KNN), "against": label(arm), "seeds that reach it": f"{len(gaps)} of {seeds}"}
            rows.append({**row, **as_row(mean_estimate(list(gaps.values()), level, UNIT))})
    return rows


def arm_table(losses: Losses, level: float) -> list[Json]:
    """A row for each arm and way: mean losses on both domains with intervals, bytes of the store, seconds per token."""
    table = []
    for arm in losses.arms():
        for way in (way for way in WAYS if losses.has(arm, way)):
            part = losses.largest[(losses.largest["arm"] == arm) & (losses.largest["way"] == way)]
            row: Json = {"arm": label(arm), "retrieval": WAYS[way] or "none"}
            for domain in ("old", "new"):
                estimate = mean_estimate(list(losses.of(arm, way)[domain].values()), level, UNIT)
                row |= {
                    f"{domain}: {key}": value for key, value in as_row(estimate).items() if key in ("value", "lo", "hi")
                }
            costs = {
                "store (MB)": part["store_bytes"].median() / 1e6,
                "ms per token": 1e3 * part["seconds_per_token"].median(),
            }
            table.append({**row, **{name: None if np.isnan(value) else float(value) for name, value in costs.items()}})
    return table


def size_table(rows: Rows, level: float) -> list[Json]:
    """The change of the loss on the old domain by retrieval, for each arm, way and size of the store, within seeds."""
    old = rows[(rows["domain"] == "old") & rows["weight"].isna()]
    alone = old[old["way"] == ALONE].set_index("run")["loss"]
    sized = old[old["tokens"].notna()]
    if sized.empty:
        return []
    sized = sized.assign(change=sized["loss"] - sized["run"].map(alone))
    means = seed_means(sized, ["arm", "way", "tokens"], "change", level)
    return [
        {
            "arm": label(row["arm"]),
            "retrieval": WAYS[row["way"]],
            **{k: row[k] for k in ("tokens", "mean", "lo", "hi", "half", "seeds")},
        }
        for row in means.to_dict("records")
    ]


def tradeoff_chart(losses: Losses) -> object:
    """Loss on the old domain vs loss on the new one: a point for each arm and way, and a line over weights."""
    import altair as alt

    from kleiber.charts.theme import kind_color, with_title

    points = [
        {
            "arm": label(arm),
            "retrieval": WAYS[way] or "alone",
            "seed": seed,
            "new": new,
            "old": losses.of(arm, way)["old"][seed],
        }
        for arm in losses.arms()
        for way in WAYS
        for seed, new in losses.of(arm, way)["new"].items()
    ]
    table: Rows = pd.DataFrame(points)
    means = table.groupby(["arm", "retrieval"], sort=False)[["new", "old"]].mean().reset_index()
    curve = losses.at_weights(PLAIN)
    line: Rows = pd.DataFrame(
        [
            {"weight": w, **{domain: float(np.mean(list(curve[domain][w].values()))) for domain in ("new", "old")}}
            for w in sorted(curve["new"])
        ]
    )
    arms, ways = (
        [label(arm) for arm in losses.arms()],
        [way or "alone" for way in WAYS.values() if (way or "alone") in set(means["retrieval"])],
    )
    scale = alt.Scale(zero=False, padding=14)
    x = alt.X("new:Q", title="loss on the new domain (nats per token)", scale=scale, axis=alt.Axis(tickCount=6))
    y = alt.Y("old:Q", title="loss on the old domain (nats per token)", scale=scale, axis=alt.Axis(tickCount=6))
    legend = alt.Legend(title=None, orient="right", labelLimit=220)
    color = kind_color(arms, "arm", legend)
    shape = alt.Shape("retrieval:N", scale=alt.Scale(domain=ways), legend=legend)
    tips = ["arm:N", "retrieval:N", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("new", "old"))]
    chart = alt.layer(
        alt.Chart(line).mark_line(color="#999", strokeDash=[4, 3]).encode(x=x, y=y, order="weight:Q"),
        alt.Chart(table).mark_point(size=14, opacity=0.45).encode(x=x, y=y, color=color, shape=shape),
        alt.Chart(means)
        .mark_point(filled=True, size=90, opacity=1)
        .encode(x=x, y=y, color=color, shape=shape, tooltip=tips),
    )
    weights = f"dashed: weights of the neighbors from 0 to {line['weight'].max():g} after plain fine-tuning; " * (
        len(line) > 1
    )
    subtitle = f"{weights}large: means over seeds, small: seeds"
    return with_title(chart, "Loss on the old domain vs loss on the new one", subtitle=subtitle)


def sizes_chart(sizes: Sequence[Json], arms: Sequence[str], level: float) -> object:
    """The change of the loss on the old domain by nearest neighbors vs the tokens of the datastore, by arm.

    arms  of the page
    """
    from kleiber.charts.theme import line_chart
    from kleiber.studies.compare.chart_forms import interval_note

    shown = [row for row in sizes if row["retrieval"] == WAYS[KNN]]
    nothing = {"arm": "without neighbors", "mean": 0.0, "lo": 0.0, "hi": 0.0, "half": np.nan, "seeds": None}
    rows = pd.DataFrame(
        [*({**nothing, "tokens": tokens} for tokens in sorted({row["tokens"] for row in shown})), *shown]
    )
    return line_chart(
        rows, "tokens", "tokens of the old domain in the datastore", "arm",
        "Change of the loss on the old domain vs size of the datastore",
        value="loss with nearest neighbors less that without (nats per token)",
        order=[*map(label, arms), str(nothing["arm"])], subtitle=interval_note(level, rows),
    )  # fmt: skip
