"""The study `collapse`: what becomes of a model's text over generations that train on it, and after fine-tuning.

Generation 0 trains on real text. Every later generation trains a new model on text of the generation before alone, or
on an equal mixture of the real text and that of all generations before. Changes are within seeds and sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import planned_arms
from kleiber.studies.compare.decision import as_row, from_row, gaps_by_seed, mean_estimate
from kleiber.studies.compare.places import OneRunStudy, refuse_twin_rows
from kleiber.studies.compare.rows import Rows, seed_means, sizes, values_by
from kleiber.studies.compare.verdicts import MeanClaim, decide_means
from kleiber.studies.designs.generations import BASE
from kleiber.studies.study import Figures, Findings
from kleiber.types import Json, Natural, Row

LOSS = "loss"
HUMAN = "human/"  # prefix of the metrics of held-out text
METRICS = {  # the label, unit and direction of decay of what is shown, by its name in eval/degeneration/<data>/
    LOSS: ("loss on real text", "nats per token", "higher"),
    "sampled/distinct_2": ("different 2-grams (distinct-2)", "of all", "lower"),
    "sampled/self_bleu_4": ("likeness of samples (self-BLEU-4)", "", "higher"),
    "sampled/entropy": ("next-token entropy", "nats", "lower"),
    "sampled/unigram_kl": ("KL of unigrams from real text", "nats", "higher"),
    "sampled/mauve": ("closeness to real text (MAUVE)", "", "lower"),
    "greedy/distinct_2": ("greedy: different 2-grams", "of all", "lower"),
    "greedy/loop_rate": ("greedy: samples that end in a loop", "of all", "higher"),
}
TESTED = (LOSS, "sampled/distinct_2", "sampled/entropy")

KEYS = ("size", "seed")  # by which generations are paired


@dataclass(frozen=True, kw_only=True)
class Collapse(OneRunStudy):
    """Changes of held-out loss and diversity from the first generation to the last, and from before to after a stage.

    arm, generation  of a cell: set by the design
    data             name of the real held-out text
    """

    data: str = "builtin/docs"
    arm: str | None = None
    generation: Natural = 0

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates all changes and decides the claims. Raises ValueError without runs of generation 0."""
        rows = scored(runs, self.data)
        order = dict.fromkeys([*planned_arms([run.config for run in runs]), *rows["arm"]])
        arms = [arm for arm in order if arm in set(rows["arm"]) - {BASE}]
        generational = [arm for arm in arms if (rows.loc[rows["arm"] == arm, "generation"] > 0).any()]
        last = last_generation(rows, generational)
        over = changes(rows, generational, last, self.level)
        tuned = changes(rows, [arm for arm in arms if arm not in generational], 0, self.level)
        means = shown_means(rows, generational, self.level)
        tables = {
            f"Change from generation 0 to {last}": over,
            "Change by a stage of fine-tuning": tuned,
            "Means by generation": means.to_dict("records"),
        }
        charts: Figures = {}
        if len(means):
            charts["generations"] = partial(generations_chart, means, human(rows), generational, self.level)
        if tuned:
            charts["stages"] = partial(stages_chart, tuned, self.level)
        verdicts = [*left_out(rows, generational, last), *decide_means(claims(rows, generational, last), self.level)]
        return Findings(headline(over, last), verdicts, tables, charts, methods=METHODS)


METHODS = (
    "Generation 0 was trained on real text, and every later generation from new random weights on the same number of "
    "tokens, at one learning rate: of text that the generation before wrote at temperature 1 (replace; Shumailov et "
    "al. 2023, arXiv:2305.17493), or in equal parts of the real text and the texts of all generations before "
    "(accumulate; Gerstgrasser et al. 2024, arXiv:2404.01413, there with a number of tokens that grows). Stages of "
    "fine-tuning start from the weights of generation 0. Loss and diversity are measured on real held-out text and "
    "prompts. Changes are paired by seed, with Student's intervals; the level of those of the claims holds for all "
    "claims of the study together (Bonferroni)."
)


def scored(runs: Sequence[Run], data: str) -> Rows:
    """A row for each finished run: arm, generation, size (parameters), seed, and its metrics by the names of METRICS.

    Raises ValueError where no run of generation 0 has finished, or no run was evaluated by `degeneration`.
    """
    prefix, rows = f"eval/degeneration/{data}/", []
    for run in (run for run in runs if run.finished):
        study, metrics = run.config.get("study") or {}, run.metrics
        losses = [metrics.get(f"eval/perplexity/{data}/loss"), metrics.get(f"val/{data}/loss")]
        rows.append(
            {
                "run": run.name, "arm": study.get("arm"), "generation": int(study.get("generation") or 0),
                "size": int(run.stage["params"]["total"]), "seed": run.config["seed"],
                LOSS: next((loss for loss in losses if loss is not None), None),
                **{name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)},
            }
        )  # fmt: skip
    table = pd.DataFrame([row for row in rows if row["arm"] is not None])
    if not len(table) or BASE not in set(table["arm"]):
        raise ValueError("no run of generation 0 has finished: the study collapse compares later generations with it")
    if not any(name in table for name in METRICS if name != LOSS):
        raise ValueError(
            f"no run has a metric {prefix}...: train them with evals=[perplexity,degeneration], or set study.data to "
            "the name of the text on which they were evaluated"
        )
    refuse_twin_rows(table, ["arm", "generation", "size", "seed"], runs)
    return table


