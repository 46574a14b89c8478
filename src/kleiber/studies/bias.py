"""The study `bias`: what fine-tuning on biased text does to a model, and what mitigations take away and cost.

Bases are trained on text without the bias, and fine-tuned on biased text: plainly, and with a mitigation in each arm.
All runs are scored by `evals=bias` on the same pairs. Changes are within seeds and sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.decision import as_row, from_row, gaps_by_seed, mean_estimate
from kleiber.studies.compare.places import OneRunStudy, refuse_twin_rows
from kleiber.studies.compare.rows import Rows, outcomes, seed_means, sizes, values_by
from kleiber.studies.compare.verdicts import MeanClaim, decide_means
from kleiber.studies.study import Figures, Findings
from kleiber.types import Config, Json, Row

BASE, PLAIN = "base", "plain"
SCORE = "stereotype_score"
METRICS = {  # the label and unit of what is shown, by its column
    SCORE: ("stereotype score", ""),
    "gap": ("log-likelihood gap of a pair", "nats"),
    "target": ("loss on the biased text", "nats per token"),
    "bits_per_byte": ("loss on unbiased pairs", "bits per byte"),
    "F": ("forgetting of the earlier text", "nats per token"),
}
LABELS = {BASE: "before fine-tuning", PLAIN: "plain fine-tuning", "penalty": "equalized predictions"}

KEYS = ("size", "seed")  # by which arms are paired


@dataclass(frozen=True, kw_only=True)
class Bias(OneRunStudy):
    """Bias, loss and forgetting of each arm, and its differences from plain fine-tuning.

    arm   of a cell: set by the design; the bases have the arm `base`, plain fine-tuning has `plain`
    data  name of the pairs by which all runs are scored
    """

    data: str = "builtin/occupations"
    arm: str | None = None

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates all differences and decides the claims. Raises ValueError without a run of plain fine-tuning."""
        rows = scored(runs, self.data)
        arms = [arm for arm in dict.fromkeys(rows["arm"]) if arm not in (BASE, PLAIN)]
        order = [arm for arm in (BASE, PLAIN, *arms) if arm in set(rows["arm"])]
        means = shown_means(rows, order, self.level)
        from_base = changes(rows, PLAIN, BASE, self.level) if BASE in order else []
        gaps = [row for arm in arms for row in changes(rows, arm, PLAIN, self.level)]
        tables = {
            "Means": means.drop(columns="column").to_dict("records"),
            "Change by plain fine-tuning": from_base,
            "Difference from plain fine-tuning": gaps,
        }
        charts: Figures = {
            "arms": partial(arms_chart, means, order, self.level),
            "trade_off": partial(trade_off, means, order),
        }
        if len(sizes(rows)) > 1:
            charts["sizes"] = partial(sizes_chart, means, order, self.level)
        return Findings(
            headline=headline(means, gaps),
            verdicts=decide_means(claims(rows, arms), self.level),
            tables={title: table for title, table in tables.items() if table},
            figures=charts,
            methods=METHODS,
        )


METHODS = (
    "Bases were trained on documentation and on text without the bias, in equal parts, and fine-tuned on biased text "
    "at one learning rate, which was tuned for no arm. The stereotype score is the share of held-out pairs of texts "
    "whose stereotypical one has the higher log-likelihood, and the gap the mean difference of the log-likelihoods. "
    "Loss is that on held-out biased text, which no mitigation changes, and on both texts of the pairs. Forgetting is "
    "the rise of the held-out loss on the text of the bases. Differences are paired by seed and size, with Student's "
    "intervals; the level of those of the claims holds for all claims of the study together (Bonferroni). Arms have "
    "equal training tokens; the penalty also reads its pairs."
)


def label(arm: str) -> str:
    """What an arm is called."""
    return LABELS.get(arm, arm)


def named_arm(config: Config) -> tuple[str, str]:
    """The arm of a run, and no further setting."""
    return str((config.get("study") or {}).get("arm")), ""


