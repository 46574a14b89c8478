"""The study `collaboration`: what a model learns from judgments of its answers, and what that does to its calibration.

A model answers prompts, simulated annotators judge pairs of its answers, and it is fine-tuned on the judgments. The
measure is the win rate of its new answers against those of the start, by a judge with the planted taste and no noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.decision import Estimate, as_row, from_row, gaps_by_seed, mean_estimate
from kleiber.studies.compare.places import OneRunStudy, refuse_twin_rows
from kleiber.studies.compare.rows import Rows, values_by
from kleiber.studies.compare.verdicts import MeanClaim, decide_means
from kleiber.studies.study import Figures, Findings
from kleiber.types import Config, Json, Row

WIN = "win_rate"
CALIBRATION = {  # what is shown of the next-token predictions, by metric of eval/calibration/<data>/
    "ece": "calibration error (ECE)",
    "overconfidence": "confidence less accuracy",
    "accuracy": "accuracy of the next token",
    "nats": "loss (nats per token)",
    "aurc": "area under the risk-coverage curve",
    "temperature": "fitted temperature",
}
SCALED = "scaled/ece_change"  # change of the calibration error by the temperature
KEYS = ("judgments", "select", "noise", "annotators")  # of a setting
FAULTS = {"longer": "favor length", "first": "favor the left", "disagreement": "disagree"}  # by key of data=judged
LARGEST_RISE = 0.5  # nats per token by which the loss on other text may rise, for the language to be kept

Setting = tuple[int, str, float, str]


@dataclass(frozen=True, kw_only=True)
class Collaboration(OneRunStudy):
    """Win rates by number, selection and faults of judgments, and calibration before and after training on them.

    arm   of a cell: set by the design
    data  name of the text whose next tokens are predicted for calibration
    """

    of_each_size: ClassVar[bool] = False
    data: str = "tinystories"
    arm: str | None = None

    def arm_of(self, config: Config) -> str | None:
        judged = [config["data"].get(key) for key in (*KEYS[:3], *FAULTS)]  # the first are the judgments
        return None if judged[0] is None else str(judged)

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates win rates and changes of calibration, and decides the claims. Raises ValueError without any."""
        rows, level = scored(runs, self.data), self.level
        wins = win_rates(rows, level)
        changes = calibration_changes(rows, level)
        charts: Figures = {"win_rate": partial(win_chart, wins, level)}
        charts["annotators"] = partial(annotator_chart, wins, level)
        if changes:
            charts["calibration"] = partial(calibration_chart, changes, level)
        tables = {"Win rate against the start": wins, "Calibration before and after": changes}
        verdicts = decide_means(claims(rows), self.level)
        return Findings(headline(wins, changes), verdicts, tables, charts, methods=METHODS)


METHODS = (
    "A start model answered each prompt twice, and simulated annotators judged pairs of these answers by a planted "
    "utility, the share of words of a class; with the probability of the noise they said the opposite. Some also "
    "favor longer answers, or each perceive the utility differently. Ties were no pairs. The start was fine-tuned on "
    "the pairs by DPO (Rafailov et al. 2023, arXiv:2305.18290) with the same number of steps in every cell, at one "
    "learning rate. Then start and fine-tuned model were compared blindly on held-out prompts by a judge with the "
    "same utility and no noise; a tie counts 1/2. Pairs were chosen at random, or those of the greatest difference in "
    "likelihood per token under the start. Cells of a seed share prompts, answers and validation. Intervals are "
    "Student's over seeds, and those of the claims hold together (Bonferroni)."
)