def label_of(arm: str) -> str:
    """What an arm of the study's own design is called in texts and figures."""
    labels = {"replace": "generated text alone", "accumulate": "the real text kept"}
    return (labels | {"narrow": "narrow fine-tuning", "dpo": "DPO"}).get(arm, arm)


def rises(
    rows: Rows, arm: str, metric: str, generation: int, keys: Sequence[str] = KEYS, **equal: object
) -> dict[Any, float]:
    """The change of a metric from generation 0 to an arm's generation by `keys`, of the rows that equal `equal`."""
    first = values_by(rows, keys, metric, arm=BASE, generation=0, **equal)
    later = values_by(rows, keys, metric, arm=arm, generation=generation, **equal)
    return {key: later[key] - first[key] for key in sorted(later.keys() & first.keys())}


def last_generation(rows: Rows, arms: Sequence[str]) -> int:
    """The last generation that every arm has, so that arms are compared at one generation; 0 without arms."""
    return int(rows[rows["arm"].isin(arms)].groupby("arm")["generation"].max().min()) if arms else 0


def left_out(rows: Rows, arms: Sequence[str], last: int) -> list[Json]:
    """A warning for each arm without finished runs of the furthest generation: which, and what that changes."""
    furthest, bases = int(rows["generation"].max()), values_by(rows, KEYS, "generation", arm=BASE, generation=0).keys()
    entries = []
    for arm in arms:
        lacking = sorted(bases - values_by(rows, KEYS, "generation", arm=arm, generation=furthest).keys())
        if lacking:
            names = ", ".join(f"seed {seed} of {size:,} parameters" for size, seed in lacking)
            text = f"{label_of(arm)} ({arm}) has no finished run of generation {furthest} with {names}; "
            text += f"changes are to generation {last}, the last of every arm" if last < furthest else "it is left out"
            entries.append({"code": f"{arm}_incomplete", "level": "warn", "text": text})
    return entries


def changes(rows: Rows, arms: Sequence[str], generation: int, level: float) -> list[Json]:
    """The change of every metric from generation 0 to that of an arm, by arm and size, paired by seed."""
    table = []
    for arm in arms:
        for size in sizes(rows):
            for metric, (label, unit, _) in METRICS.items():
                estimate = mean_estimate(list(rises(rows, arm, metric, generation, size=size).values()), level, unit)
                if estimate is not None:
                    table.append({"arm": arm, "parameters": size, "metric": label, **as_row(estimate)})
    return table


def claims(rows: Rows, arms: Sequence[str], last: int) -> list[MeanClaim]:
    """The claims about collapse in each arm, the arms against each other, and size.

    Each size and seed is a sample, and for size each seed.
    """
    mean_claims: list[MeanClaim] = []
    small, large = sizes(rows)[0], sizes(rows)[-1]
    for arm in arms:
        for metric in TESTED:
            label, unit, direction = METRICS[metric]
            text = f"{label_of(arm)}: {label} is {direction} in generation {last} than in generation 0"
            name = f"{arm}_{metric.rpartition('/')[2]}"
            values = list(rises(rows, arm, metric, last).values())
            mean_claims.append(MeanClaim(name, text, values, direction, unit=unit))
        of_size = [rises(rows, arm, LOSS, last, ["seed"], size=size) for size in (large, small)]
        text = f"{label_of(arm)}: loss on real text rises more at {large:,} than at {small:,} parameters"
        gaps = gaps_by_seed(*of_size) if small < large else []
        mean_claims.append(MeanClaim(f"{arm}_size", text, gaps, "higher", unit=METRICS[LOSS][1]))
    for other in arms[1:]:
        gaps = gaps_by_seed(*(values_by(rows, KEYS, LOSS, arm=arm, generation=last) for arm in (arms[0], other)))
        text = f"loss on real text is higher with {label_of(arms[0])} than with {label_of(other)} in generation {last}"
        mean_claims.append(MeanClaim(f"{arms[0]}_against_{other}", text, gaps, "higher", unit=METRICS[LOSS][1]))
    return mean_claims