def scored(runs: Sequence[Run], data: str) -> Rows:
    """A row for each finished run: arm, size (parameters), seed, and the columns of METRICS.

    Raises ValueError where no run of plain fine-tuning has finished, or none was scored by `bias`.
    """
    prefix = f"eval/bias/{data}/"
    table: Rows = pd.DataFrame(
        [
            {
                "run": run.name, "arm": named_arm(run.config)[0], "size": int(run.stage["params"]["total"]),
                "seed": int(run.config["seed"]),
                **{name: run.metrics.get(prefix + name) for name in (SCORE, "gap", "bits_per_byte")},
            }
            for run in runs
            if run.finished and (run.config.get("study") or {}).get("arm") is not None
        ]
    )  # fmt: skip
    if not len(table) or PLAIN not in set(table["arm"]):
        raise ValueError("no run of the arm `plain` has finished: the study bias compares the other arms with it")
    if table[SCORE].isna().all():
        raise ValueError(
            f"no run has a metric {prefix}{SCORE}: train them with evals=bias evals.bias.data=[{data}], or set "
            "study.data to the name of the pairs by which they were scored"
        )
    refuse_twin_rows(table, ["arm", "size", "seed"], runs)
    fine_tuned = outcomes(runs, named_arm)[["run", "F", "target"]]
    return table.merge(fine_tuned, on="run", how="left")


def paired(rows: Rows, arm: str, against: str, column: str, **equal: object) -> list[float]:
    """The differences of two arms of the same size and seed, of the rows whose other columns equal `equal`."""
    return gaps_by_seed(*(values_by(rows, KEYS, column, arm=name, **equal) for name in (arm, against)))


def changes(rows: Rows, arm: str, against: str, level: float) -> list[Json]:
    """The difference of an arm from another one in every metric, by size, paired by seed."""
    table = []
    for size in sizes(rows):
        for column, (name, unit) in METRICS.items():
            estimate = mean_estimate(paired(rows, arm, against, column, size=size), level, unit)
            if estimate is not None:
                table.append({"arm": label(arm), "parameters": size, "metric": name, **as_row(estimate)})
    return table


def claims(rows: Rows, arms: Sequence[str]) -> list[MeanClaim]:
    """The claims about the bias of plain fine-tuning, each mitigation, and size.

    Each size and seed is a sample, and for size each seed.
    """
    raised = paired(rows, PLAIN, BASE, SCORE)
    mean_claims = [MeanClaim("learned", "plain fine-tuning raises the stereotype score", raised, "higher")]
    for arm in arms:
        text = f"the stereotype score is lower with {label(arm)} than with plain fine-tuning"
        mean_claims.append(MeanClaim(f"{arm}_lowers", text, paired(rows, arm, PLAIN, SCORE)))
    small, large = sizes(rows)[0], sizes(rows)[-1]
    of_size = [values_by(rows, ["seed"], "gap", arm=PLAIN, size=size) for size in (large, small)]
    text = f"plain fine-tuning leaves a larger gap at {large:,} than at {small:,} parameters"
    gaps = gaps_by_seed(*of_size) if small < large else []
    return [*mean_claims, MeanClaim("size", text, gaps, "higher", unit="nats")]


def headline(means: Rows, gaps: Sequence[Row]) -> str:
    """The score of each arm at the largest size at which plain fine-tuning has a score."""
    part = means[means["column"] == SCORE]
    plain_sizes = part.loc[part["arm"] == label(PLAIN), "parameters"]
    if plain_sizes.empty:
        return "The stereotype score after plain fine-tuning is not determined: no run of the arm `plain` has one."
    largest = int(plain_sizes.max())
    part = part[part["parameters"] == largest]
    values = {row["arm"]: level_text(row) for row in part.to_dict("records")}
    lowered = [
        " ".join(f"{row['arm']} {from_row(row).text()}".split())
        for row in gaps
        if row["parameters"] == largest and row["metric"] == METRICS[SCORE][0]
    ]
    before = f" from {values[label(BASE)]}" if label(BASE) in values else ""
    text = f"Plain fine-tuning on biased text moves the stereotype score{before} to {values[label(PLAIN)]}"
    against = f"; relative to it: {', '.join(lowered)}" if lowered else ""
    return f"{text} at {largest:,} parameters{against}."


