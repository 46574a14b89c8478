"""The tables of a comparison of retention methods, and its method in a paragraph. Nothing here computes a result.

The study `forgetting`: ways not to forget on one base, as a frontier of target loss against forgetting.

It compares methods where they have learned equally much, and refuses a ranking at one learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare import contrast, frontier
from kleiber.studies.compare import rows as outcomes
from kleiber.studies.compare.frontier import CELL
from kleiber.studies.compare.rows import PLAIN
from kleiber.studies.study import Findings, Tolerant


def scores(rows: pd.DataFrame, chosen: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Loss of each task by method at its chosen setting, seeds averaged, and before; change is against before."""
    tasks = [name for name in rows.columns if name.startswith("loss/")]
    start = [run.stage["start_metrics"] for run in runs if run.status == "finished" and outcomes.continued(run)]
    first = {task: outcomes.mean([one.get(f"val/{task[5:]}/loss") for one in start]) for task in tasks}
    found = [{"method": "before", "task": task[5:], "loss": first[task], "change": 0.0} for task in tasks]
    for one in chosen.to_dict("records"):
        mine = rows[(rows[CELL] == pd.Series({name: one[name] for name in CELL})).all(axis=1)]
        for task in tasks:
            loss = float(pd.Series(mine[task]).mean())
            found.append({"method": one["method"], "task": task[5:], "loss": loss, "change": loss - first[task]})
    return pd.DataFrame(found)


def matched(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The comparison, and for each method the setting that stands for it with its cost."""
    by_method = {one["method"]: one for one in record["chosen"]}
    rows = []
    for one in record["matched"]:
        setting = by_method[one["method"]]
        rows.append({
            "method": one["method"], "F at equal target": one["F"] if one["reached"] else "does not reach it",
            f"{record['level']:.0%}": span(one), "seeds": f"{one['reached']} of {one['seeds']}",
            "setting chosen": f"{setting['setting']} lr={setting['lr']:g}".strip(), "F": setting["F"],
            "peak F": setting["peak"], "F of what was learned": setting["relative"], "target loss": setting["target"],
            "new tokens": setting["target_tokens"], "all tokens": float(setting["tokens"]),
            "ms a step": per(setting, "seconds", 1e3 / setting["steps"]), "MiB": per(setting, "memory", 2.0**-20),
        })  # fmt: skip
    return rows


def settings(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every setting, method by method, the least forgetful first."""
    points = sorted(record["points"], key=lambda one: (one["method"], one["F"]))
    return [
        {
            "method": one["method"], "setting": one["setting"], "lr": one["lr"], "seeds": one["n"], "F": one["F"],
            "sd of F": one["F_sd"], "peak F": one["peak"], "target loss": one["target"], "sd": one["target_sd"],
            "on the frontier": bool(one["best"]),
        }
        for one in points
    ]  # fmt: skip


def method(record: Mapping[str, Any]) -> str:
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
        f"{spread}. The choice among settings is made on the same runs, which favours methods with more of them; the "
        "line of WiSE contains the ends of plain fine-tuning, so it cannot come out behind it. Replayed tokens count "
        "as tokens of the budget unless the design says otherwise." + outcomes.REPLAY
    )


def span(one: Mapping[str, Any]) -> str:
    return f"[{one['lo']:.4f}, {one['hi']:.4f}]" if bounded(one) else "no interval"


def bounded(one: Mapping[str, Any]) -> bool:
    """Whether there is an interval: without replicates its ends are infinite or nan."""
    return one["hi"] - one["lo"] < float("inf")


def per(setting: Mapping[str, Any], what: str, scale: float) -> float | None:
    value = setting.get(what)
    return None if value is None else round(value * scale, 1)


