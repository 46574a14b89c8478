"""The study `transfer`: fine-tuning of pre-trained models on labelled tasks compared with training from scratch.

Scores are paired within seeds, and every claim has an interval.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from kleiber.config import readable
from kleiber.records import Run
from kleiber.studies import (
    SCRATCH,
    Claim,
    ClaimStudy,
    Figures,
    Findings,
    PlannedPoint,
    Question,
    Rows,
    answer_text,
    as_row,
    best_settings,
    decide_together,
    from_row,
    gaps_by_seed,
    not_ready,
    paired_difference,
    read_ladders,
    refuse_twin_rows,
    refuse_twins,
    score_of,
    untuned,
    with_intervals_of_claims,
)
from kleiber.types import Config, Json, Row, Share
from kleiber_topics.transfer.tables import (
    ALL_TASKS,
    NEAR,
    OVERFITTED,
    domain_of,
    effective_data,
    factor_row,
    failures,
    harm,
    main_metric,
    outcomes,
    rising,
    size_of,
    text_differences,
    with_means,
)

MOST_GAINS = 3  # gains that the answer lists
GROUP = ["task", "kind", "start", "share"]  # what the seeds of a mean have in common
METHODS = (
    "Each seed has base runs of its own, one for each kind of model and text; every task is fine-tuned from them, and "
    "from nothing by the same model, tokenizer, data order and number of steps. All texts train on equally many "
    "tokens, so that a small one is read several times: what differs is the text and not the compute. Learning rates "
    "were tuned for each kind, start and task at the first seed and all labels (of a kind's texts at the first one) by "
    "the validation score that is reported, which favors no side but makes every score a little too good. Gaps are "
    "paired by seed, intervals Student's at {level:.0%}, none corrected for the number of cells. Effective data "
    "transferred: the labelled tokens with which training from nothing would have reached the same score, by its curve "
    "over the share of the labels, less those that were given (Hernandez et al. 2021, arXiv:2102.01293); its interval "
    "is the amounts at which that curve does not differ from the score, by Student's test paired by seed. Failure "
    "modes are shares of runs: no better than the largest class is a score at most {near:g} above it, overfitted a "
    "last training loss below {overfitted:g} times the validation loss."
)


@dataclass(frozen=True)
class Transfer(ClaimStudy):
    """How to read it.

    against  kinds that are compared with others from the same text, such as {mlm: bert, clm: [gpt2, llama]}: ours -
             theirs
    kind, start, task, share  of a cell: set by the design
    """

    against: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    kind: str | None = None
    start: str | None = None
    task: str | None = None
    share: Share | None = None

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError as `refuse_twins` for planned fine-tunes."""
        placed = []
        for config, name in ((point.config, point.folder.name) for point in points):
            study, init = config.get("study") or {}, config.get("init") or {}
            if study.get("task") is not None:
                names = ", ".join(f"{key} {study.get(key)}" for key in GROUP)
                lr, seed = config["optimizer"]["lr"], config["seed"]
                # A fine-tune of another base is superseded: no study reads it.
                placed.append((f"{names}, lr {lr:g}, seed {seed}, from {init.get('path')}", name, config))
        refuse_twins(placed)
        return []

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares fine-tuning of pre-trained models with training from scratch on every task.

        Raises ValueError as `refuse_twins`.
        """
        tried = score_rows(runs)
        refuse_twin_rows(tried, [*GROUP, "lr", "seed"], runs)
        rows = tuned_scores(tried)
        means = with_means(rows)
        differences = self.differences(means)
        gaps = [row for row in differences if row["against"] == SCRATCH]
        arms = [key for key, _ in rows[rows["start"] != SCRATCH].groupby(["kind", "start", "task"])]
        data = [row for arm in arms for row in effective_data(rows, *arm, level=self.level)]
        domains = outcomes(gaps)
        tables = {
            "Where pre-training helps and hurts": domains,
            "Pre-trained less from nothing": gaps,
            "Differences between texts": text_differences(means, self.level),
            "Failure modes": failures(rows, runs),
            "Against other architectures": [row for row in differences if row["against"] != SCRATCH],
            "Effective data transferred": [factor_row(row) for row in data], "Scores": scores(rows),
            "Tuning": tuning(tried) if len(tried) > len(rows) else [],
        }  # fmt: skip
        results = decide_together(self.questions_of(runs), self.level, variance=self.variance)
        gained = headline(with_intervals_of_claims(gaps, results, self.level), self.level)
        return Findings(
            answer_text(f"{gained}{harm(domains, self.level)}", results, self.level),
            question="Does pre-training raise the score after fine-tuning, and from which text?",
            claims=results,
            estimates=[score_estimate(row, self.level) for row in differences if row["value"] is not None],
            caveats=cautions(rows, data),
            tables={title: table for title, table in tables.items() if table},
            figures=figures(rows, gaps, data, self.level),
            methods=METHODS.format(level=self.level, near=NEAR, overfitted=OVERFITTED),
            measure="score",
        )

    def questions_of(self, runs: Sequence[Run]) -> list[Question]:
        """Returns the claims that pre-training on the largest text of a domain raises the score with the most labels.

        The score is the mean over tasks where there are several.
        """
        waiting, tried = not_ready(runs, 1, lambda run: (run.config.get("study") or {}).get("task")), score_rows(runs)
        means = with_means(tuned_scores(tried))
        task = ALL_TASKS if (means["task"] == ALL_TASKS).any() else means["task"].iloc[0]
        part = means[(means["task"] == task) & (means["share"] == means["share"].max())]
        arms = {key: dict(zip(arm["seed"], arm["score"], strict=True)) for key, arm in part.groupby(["kind", "start"])}
        largest = max((size_of(start) for _, start in arms if start != SCRATCH), default=0.0)
        scored = "the mean score over all tasks" if task == ALL_TASKS else f"the score on {readable(task)}"
        asked = []
        for (kind, start), scores in arms.items():
            nothing = arms.get((kind, SCRATCH), {})
            if start == SCRATCH or size_of(start) != largest or not nothing:
                continue
            side = {"kind": kind, "start": start, "task": task}
            claim = Claim(of=side, against={"start": SCRATCH}, measure="score", equal="tokens", direction="higher")
            problem = waiting.why or next(filter(None, (untuned_arm(tried, kind, at) for at in (start, SCRATCH))), "")
            asked.append(
                Question(
                    claim=claim,
                    text=f"{scored} is higher with {named(kind, start)} than without pre-training",
                    values=gaps_by_seed(scores, nothing), unit="in score", better="higher", problem=problem,
                    tuned=not problem or problem == waiting.why,
                    advice=waiting.advice or (f"add rates: `design.kinds.{kind}.lrs=[...]`" if problem else ""),
                )
            )  # fmt: skip
        return asked

    def rivals(self, kind: str) -> Sequence[str]:
        """The kinds that a kind is compared with."""
        rivals = self.against.get(kind, ())
        return [rivals] if isinstance(rivals, str) else rivals

    def differences(self, rows: Rows) -> list[Json]:
        """Every kind on every text, task and share less the same kind from nothing, and less the kind of `against`.

        The mean over tasks is only compared with that from nothing.
        """
        arms = {key: dict(zip(part["seed"], part["score"], strict=True)) for key, part in rows.groupby(GROUP)}
        table = []
        for (task, kind, start, share), ours in arms.items():
            others = {SCRATCH: arms.get((task, kind, SCRATCH, share))}
            rivals = self.rivals(kind) if task != ALL_TASKS else ()
            others |= {rival: arms.get((task, rival, start, share)) for rival in rivals}
            for against, theirs in others.items() if start != SCRATCH else ():
                if theirs is not None:
                    better = sum(gap > 0 for gap in gaps_by_seed(ours, theirs))
                    numbers = as_row(paired_difference(ours, theirs, self.level, "in score"))
                    names = {"task": task, "kind": kind, "start": start, "share": share, "against": against}
                    table.append({**names, **numbers, "better on": better})
        return table


def pretrained_arm(config: Config) -> tuple[str, str] | None:
    """Kind and text of a pre-training run of the design `pretraining`; None for any other run."""
    labels = config.get("study") or {}
    if labels.get("task") is not None or labels.get("kind") is None:
        return None
    return labels["kind"], labels["start"]


def best_base_rate(runs: Sequence[Run], arm: tuple[str, str]) -> float | None:
    """The learning rate with the lowest mean loss of the pre-training runs of a kind and text; None before any has
    ended."""
    ended = [run for run in runs if run.stage.get("metrics") and pretrained_arm(run.config) == arm]
    if not any(run.finished for run in ended):
        return None
    ((*_, longest),) = read_ladders(ended, arm_of=lambda run: arm[0], min_arms=1).values()
    return longest.best_lr


def superseded(runs: Sequence[Run]) -> set[str]:
    """Names of the fine-tunes from bases that are no longer the best: the choice may change with every further base."""
    arms = [(run, pretrained_arm(run.config)) for run in runs]
    bases = {run.name: (run, arm) for run, arm in arms if arm is not None}
    rates: dict[tuple[str, str], set[float | None]] = defaultdict(set)
    for run, arm in bases.values():
        rates[arm].add(run.stage.get("lr"))
    best = {arm: best_base_rate(runs, arm) for arm, tried in rates.items() if len(tried) > 1}
    others = {name for name, (run, arm) in bases.items() if arm in best and run.stage.get("lr") != best[arm]}
    if not others:
        return set()
    paths = {run.name: (run.config.get("init") or {}).get("path") for run in runs if run.name not in bases}
    return {name for name, path in paths.items() if path and others.intersection(Path(str(path)).parts)}


def untuned_arm(tried: Rows, kind: str, start: str) -> str:
    """Why the fine-tunes of a kind from a start are not tuned on some task; "" where they are."""
    part = tried[(tried["kind"] == kind) & (tried["start"] == start) & (tried["share"] == tried["share"].max())]
    for task, rows in part.groupby("task"):
        best = float(rows.loc[rows["score"].idxmax(), "lr"])
        if why := untuned(sorted(set(rows["lr"])), best, int(rows["seed"].nunique())):
            return f"on {readable(str(task))}, {'without' if start == SCRATCH else 'with this'} pre-training, {why}"
    return ""


def score_estimate(row: Row, level: float) -> Json:
    """The entry of `estimates` in findings.json of a difference in score."""
    of = {key: row[key] for key in GROUP}
    against = {"start" if row["against"] == SCRATCH else "kind": row["against"]}
    return {
        "measure": "score", "of": of, "against": against, "than": None, "less": 0.0, "equal": "tokens",
        **as_row(from_row(row)), "better": "higher", "tuned": None, "method": "Student's t over seeds", "level": level,
    }  # fmt: skip


def score_rows(runs: Sequence[Run]) -> Rows:
    """A row for each finished fine-tune: run, kind, start, task, share, seed, lr, metric, score, loss, tokens (labelled
    tokens), params, seconds. Raises ValueError where there is none."""
    table, stale = [], superseded(runs)
    for run in runs:
        config = run.config
        labels = config.get("study") or {}
        if not run.finished or labels.get("task") is None or not run.stage.get("tasks") or run.name in stale:
            continue  # a run that is planned alone has no score
        stage, (name, *_) = run.stage, run.stage["tasks"]
        metric = main_metric(run)
        key = f"val/{name}/{metric}"
        falls = score_of([run], key).better == "lower"
        table.append(
            {
                "run": run.name, **{key: labels[key] for key in ("kind", "start", "task")},
                "share": float(labels["share"]), "seed": config["seed"], "lr": stage["lr"],
                "metric": f"-{metric}" if falls else metric, "score": rising(run, key),
                "loss": stage["metrics"][f"val/{name}/loss"],
                "tokens": stage["data"]["tokens"], "params": stage["params"]["total"],
                "outside": stage["params"]["non_embedding"], "seconds": stage["seconds"],
            }
        )  # fmt: skip
    if not table:
        raise ValueError("no finished run of any task: this study needs the cells of its own design")
    return pd.DataFrame(table).sort_values(["task", "kind", "start", "share", "seed", "lr"], ignore_index=True)


def tuned_scores(tried: Rows) -> Rows:
    """The rows at the learning rate of each kind, start, task and share; a rate that only some seeds have was for
    tuning."""
    return tried.merge(best_settings(tried, GROUP, ["lr"], "score", higher=True), on=[*GROUP, "lr"])


def tuned_rates(runs: Sequence[Run], share: float) -> dict[tuple[str, str, str], float]:
    """The rate with the best score at the first seed, by kind, start and task; ties go to the least loss."""
    try:
        rows = score_rows(runs)
    except ValueError:
        return {}
    tried = rows[(rows["seed"] == 0) & (rows["share"] == share)]
    ranked = tried.sort_values(["score", "loss"], ascending=[False, True])
    best = ranked.drop_duplicates(["kind", "start", "task"]).to_dict("records")
    return {(row["kind"], row["start"], row["task"]): float(row["lr"]) for row in best}


def cautions(rows: Rows, data: Sequence[Row]) -> list[dict[str, str]]:
    """Warnings about single seeds and about transferred data without an upper bound."""
    single = int((rows.groupby(GROUP)["seed"].nunique() < 2).sum())
    unbounded = any(math.isinf(row["factor"]) for row in data)
    text = f"{single} of {rows.groupby(GROUP).ngroups} means have 1 seed, and 2 are needed for an interval"
    few = {"code": "few_seeds", "text": text}
    text = "from nothing the score of some pre-trained models was not reached with any share of the labels: there the "
    censored = {"code": "censored", "text": f"{text}data transferred has no upper bound"}
    return [few] * (single > 0) + [censored] * unbounded


def headline(gaps: Sequence[Row], level: float) -> str:
    """The gain with the most labels from the largest text of each domain, in the mean score where tasks are several."""
    shown = [row for row in gaps if row["value"] is not None]
    if not shown:
        return "Nothing can be compared: no task was trained from a base and from nothing alike."
    means = [row for row in shown if row["task"] == ALL_TASKS] or shown
    most = max(row["share"] for row in means)
    largest = max(size_of(row["start"]) for row in means if row["share"] == most)
    chosen = [row for row in means if (row["share"], size_of(row["start"])) == (most, largest)]
    tasks = len({row["task"] for row in shown} - {ALL_TASKS})
    names = {row["task"]: f"the score on {readable(row['task'])}" for row in chosen}
    names |= {ALL_TASKS: f"the mean score of {tasks} tasks"}
    texts = [
        f"{names[row['task']]} by {replace(from_row(row), unit='').text('.3g')} ({named(row['kind'], row['start'])})"
        for row in chosen
    ]
    if len(chosen) <= MOST_GAINS:
        return f"Pre-training changes {'; '.join(texts)}, with {level:.0%} intervals."
    low, high = (pick(chosen, key=lambda row: row["value"]) for pick in (min, max))
    least, most = (f"{row['value']:+.3g} ({named(row['kind'], row['start'])})" for row in (low, high))
    clear = sum(row["lo"] is not None and row["lo"] * row["hi"] > 0 for row in chosen)
    return (
        f"Pre-training changes the mean score of {tasks} tasks by between {least} and {most}; of the "
        f"{len(chosen)} intervals at {level:.0%}, {clear or 'none'} exclude{'s' * (clear < 2)} 0."
    )


def named(kind: str, start: str) -> str:
    """Returns what sentences call models of a kind with a start: `MLM on 4M bytes of docs text`, `MLM from nothing`."""
    domain, _, size = start.partition("/")
    origin = "from nothing" if start == SCRATCH else f"on {size} bytes of {domain} text"
    return f"{readable(kind)} {origin}"


def scores(rows: Rows) -> list[Json]:
    """A row for each kind, start, task and share: the mean score over seeds."""
    keys = ["task", "kind", "start", "share", "metric", "lr"]
    table = rows.groupby(keys, as_index=False).agg(
        seeds=("seed", "nunique"), score=("score", "mean"), sd=("score", "std"), loss=("loss", "mean"),
        params=("params", "median"), outside=("outside", "median"), seconds=("seconds", "mean"),
    )  # fmt: skip
    return table.rename(columns={"outside": "outside embeddings"}).to_dict("records")


def tuning(tried: Rows) -> list[Json]:
    first = tried[(tried["seed"] == 0) & (tried["share"] == tried["share"].max())]
    return first[["task", "kind", "start", "lr", "score", "loss"]].to_dict("records")


def figures(rows: Rows, gaps: Sequence[Row], data: Sequence[Row], level: float) -> Figures:
    """The figures that the runs allow, by name."""
    from kleiber_topics.transfer import figures as drawing

    charts: Figures = {}
    if any(row["value"] is not None for row in gaps):
        if len({domain_of(row["start"]) for row in gaps}) > 1:
            charts["domains"] = lambda: drawing.gain_matrix(gaps)
        charts["gaps"] = lambda: drawing.gains(gaps, rows, level)
    pretrained = rows.loc[rows["start"] != SCRATCH, "start"]
    if len(set(map(size_of, pretrained))) > 1:
        charts["texts"] = lambda: drawing.scores_by_text(rows)
    if rows.loc[pretrained.index, "share"].nunique() > 1:
        charts["labels"] = lambda: drawing.scores_by_labels(rows)
    if data:
        charts["transferred"] = lambda: drawing.effective_data(data, rows, level)
    return charts