def headline(table: Sequence[Row], last: int) -> str:
    """How much the loss on real text changed over the generations of each arm, at the largest size."""
    largest = max((row["parameters"] for row in table), default=0)
    parts = [
        f"{from_row(row).text()} with {label_of(row['arm'])}"
        for row in table
        if row["parameters"] == largest and row["metric"] == METRICS[LOSS][0]
    ]
    if not parts:
        return "What training on generated text changes is not determined: no later generation has finished."
    return f"After {last} generations the loss of {largest:,} parameters on real text changed by {' and '.join(parts)}."


def shown_means(rows: Rows, arms: Sequence[str], level: float) -> Rows:
    """Means over seeds with intervals by metric, arm, size and generation; each arm begins with generation 0."""
    firsts = [rows[rows["arm"] == BASE].assign(arm=arm) for arm in arms]
    parts = []
    long = pd.concat([*firsts, rows[rows["arm"].isin(arms)]]) if arms else rows[:0]
    for metric in (name for name in METRICS if name in long):
        present = long[long[metric].notna()].drop(columns="run")
        if len(present):
            means = seed_means(present, ("arm", "size", "generation"), metric, level)
            parts.append(means.assign(metric=metric).drop(columns="half"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def human(rows: Rows) -> dict[str, float]:
    """The value of held-out text for each metric of METRICS that it has, as a mean over the runs of generation 0.

    The entropy of the model on held-out text is no property of that text, so it is left out.
    """
    first = rows[rows["arm"] == BASE]
    names = {name: HUMAN + name.partition("/")[2] for name in METRICS if name not in (LOSS, "sampled/entropy")}
    return {name: float(first[column].mean()) for name, column in names.items() if column in first}


def generations_chart(means: Rows, ceiling: Mapping[str, float], arms: Sequence[str], level: float) -> object:
    """Each metric vs generation: a line for each arm and size, with intervals, and a line at the human value."""
    import altair as alt

    from kleiber.charts.theme import KINDS, format_count
    from kleiber.studies.compare.chart_forms import in_rows, interval_note

    counts = sorted(set(means["size"]))
    names = [f"{format_count(size)} parameters" for size in counts]
    means = means.assign(parameters=means["size"].map(dict(zip(counts, names, strict=True))))
    colors = alt.Scale(domain=[label_of(arm) for arm in arms], range=KINDS[1 : len(arms) + 1])
    color = alt.Color("arm:N", title=None, scale=colors)
    styles = [*([2 + 2 * n, 3] for n in range(len(names) - 1)), [1, 0]]  # the largest model has the solid line
    dash = alt.StrokeDash("parameters:N", title=None, sort=names, scale=alt.Scale(domain=names, range=styles))
    ticks = sorted(set(map(int, means["generation"])))
    x = alt.X("generation:Q", title="generation", axis=alt.Axis(values=ticks, format="d", grid=False))
    panels = []
    for metric, part in means.groupby("metric", sort=False):
        label, unit, _ = METRICS[str(metric)]
        scale, axis = alt.Scale(zero=False, padding=10), alt.Axis(tickCount=5)
        y, low = (alt.Y(f"{name}:Q", title=unit or None, scale=scale, axis=axis) for name in ("mean", "lo"))
        base = alt.Chart(part.assign(arm=part["arm"].map(label_of))).encode(x=x, color=color)
        layers = [
            base.mark_line(strokeWidth=1.6).encode(y=y, strokeDash=dash),
            base.mark_rule(opacity=0.6).encode(y=low, y2="hi:Q"),
            base.mark_point(filled=True, size=30, opacity=1).encode(y=y),
        ]
        if metric in ceiling:
            line = alt.Chart(pd.DataFrame({"mean": [ceiling[str(metric)]], "generation": [ticks[-1]]}))
            text = line.mark_text(align="right", dy=-6, fontSize=10).encode(x=x, y=y, text=alt.value("human text"))
            layers += [line.mark_rule(strokeWidth=1).encode(y=y), text]
        panels.append(alt.layer(*layers).properties(title=label, width=230, height=150))
    title = "Loss and diversity vs generation of training on generated text"
    return in_rows(panels, title, interval_note(level, means), 3)


def stages_chart(table: Sequence[Row], level: float) -> object:
    """The change of each metric by each stage of fine-tuning and each size."""
    from kleiber.charts.theme import format_count
    from kleiber.studies.compare.chart_forms import estimates, interval_note

    order = list(dict.fromkeys(row["arm"] for row in table))
    rows = [
        {**row, "series": row["arm"], "panel": row["metric"],
         "name": f"{label_of(row['arm'])}, {format_count(row['parameters'])} parameters"}
        for row in table
    ]  # fmt: skip
    title, note = "Change of loss and diversity by fine-tuning", interval_note(level, rows)
    return estimates(rows, order, "change from before the stage", title, zero=True, subtitle=note)