def scored(runs: Sequence[Run], data: str) -> Rows:
    """A row for each finished run: the keys of its setting, seed, win_rate, and calibration before and after.

    Raises ValueError where no run was fine-tuned on judgments and evaluated by `win_rate`.
    """
    rows = []
    for run in (run for run in runs if run.finished):
        node, metrics = run.config["data"], run.metrics
        wins = {name: value for name, value in metrics.items() if name.startswith("eval/win_rate/")}
        win = next((value for name, value in wins.items() if name.endswith(f"/{WIN}")), None)
        if win is None or "judgments" not in node:
            continue
        start = run.stage.get("start_metrics") or {}
        prefix = f"eval/calibration/{data}/"
        rows.append(
            {
                "run": run.name, "judgments": int(node["judgments"]), "select": str(node.get("select") or "random"),
                "noise": float(node.get("noise") or 0.0), "annotators": faults(node),
                "seed": int(run.config["seed"]), WIN: win,
                **{f"before/{name}": start[prefix + name] for name in CALIBRATION if prefix + name in start},
                **{f"after/{m}": metrics[prefix + m] for m in (*CALIBRATION, SCALED) if prefix + m in metrics},
            }
        )  # fmt: skip
    if not rows:
        raise ValueError(
            "no run here was fine-tuned on judgments and compared with its start: train with data=judged and "
            "evals=win_rate"
        )
    table = pd.DataFrame(rows)
    refuse_twin_rows(table, [*KEYS, "seed"], runs)
    return table


def faults(data: Config) -> str:
    """What annotators do beside noise, such as "favor length"; empty for those who do nothing else."""
    return " and ".join(text for key, text in FAULTS.items() if data.get(key))


def settings(rows: Rows) -> list[Setting]:
    """The distinct settings, in order."""
    distinct = rows[[*KEYS]].drop_duplicates()
    return sorted((int(row[0]), str(row[1]), float(row[2]), str(row[3])) for row in distinct.itertuples(index=False))


def by_seed(rows: Rows, setting: Setting, column: str) -> dict[int, float]:
    """A column of a setting by seed; empty where no run has it."""
    return values_by(rows, ["seed"], column, **dict(zip(KEYS, setting, strict=True)))


def win_rates(rows: Rows, level: float) -> list[Json]:
    """The win rate of every setting, as a mean over seeds with an interval."""
    table = []
    for setting in settings(rows):
        estimate = mean_estimate(list(by_seed(rows, setting, WIN).values()), level, "of the prompts")
        table.append({**dict(zip(KEYS, setting, strict=True)), **as_row(estimate and estimate.within(0.0, 1.0))})
    return table


def calibration_changes(rows: Rows, level: float) -> list[Json]:
    """Calibration before training and its change by training, by number of judgments, selection and noise."""
    table = []
    for setting in settings(rows):
        for metric, label in CALIBRATION.items():
            estimate = mean_estimate(changes_by_seed(rows, setting, metric), level, "")
            if estimate is not None:
                before = list(by_seed(rows, setting, f"before/{metric}").values())
                named = dict(zip(KEYS, setting, strict=True))
                table.append({**named, "measure": label, "before": sum(before) / len(before), **as_row(estimate)})
    return table


def changes_by_seed(rows: Rows, setting: Setting, metric: str) -> list[float]:
    """The change of a metric of calibration by training, for each seed of a setting."""
    return gaps_by_seed(*(by_seed(rows, setting, f"{when}/{metric}") for when in ("after", "before")))


def mean_gaps(rows: Rows, pairs: Sequence[tuple[Setting, Setting]], column: str = WIN) -> list[float]:
    """For each seed, the mean over pairs of settings of a column of the first less that of the second."""
    gaps: dict[int, list[float]] = {}
    for ours, theirs in pairs:
        first, second = by_seed(rows, ours, column), by_seed(rows, theirs, column)
        for seed in first.keys() & second.keys():
            gaps.setdefault(seed, []).append(first[seed] - second[seed])
    return [sum(values) / len(values) for _, values in sorted(gaps.items())]