@dataclass(frozen=True)
class Forgetting(Tolerant):
    """How to compare.

    tolerance  methods are compared at (1 + tolerance) times the best target loss of plain fine-tuning
    level      of the intervals
    """

    def analyse(self, runs: Sequence[Run]) -> Findings:
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

    def compare(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Points, frontier, methods at matched target loss, claims. ValueError where nothing can be compared."""
        rows = outcomes.outcomes(runs)
        at = frontier.reference(rows, self.tolerance)
        points = frontier.averaged(rows)
        found = frontier.matched(rows, at, self.level)
        noise = frontier.seed_noise(rows, "F")
        return {
            "matched_target": at,
            "tolerance": self.tolerance,
            "level": self.level,
            "seed_noise": {"F": noise.sd, "df": noise.df, "target": frontier.seed_noise(rows, "target").sd},
            "matched": [asdict(one) for one in found],
            "chosen": frontier.chosen(points, at).to_dict("records"),
            "points": points.to_dict("records"),
            "complaints": complaints(points, at),
            "claims": [claim.verdict() for claim in contrast.claims(rows, found, self.level)],
        }


def complaints(points: pd.DataFrame, at: float) -> list[dict[str, str]]:
    """What makes the comparison weaker than it looks: methods whose slowest rate still learns more than is asked."""
    found = frontier.bounded(points, at)
    if not found:
        return []
    text = f"{', '.join(found)}: all of the frontier learns more than {at:.4f}, so F there is at most what is told"
    plain = "; so is what others gain on plain fine-tuning" if PLAIN in found else ""
    return [{"code": "bound", "level": "warn", "text": f"{text}{plain}: try lower learning rates"}]


def figures(runs: Sequence[Run], record: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The figures that the runs allow, by name."""
    from kleiber.studies import forgetting_figures as plots

    points, chosen = pd.DataFrame(record["points"]), pd.DataFrame(record["chosen"])
    made: dict[str, Callable[[], Any]] = {"pareto": lambda: plots.pareto(points, record["matched_target"])}
    if any(one["reached"] for one in record["matched"]):
        made["matched"] = lambda: plots.matched(record)
    paths, keys = outcomes.trajectories(runs), ["method", "setting", "lr"]
    paths = paths.merge(chosen[keys], on=keys) if len(paths) else paths
    if len(paths):
        made["trajectory"] = lambda: plots.trajectory(paths, plots.methods_of(points))
    made["matrix"] = lambda: plots.heat(scores(outcomes.outcomes(runs), chosen, runs))
    return made


def headline(record: dict[str, Any]) -> str:
    """Who forgets least at equal target loss, and whether that is more than noise."""
    reached = [one for one in record["matched"] if one["reached"]]
    plain = next((one for one in reached if one["method"] == PLAIN), None)
    where = f"At a target loss of {record['matched_target']:.4f} nats (plain fine-tuning + {record['tolerance']:.0%})"
    if not reached:
        return f"{where} no method can be compared: none reaches it."
    if plain is None:
        return f"{where} plain fine-tuning was not measured; {told(reached[0])} forgets least."
    if len(reached) == 1:
        return f"{where} only {told(reached[0])} can be compared."
    best = next(one for one in reached if one["method"] != PLAIN)
    if not bounded(best):
        return f"{where} {told(best)}, {told(plain)}: without replicates nothing says whether they differ."
    if not best["pairs"]:
        return f"{where} {told(best)}, {told(plain)}: no seed has both, so nothing says whether they differ."
    claim = next((one for one in record["claims"] if one["code"] == f"matched_{best['method']}"), None)
    holds = claim["holds"] if claim else None
    word = {True: "more than noise", False: "which is worse than none", None: "within noise"}[holds]
    less = f"{contrast.gap(best['less'], best['half'])} below plain fine-tuning, {word}"
    return f"{where} {told(best)} forgets least of the methods, {less}; plain fine-tuning: {told(plain)}."


def told(one: dict[str, Any]) -> str:
    interval = f" {span(one)}" if bounded(one) else ""
    return f"{one['method']} (F {one['F']:.4f}{interval} nats)"
