"""The study `forgetting`: retention methods from one base, compared by forgetting at equal target loss, with tables.

Each method is tuned over settings and learning rates; methods are not ranked at a single learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare import contrast, frontier
from kleiber.studies.compare.frontier import CELL
from kleiber.studies.compare.rows import PLAIN, REPLAY, continued, mean, outcomes, trajectories
from kleiber.studies.study import EqualTargetStudy, Figures, Findings
from kleiber.types import Json, Row


def scores(rows: pd.DataFrame, chosen: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Loss of each task by method at its chosen setting, seeds averaged, and before; change is against before."""
    tasks = [name for name in rows.columns if name.startswith("loss/")]
    start = [run.stage["start_metrics"] for run in runs if run.status == "finished" and continued(run)]
    first = {task: mean([setting.get(f"val/{task[5:]}/loss") for setting in start]) for task in tasks}
    table = [{"method": "before", "task": task[5:], "loss": first[task], "change": 0.0} for task in tasks]
    for setting in chosen.to_dict("records"):
        mine = rows[(rows[CELL] == pd.Series({name: setting[name] for name in CELL})).all(axis=1)]
        for task in tasks:
            loss = float(pd.Series(mine[task]).mean())
            table.append({"method": setting["method"], "task": task[5:], "loss": loss, "change": loss - first[task]})
    return pd.DataFrame(table)


def matched(record: Json) -> list[Json]:
    """The comparison, and for each method the setting that stands for it with its cost."""
    by_method = {method["method"]: method for method in record["chosen"]}
    rows = []
    for method in record["matched"]:
        setting = by_method[method["method"]]
        rows.append({
            "method": method["method"], "F at equal target": method["F"] if method["reached"] else "does not reach it",
            f"{record['level']:.0%}": span(method), "seeds": f"{method['reached']} of {method['seeds']}",
            "setting chosen": f"{setting['setting']} lr={setting['lr']:g}".strip(), "F": setting["F"],
            "peak F": setting["peak"], "F of what was learned": setting["relative"], "target loss": setting["target"],
            "new tokens": setting["target_tokens"], "all tokens": float(setting["tokens"]),
            "ms a step": per(setting, "seconds", 1e3 / setting["steps"]), "MiB": per(setting, "memory", 2.0**-20),
        })  # fmt: skip
    return rows


def settings(record: Json) -> list[Json]:
    """Every setting, method by method, the least forgetful first."""
    points = sorted(record["points"], key=lambda point: (point["method"], point["F"]))
    return [
        {
            "method": point["method"], "setting": point["setting"], "lr": point["lr"], "seeds": point["n"],
            "F": point["F"], "sd of F": point["F_sd"], "peak F": point["peak"], "target loss": point["target"],
            "sd": point["target_sd"], "on the frontier": bool(point["best"]),
        }
        for point in points
    ]  # fmt: skip


def method(record: Json) -> str:
    """A paragraph for a paper."""
    noise = record["seed_noise"]
    spread = "not measured" if not noise["df"] else f"{noise['F']:.4f} nats ({noise['df']} degrees of freedom)"
    return (
        "All methods go on from the same base run of their seed. F is the rise of the earlier tasks' mean held-out "
        "loss between the first and the last step, peak F its largest rise on a subset while training went on. Every "
        "method was tuned over its settings and learning rates; F is read off its own frontier (straight lines between "
        f"its undominated points, seed by seed) at a target loss of {record['matched_target']:.4f}, which is the best "
        f"of plain fine-tuning and {record['tolerance']:.0%} more. Intervals are Student's at {record['level']:.0%}: "
        "of F with as many degrees of freedom as there are bases less one, of differences within seeds with the noise "
        "left after seeds and methods, for all methods at once (Bonferroni). Seed noise of a run: "
        f"{spread}. The choice among settings is made on the same runs, which favors methods with more of them; the "
        "line of WiSE contains the ends of plain fine-tuning, so it cannot come out behind it. Replayed tokens count "
        "as tokens of the budget unless the design says otherwise." + REPLAY
    )


def span(row: Row) -> str:
    return f"[{row['lo']:.4f}, {row['hi']:.4f}]" if bounded(row) else "no interval"


def bounded(row: Row) -> bool:
    """Whether there is an interval: without replicates its ends are infinite or nan."""
    return row["hi"] - row["lo"] < float("inf")


def per(setting: Row, column: str, scale: float) -> float | None:
    value = setting.get(column)
    return None if value is None else round(value * scale, 1)