def claims(rows: Rows) -> list[MeanClaim]:
    """The claims about number, noise and selection of judgments, and about calibration."""
    present = settings(rows)
    faultless = [setting for setting in present if not setting[-1]]
    least, most = present[0][0], present[-1][0]
    usual = usual_noise(rows)
    noises = sorted({noise for _, _, noise, _ in present})
    best = (most, "random", usual, "")
    mean_claims: list[MeanClaim] = []
    wins = [value - 0.5 for value in by_seed(rows, best, WIN).values()]
    text = f"after {most} judgments, {usual:.0%} of them wrong, the model wins against its start on more than half of"
    mean_claims.append(MeanClaim("wins", f"{text} the prompts", wins, "higher"))
    rises = [value - LARGEST_RISE for value in changes_by_seed(rows, best, "nats")]
    text = f"the loss on other text rises by less than {LARGEST_RISE:g} nats per token after {most} judgments"
    mean_claims.append(MeanClaim("language", text, rises))
    pairs = [((most, select, noise, ""), (least, select, noise, "")) for n, select, noise, _ in faultless if n == most]
    text = f"the win rate is higher after {most} judgments than after {least}"
    mean_claims.append(MeanClaim("judgments", text, mean_gaps(rows, pairs) if most > least else [], "higher"))
    if len(noises) > 1:
        places = {(n, select) for n, select, _, _ in faultless}
        pairs = [((n, select, noises[-1], ""), (n, select, noises[0], "")) for n, select in sorted(places)]
        text = f"the win rate is lower with {noises[-1]:.0%} than with {noises[0]:.0%} wrong judgments"
        mean_claims.append(MeanClaim("noise", text, mean_gaps(rows, pairs)))
    for select in sorted({select for _, select, _, _ in present} - {"random"}):
        cells = [(n, noise) for n, chosen, noise, _ in faultless if chosen == select and n < most]
        pairs = [((n, select, noise, ""), (n, "random", noise, "")) for n, noise in cells]
        text = f"the win rate is higher where pairs are chosen by {select} than at random, below {most} judgments"
        mean_claims.append(MeanClaim(f"active_{select}", text, mean_gaps(rows, pairs), "higher"))
    for fault in sorted({fault for *_, fault in present if fault}):
        cells = [(n, select, noise) for n, select, noise, other in present if other == fault]
        pairs = [((*cell, fault), (*cell, "")) for cell in cells]
        text = f"the win rate is lower where annotators {fault}"
        mean_claims.append(MeanClaim(f"annotators_{fault.replace(' ', '_')}", text, mean_gaps(rows, pairs)))
    text = f"the calibration error of next tokens is higher after {most} judgments than before"
    mean_claims.append(MeanClaim("calibration", text, changes_by_seed(rows, best, "ece"), "higher"))
    scaled = list(by_seed(rows, best, f"after/{SCALED}").values())
    mean_claims.append(MeanClaim("temperature", "a temperature lowers the calibration error after training", scaled))
    return mean_claims


def usual_noise(rows: Rows) -> float:
    """The noise of most runs whose pairs were selected, at which selections are compared; of most runs without any."""
    others = rows[rows["select"] != "random"]
    return float((others if len(others) else rows)["noise"].mode()[0])


def headline(wins: Sequence[Row], changes: Sequence[Row]) -> str:
    """The win rate at the most judgments of each selection and noise, and what it costs the loss on other text."""
    most = max(row["judgments"] for row in wins)
    parts = [f"{share(from_row(row))} ({label(row)})" for row in wins if row["judgments"] == most]
    losses = [row for row in changes if row["judgments"] == most and row["measure"] == CALIBRATION["nats"]]
    text = "; ".join(f"{from_row(row).text('+.3f').strip()} nats per token ({label(row)})" for row in losses)
    cost = f" The loss on other text changes by {text}." if losses else ""
    return f"After {most} judgments the model wins against its start on {'; '.join(parts)} (share of prompts).{cost}"


def share(estimate: Estimate) -> str:
    """A share with its interval."""
    if estimate.lo is None or estimate.hi is None:
        return f"{estimate.value:.0%}"
    return f"{estimate.value:.0%} [{estimate.lo:.0%}, {estimate.hi:.0%}]"