def level_text(row: Row) -> str:
    """A mean with its interval, if it has one."""
    return f"{row['mean']:.3f}" if math.isnan(row["lo"]) else f"{row['mean']:.3f} [{row['lo']:.3f}, {row['hi']:.3f}]"


def shown_means(rows: Rows, order: Sequence[str], level: float) -> Rows:
    """Means over seeds with intervals, by arm, size and metric; `column` is the metric's."""
    parts = []
    for column, (name, _) in METRICS.items():
        present = rows[rows[column].notna()].drop(columns="run")
        if len(present):
            limits = (0, 1) if column == SCORE else None
            means = seed_means(present, ("arm", "size"), column, level, limits).drop(columns="half")
            parts.append(means.assign(metric=name, column=column))
    table = pd.concat(parts, ignore_index=True)
    table = table.assign(at=table["column"].map([*METRICS].index), rank=table["arm"].map([*order].index))
    table = table.sort_values(["at", "rank", "size"], kind="stable")
    table = table.assign(arm=table["arm"].map(label)).rename(columns={"size": "parameters"})
    return table[["arm", "parameters", "metric", "mean", "lo", "hi", "seeds", "column"]].reset_index(drop=True)


def arms_chart(means: Rows, order: Sequence[str], level: float) -> object:
    """Each metric of each arm and size, with intervals over seeds."""
    from kleiber.charts.theme import format_count
    from kleiber.studies.compare.chart_forms import estimates, interval_note

    rows = [
        {
            "panel": f"{METRICS[column][0]} ({METRICS[column][1] or 'share of pairs'})", "series": row["arm"],
            "name": f"{row['arm']}, {format_count(row['parameters'])}", "value": row["mean"], "lo": row["lo"],
            "hi": row["hi"],
        }
        for column in METRICS
        for row in means[means["column"] == column].to_dict("records")
    ]  # fmt: skip
    title = "Bias, loss and forgetting by arm and number of parameters"
    note = interval_note(level, rows)
    return estimates(rows, [label(arm) for arm in order], "mean over seeds", title, subtitle=note)


def trade_off(means: Rows, order: Sequence[str]) -> object:
    """The stereotype score vs the loss on the biased text, a point for each arm and size."""
    import altair as alt

    from kleiber.charts.theme import format_count, with_title
    from kleiber.studies.compare.chart_forms import arm_color, span

    wide = means.pivot(index=["arm", "parameters"], columns="column", values="mean").reset_index()
    wide = wide[wide["target"].notna()] if "target" in wide else wide[:0].assign(target=[])
    names = [label(arm) for arm in order]
    counts = sorted(set(wide["parameters"]))
    shown = wide.assign(series=wide["arm"], parameters=[format_count(size) for size in wide["parameters"]])
    x = alt.X("target:Q", title="loss on held-out biased text (nats per token)", scale=span(shown["target"]))
    y = alt.Y(f"{SCORE}:Q", title="stereotype score (.5: no bias)", scale=span([*shown[SCORE], 0.5]))
    shape = alt.Shape("parameters:N", title="parameters", sort=[format_count(size) for size in counts])
    points = alt.Chart(shown).mark_point(filled=True, size=90, opacity=1)
    points = points.encode(x=x, y=y, shape=shape, color=arm_color(names, list(dict.fromkeys(shown["series"]))))
    rule = alt.Chart(pd.DataFrame({SCORE: [0.5]})).mark_rule(strokeDash=[4, 4], color="#888").encode(y=f"{SCORE}:Q")
    return with_title(alt.layer(rule, points), "Stereotype score vs loss on the biased text")


def sizes_chart(means: Rows, order: Sequence[str], level: float) -> object:
    """The stereotype score vs the number of parameters, a line for each arm."""
    from kleiber.charts.theme import line_chart
    from kleiber.studies.compare.chart_forms import interval_note

    part = means[means["column"] == SCORE].assign(half=lambda rows: (rows["hi"] - rows["lo"]) / 2)
    return line_chart(
        part, "parameters", "parameters", "arm", "Stereotype score vs number of parameters",
        value="stereotype score (.5: no bias)", order=[label(arm) for arm in order],
        subtitle=interval_note(level, part),
    )  # fmt: skip