@dataclass(frozen=True)
class Forgetting(EqualTargetStudy):
    """How to compare.

    tolerance  methods are compared at (1 + tolerance) times the best target loss of plain fine-tuning
    level      of the intervals
    """

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares the forgetting of all methods at equal target loss."""
        record = self.compare(runs)
        return Findings(
            headline=headline(record),
            verdicts=[*record["complaints"], *record["claims"]],
            tables={
                "At equal target loss": matched(record),
                "Settings": settings(record),
            },
            figures=figures(runs, record),
            methods=method(record),
        )

    def compare(self, runs: Sequence[Run]) -> Json:
        """Points, frontier, methods at matched target loss, claims. ValueError where nothing can be compared."""
        rows = outcomes(runs)
        at = frontier.reference(rows, self.tolerance)
        points = frontier.averaged(rows)
        comparisons = frontier.matched(rows, at, self.level)
        noise = frontier.seed_noise(rows, "F")
        return {
            "matched_target": at,
            "tolerance": self.tolerance,
            "level": self.level,
            "seed_noise": {"F": noise.sd, "df": noise.df, "target": frontier.seed_noise(rows, "target").sd},
            "matched": [asdict(comparison) for comparison in comparisons],
            "chosen": frontier.chosen(points, at).to_dict("records"),
            "points": points.to_dict("records"),
            "complaints": complaints(points, at),
            "claims": [claim.verdict() for claim in contrast.claims(rows, comparisons, self.level)],
        }


def complaints(points: pd.DataFrame, at: float) -> list[dict[str, str]]:
    """What makes the comparison weaker than it looks: methods whose slowest rate still learns more than is asked."""
    methods = frontier.bounded(points, at)
    if not methods:
        return []
    text = f"{', '.join(methods)}: all of the frontier learns more than {at:.4f}, so F there is at most what is told"
    plain = "; so is what others gain on plain fine-tuning" if PLAIN in methods else ""
    return [{"code": "bound", "level": "warn", "text": f"{text}{plain}: try lower learning rates"}]


def figures(runs: Sequence[Run], record: Json) -> Figures:
    """The figures that the runs allow, by name."""
    from kleiber.studies import forgetting_figures

    points, chosen = pd.DataFrame(record["points"]), pd.DataFrame(record["chosen"])
    charts: Figures = {"pareto": lambda: forgetting_figures.pareto(points, record["matched_target"])}
    if any(row["reached"] for row in record["matched"]):
        charts["matched"] = lambda: forgetting_figures.matched(record)
    paths, keys = trajectories(runs), ["method", "setting", "lr"]
    paths = paths.merge(chosen[keys], on=keys) if len(paths) else paths
    if len(paths):
        charts["trajectory"] = lambda: forgetting_figures.trajectory(paths, forgetting_figures.methods_of(points))
    charts["matrix"] = lambda: forgetting_figures.heat(scores(outcomes(runs), chosen, runs))
    return charts


def headline(record: Json) -> str:
    """Who forgets least at equal target loss, and whether that is more than noise."""
    reached = [row for row in record["matched"] if row["reached"]]
    plain = next((row for row in reached if row["method"] == PLAIN), None)
    where = f"At a target loss of {record['matched_target']:.4f} nats (plain fine-tuning + {record['tolerance']:.0%})"
    if not reached:
        return f"{where} no method can be compared: none reaches it."
    if plain is None:
        return f"{where} plain fine-tuning was not measured; {describe_method(reached[0])} forgets least."
    if len(reached) == 1:
        return f"{where} only {describe_method(reached[0])} can be compared."
    best = next(row for row in reached if row["method"] != PLAIN)
    pair = f"{where} {describe_method(best)}, {describe_method(plain)}"
    if not bounded(best):
        return f"{pair}: without replicates it is unknown whether they differ."
    if not best["pairs"]:
        return f"{pair}: no seed has runs of both, so it is unknown whether they differ."
    claim = next((row for row in record["claims"] if row["code"] == f"matched_{best['method']}"), None)
    holds = claim["holds"] if claim else None
    outcome = {True: "more than noise", False: "which is worse than none", None: "within noise"}[holds]
    less = f"{contrast.gap(best['less'], best['half'])} below plain fine-tuning, {outcome}"
    least = f"{describe_method(best)} forgets least of the methods"
    return f"{where} {least}, {less}; plain fine-tuning: {describe_method(plain)}."


def describe_method(row: Json) -> str:
    interval = f" {span(row)}" if bounded(row) else ""
    return f"{row['method']} (F {row['F']:.4f}{interval} nats)"