def label(row: Mapping[str, object]) -> str:
    """The name of a selection and of annotators in figures."""
    kind = "pairs at random" if row["select"] == "random" else f"pairs by {row['select']}"
    fault = f", {row['annotators']}" if row.get("annotators") else ""
    return f"{kind}, {row['noise']:.0%} wrong{fault}"


def annotator_chart(wins: Sequence[Row], level: float) -> object:
    """The win rate of each selection and kind of annotator, at the number of judgments that has most of them."""
    from kleiber.studies.compare.chart_forms import estimates, interval_note

    number = pd.Series([row["judgments"] for row in wins]).mode().max()
    rows = [{**row, "series": label(row)} for row in wins if row["judgments"] == number]
    title = f"Win rate against the start after {number} judgments, by annotators and choice of pairs"
    order, note = [row["series"] for row in rows], interval_note(level, rows)
    return estimates(rows, order, "win rate against the start", title, subtitle=note)


def win_chart(wins: Sequence[Row], level: float) -> object:
    """Win rate vs number of judgments, a line for each selection and noise with several, and a line at chance."""
    import altair as alt

    from kleiber.charts.theme import kind_color, log_axis, with_title
    from kleiber.studies.compare.chart_forms import interval_note

    settings_of = [label(row) for row in wins]
    wins = [row for row in wins if settings_of.count(label(row)) > 1] or wins
    rows = pd.DataFrame([{**row, "kind": label(row)} for row in wins])
    rows[["lo", "hi"]] = rows[["lo", "hi"]].astype(float)
    values = {kind: [row["value"] for row in wins if label(row) == kind] for kind in map(label, wins)}
    kinds = sorted(values, key=lambda kind: -sum(values[kind]) / len(values[kind]))
    numbers = sorted(set(rows["judgments"]))
    spread = {kind: 1.06 ** (i - (len(kinds) - 1) / 2) for i, kind in enumerate(kinds)}  # apart, so intervals are seen
    rows["at"] = [n * spread[kind] for n, kind in zip(rows["judgments"], rows["kind"], strict=True)]
    x = log_axis("at", "judgments", numbers, every=None, room=1.3)
    x.axis = alt.Axis(values=numbers, format="d", grid=False)
    share = {"scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format=".0%", tickCount=5)}
    y, low = (alt.Y(f"{name}:Q", title="win rate against the start", **share) for name in ("value", "lo"))
    base = alt.Chart(rows).encode(x=x, color=kind_color(kinds, "kind", alt.Legend(orient="right", labelLimit=260)))
    chance = alt.Chart(pd.DataFrame({"value": [0.5]})).mark_rule(color="#888", strokeDash=[4, 3]).encode(y=y)
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=kinds), legend=None)
    tips = ["kind:N", "judgments:Q", alt.Tooltip("value:Q", format=".1%"), "n:Q"]
    layers = [
        chance, base.mark_line(strokeWidth=1.6).encode(y=y), base.mark_rule(strokeWidth=1.4).encode(y=low, y2="hi:Q"),
        base.mark_point(filled=True, size=56, opacity=1).encode(y=y, shape=shape, tooltip=tips),
    ]  # fmt: skip
    note = "; ".join(filter(None, (interval_note(level, rows), "dashed: no difference")))
    return with_title(alt.layer(*layers), "Win rate against the start vs number of judgments", subtitle=note)


def calibration_chart(changes: Sequence[Row], level: float) -> object:
    """The change of each measure of calibration by training, by number of judgments."""
    from kleiber.studies.compare.chart_forms import estimates, interval_note

    named = [{**row, "series": label(row), "name": f"{row['judgments']} {label(row)}"} for row in changes]
    order = list(dict.fromkeys(row["series"] for row in named))
    rows = [{**row, "panel": row["measure"]} for row in named]
    title, note = "Calibration of next tokens: change by training", interval_note(level, rows)
    return estimates(rows, order, "change by training", title, zero=True, subtitle=note)
