"""The study `baselines`: kinds of models compared before and after fine-tuning, at equal size and training.

It reads the runs of the design `pretraining`. The pre-trained kinds are arms of a comparison, each at its own best
learning rate; the scores of their fine-tunes are those of the study `transfer`, and are also averaged over the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pandas as pd

from kleiber.config import listed, readable
from kleiber.records import Run
from kleiber.studies import (
    LOSS,
    SCRATCH,
    Arm,
    Compare,
    Figures,
    Findings,
    PlannedPoint,
    Rows,
    arm_from_text,
    as_row,
    at_common_budget,
    axis_label,
    compare_arms,
    paired_difference,
    refuse_planned_twins,
    score_of,
)
from kleiber.types import Config, Json, Row
from kleiber_topics.transfer.tables import ALL_TASKS, main_metric
from kleiber_topics.transfer.transfer import Transfer, pretrained_arm, score_rows, tuned_scores

OBJECTIVES = {"CLM": "predicting next tokens", "MLM": "predicting masked tokens"}
REFERENCES = {"majority": "majority class", "tfidf": "TF-IDF + logistic regression"}  # of evals=[reference]


@dataclass(frozen=True)
class Baselines(Transfer):
    """Compares the kinds of the design `pretraining`: first their pre-training, then their scores on the tasks.

    measure, equal, claims  of the comparison of pre-training, as in study=compare. The arms are the kinds; with several
                            texts, each kind from each text: `dense from docs/4M`
    """

    measure: str = LOSS
    equal: str = "tokens"
    claims: Sequence[Config] = field(default_factory=tuple)

    @property
    def claimed(self) -> Compare:
        """The comparison of pre-training."""
        return Compare(
            level=self.level, variance=self.variance, measure=self.measure, equal=self.equal, claims=self.claims
        )

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError for fewer than two arms, a claim about another arm, and two runs at one place."""
        arm_of = arms_of([point.config for point in points])
        arms = list(dict.fromkeys(arm for arm in (arm_of(point.config) for point in points) if arm is not None))
        if len(arms) < 2:
            raise ValueError(f"design.kinds={listed(arms)}: a comparison needs two kinds of models or more")
        self.claimed.require_arms({"arm": arms})
        refuse_planned_twins(points, arm_of)
        return super().check_plan(points)

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares pre-training, and the tasks as far as they have been fine-tuned on."""
        arm_of = arms_of([run.config for run in runs])
        scored = any(is_scored(run) for run in runs)
        further = self.questions_of(runs) if scored else []
        panels = {str(arm_of(run.config)): objective_of(run.config) for run in runs if arm_of(run.config) is not None}
        panels = panels if len(set(panels.values())) > 1 else {}
        findings = compare_arms(runs, self.claimed, lambda run: arm_of(run.config), further, panels)
        pretraining = prefixed(findings)
        if panels:
            charts = self.within_objectives(pretraining.figures, runs, arm_of, panels)
            pretraining = replace(pretraining, figures=charts)
        if not scored:
            return pretraining
        tasks = super().analyze(runs)
        means = self.mean_differences(tuned_scores(score_rows(runs)))
        references = reference_rows(runs)
        charts: Figures = {**pretraining.figures, **tasks.figures}
        if means:
            charts["tasks"] = lambda: _draw(tasks.tables["Against other architectures"], means, self.level)
        return Findings(
            question="Do kleiber's models (dense, mixture of experts, bidirectional) have lower losses and higher "
            "scores than other architectures of their size?",
            answer=" ".join(filter(None, [pretraining.answer, means_text(means)])),
            claims=pretraining.claims,
            estimates=tasks.estimates,
            caveats=[*pretraining.caveats, *tasks.caveats],
            tables={
                **({"Mean score over all tasks": means} if means else {}),
                **tasks.tables,
                **({"References without pre-training": references} if references else {}),
                **pretraining.tables,
            },
            figures=charts,
            methods=f"{pretraining.methods} {tasks.methods}",
            measure=self.measure,
        )

    def within_objectives(
        self, charts: Figures, runs: Sequence[Run], arm_of: Callable[[Config], str | None], panels: Mapping[str, str]
    ) -> Figures:
        """The figures of pre-training, a panel for each objective, since losses do not compare between objectives."""
        names = self.claimed.labels(runs, lambda run: arm_of(run.config))
        names |= {name: f"{names[name]} (kleiber)" for name in names.keys() & self.against.keys()}
        arms = at_common_budget(self.claimed.ladders(runs, lambda run: arm_of(run.config)))
        arms = {names[name]: arm for name, arm in arms.items()}
        panels = {names[name]: panel for name, panel in panels.items()}
        charts = {name: draw for name, draw in charts.items() if name != "pretraining_sizes"}
        for name in charts.keys() & {"pretraining_arms", "pretraining_tuning"}:
            charts[name] = partial(_draw_arms, name, arms, axis_label(score_of(runs, self.measure)), panels)
        return charts

    def mean_differences(self, rows: Rows) -> list[Json]:
        """Every kind less its rivals, in the mean score over the tasks that both were trained on with a seed."""
        pretrained = rows[rows["start"] != SCRATCH]
        means = mean_scores(pretrained)
        table = []
        for kind in means:
            for rival in self.rivals(kind):
                if rival in means:
                    estimate = paired_difference(means[kind], means[rival], self.level, "in score")
                    scores = {name: pd.Series(means[name]).mean() for name in (kind, rival)}
                    table.append(
                        {
                            "kind": kind, "score": scores[kind], "against": rival, "score of it": scores[rival],
                            "tasks": int(pretrained["task"].nunique()), **as_row(estimate),
                        }
                    )  # fmt: skip
        return table


def arms_of(configs: Sequence[Config]) -> Callable[[Config], str | None]:
    """Returns a function that names the arm of a pre-training run, None of a fine-tune.

    An arm is a kind, or where these runs have several texts, a kind from a text.
    """
    texts = {arm[1] for arm in map(pretrained_arm, configs) if arm is not None}

    def name(config: Config) -> str | None:
        """The arm of a run."""
        arm = pretrained_arm(config)
        return None if arm is None else arm_from_text(*arm) if len(texts) > 1 else arm[0]

    return name


def objective_of(config: Config) -> str:
    """What a run predicts, as the title of a panel."""
    target = str((config.get("objective") or {}).get("_target_"))
    return OBJECTIVES.get(target.rpartition(".")[2], target)


def is_scored(run: Run) -> bool:
    return (run.config.get("study") or {}).get("task") is not None and bool(run.stage.get("tasks"))


def prefixed(findings: Findings) -> Findings:
    """The findings of pre-training with titles that say so."""
    tables = {f"Pre-training: {title[0].lower()}{title[1:]}": rows for title, rows in findings.tables.items()}
    figures = {f"pretraining_{name}": draw for name, draw in findings.figures.items()}
    return replace(findings, tables=tables, figures=figures)


def mean_scores(rows: Rows) -> dict[str, dict[int, float]]:
    """The mean score over tasks by kind and seed, of seeds that have all tasks from all texts and shares of labels."""
    cell = ["task", "start", "share"]
    count = len(rows[cell].drop_duplicates())
    means: dict[str, dict[int, float]] = {}
    for (kind, seed), part in rows.groupby(["kind", "seed"], sort=False):
        if len(part[cell].drop_duplicates()) == count:
            means.setdefault(kind, {})[int(seed)] = float(part["score"].mean())
    return means


def reference_rows(runs: Sequence[Run]) -> list[Json]:
    """A row for each task with the main score of each reference on the rows that the fine-tunes were scored on."""
    rows: dict[str, Json] = {}
    for task, metric, metrics in tasks_of(runs):
        for reference, title in REFERENCES.items():
            names = [name for name in metrics if name.startswith("eval/reference/") and f"/{reference}/" in name]
            values = [metrics[name] for name in names if name.endswith(f"/{metric}")]
            if values:
                rows.setdefault(task, {"task": task, "metric": metric})[title] = values[0]
    return [rows[task] for task in sorted(rows)]


def tasks_of(runs: Sequence[Run]) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    """Task, main metric and all metrics of each fine-tune."""
    for run in runs:
        if is_scored(run):
            yield run.config["study"]["task"], main_metric(run), run.stage["metrics"]


def means_text(rows: Sequence[Row]) -> str:
    """Returns which models have the higher mean score, as a sentence; "" without any comparison."""
    decided = []
    for row in rows:
        if row["lo"] is not None and row["lo"] * row["hi"] > 0:
            better, worse = (row["kind"], row["against"])[:: 1 if row["lo"] > 0 else -1]
            decided.append(f"with {readable(better)} than with {readable(worse)}")
    if not rows:
        return ""
    higher = f"it is higher {' and '.join(decided)}; " if decided else ""
    return (
        f"The mean score after fine-tuning on {rows[0]['tasks']} tasks was compared in {len(rows)} pairs of models: "
        f"{higher}{len(rows) - len(decided)} are undecided."
    )


def _draw_arms(name: str, arms: Mapping[str, Arm], measure: str, panels: Mapping[str, str]) -> object:
    from kleiber.studies import side_by_side, tuning

    draw = tuning if name == "pretraining_tuning" else side_by_side
    return draw(arms, measure, panels, "lower")


def _draw(differences: Sequence[Row], means: Sequence[Row], level: float) -> object:
    """The figure of all differences in score: a panel for each pair of kinds, a line for each task and for all."""
    from kleiber.charts import estimates
    from kleiber.studies import interval_note

    rows = [{**row, "task": ALL_TASKS} for row in means] + [row for row in differences if row["value"] is not None]
    pairs = list(dict.fromkeys((row["kind"], row["against"]) for row in means))
    entries = [
        {
            **row,
            "panel": f"{readable(kind)} \N{MINUS SIGN} {readable(against)}",
            "series": kind,
            "name": readable(row["task"]),
            "better": "higher",
        }
        for kind, against in pairs
        for row in rows
        if (row["kind"], row["against"]) == (kind, against)
    ]
    kinds = list(dict.fromkeys(kind for kind, _ in pairs))
    title = "Difference in score between kinds of models after fine-tuning"
    zero = "no bar: no difference in any seed" if any(entry["value"] == 0 for entry in entries) else ""
    notes = [interval_note(level, entries), "dashed: no difference", zero]
    return estimates(
        entries, kinds, "difference in score", title, zero=True, subtitle="; ".join(filter(None, notes)),
        own_scales=False,
    )  # fmt: skip
