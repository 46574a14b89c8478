"""The study `moe_forgetting`: forgetting of a mixture of experts and of a dense model of equal active FLOPs.

As in the study `forgetting`, every arm runs at every learning rate and is compared on its frontier at one target loss,
which all arms reach. The report adds how much the load of the experts changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies import forgetting
from kleiber.studies.compare import frontier
from kleiber.studies.compare.contrast import Claim, above, contrast
from kleiber.studies.compare.decision import interval
from kleiber.studies.compare.rows import PLAIN, Rows, described, mean, outcomes, trajectories
from kleiber.studies.forgetting_metrics import KINDS
from kleiber.studies.study import EqualTargetStudy, Figures, Findings
from kleiber.types import Config, Json, Row

DENSE, FREE, FROZEN = "dense", "moe", "moe, router frozen"
SLACK = 0.05  # relative difference of active parameters that still counts as equal


@dataclass(frozen=True)
class MoEForgetting(EqualTargetStudy):
    """How to compare.

    tolerance  arms are compared at (1 + tolerance) times the best target loss of the arm that learns worst
    level      of the intervals
    """

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares the forgetting of mixture and dense model at equal target loss."""
        record = self.compare(runs)
        return Findings(
            headline=headline(record),
            verdicts=[*record["complaints"], *record["claims"]],
            tables={
                "At equal target loss": forgetting.matched(record),
                "Where the experts' text went": record["loads"],
                "Settings": forgetting.settings(record),
            },
            figures=figures(runs, record),
            methods=METHODS.format(at=record["matched_target"], level=self.level, tolerance=self.tolerance),
        )

    def compare(self, runs: Sequence[Run]) -> Json:
        """Points, arms at equal target loss, claims, loads. ValueError where no arm has a finished run."""
        rows = rows_of(runs)
        points = frontier.averaged(rows)
        at = common_target(points, self.tolerance)
        comparisons = frontier.matched(rows, at, self.level)
        chosen = frontier.chosen(points, at)
        return {
            "matched_target": at,
            "level": self.level,
            "matched": [asdict(entry) for entry in comparisons],
            "chosen": chosen.to_dict("records"),
            "points": points.to_dict("records"),
            "claims": [entry.verdict() for entry in claims(rows, points, at, self.level)],
            "complaints": complaints(rows, points, at),
            "loads": load_table(rows, chosen, self.level),
        }


def rows_of(runs: Sequence[Run]) -> Rows:
    """A row a run that went on from a base, its arm as `method`, with its load shifts."""
    rows: Rows = outcomes(runs)
    by_name = {run.name: run for run in runs}
    rows = rows[[name in by_name for name in rows["run"]] & ~frontier.on_line(rows["method"])]
    arms = {name: arm_of(by_name[name].config) for name in rows["run"]}
    return rows.assign(
        method=[arms[name] for name in rows["run"]],
        shifts=[shifts(by_name[name]) for name in rows["run"]],
    ).reset_index(drop=True)


def arm_of(config: Config) -> str:
    """`dense`, `moe` or `moe, router frozen`; retention methods and other adapters after it."""
    mixture = "num_experts" in (config["model"].get("mlp") or {})
    adapter = config.get("adapter") or {}
    frozen = mixture and list(adapter.get("freeze") or ()) == ["router"] and adapter.get("train") is None
    kept, settings = described({**config, "adapter": None if frozen else config.get("adapter")})
    parts = [FROZEN if frozen else FREE if mixture else DENSE]
    return " + ".join([*parts, f"{kept} {settings}".strip()] if kept != PLAIN else parts)


def shifts(run: Run) -> dict[tuple[str, str, int], float]:
    """(kind, task, layer): total variation distance, of a run whose model has experts."""
    distances = {}
    for name, value in run.metrics.items():
        first, *rest = name.split("/")
        if first == "drift" and len(rest) >= 3 and rest[-2] in KINDS and value is not None:
            distances[rest[-2], "/".join(rest[:-2]), int(rest[-1])] = value
    return distances


def common_target(points: Rows, tolerance: float) -> float:
    """(1 + tolerance) times the best mean target loss of the arm whose best is worst: every arm gets there."""
    return (1 + tolerance) * float(points.groupby("method")["target"].min().max())


def claims(rows: Rows, points: Rows, at: float, level: float) -> list[Claim]:
    """What the comparison says, two questions at equal target loss at once (Bonferroni); what was not run is not said.

    Differences are taken within seeds; their noise is what seeds and arms leave over.
    """
    table = frontier.at_target(rows, at)
    noise, each = frontier.blocked(table), 1 - (1 - level) / 2
    results = []
    for code, arm, other, text in (
        ("moe_less", DENSE, FREE, "a mixture forgets less than a dense model of equal active FLOPs"),
        ("frozen_less", FREE, FROZEN, "a mixture whose router is frozen forgets less than one whose router learns"),
    ):
        if {arm, other} <= set(table) and len((table[arm] - table[other]).dropna()):
            less, half = contrast(table, arm, other, noise, each)
            results.append(above(code, f"{text} at equal target loss: by {less:+.4f} +- {half:.4f} nats", less, half))
    learned, lost = (at_best_rate(rows, points, column) for column in ("target", "F"))
    for code, arm, other, best, text in (
        ("moe_less_at_best", DENSE, FREE, lost, "each at its best rate, the mixture forgets less, whatever it learns"),
        ("frozen_cost", FROZEN, FREE, learned, "each at its best rate, freezing the router costs target loss"),
    ):
        if {arm, other} <= set(best) and len((best[arm] - best[other]).dropna()):
            gap, half = contrast(best, arm, other, frontier.blocked(best), level)
            results.append(above(code, f"{text}: by {gap:+.4f} +- {half:.4f} nats", gap, half))
    return [*results, *held_loads(rows, level)]


def held_loads(rows: Rows, level: float) -> list[Claim]:
    """Freezing the router moves the load of the earlier text less, layers and learning rates averaged within seeds."""
    shifted = rows.assign(moved=[earlier_shift(distances) for distances in rows["shifts"]])
    table = shifted.pivot_table(index=["seed", "lr"], columns="method", values="moved")
    if not {FREE, FROZEN} <= set(table):
        return []
    gaps = (table[FREE] - table[FROZEN]).dropna().groupby("seed").mean()
    if not len(gaps):
        return []
    less, half = float(gaps.mean()), frontier.pooled([gaps.to_numpy()]).half_width(level, 1 / len(gaps))
    text = f"with the router frozen the load of the earlier text moves less: by {less:+.4f} +- {half:.4f}"
    return [above("frozen_load", f"{text} of total variation, mean of layers and rates", less, half)]


def earlier_shift(distances: Mapping[tuple[str, str, int], float]) -> float:
    """Mean over layers and earlier tasks of how far their load moved; nan where it is not known."""
    earlier = {task for kind, task, _ in distances if kind == "load_gap_before"}
    return mean([value for (kind, task, _), value in distances.items() if kind == "load_shift" and task in earlier])


def at_best_rate(rows: Rows, points: Rows, column: str) -> Rows:
    """`what` by seed and arm, each arm at the setting of least mean target loss."""
    best = points.loc[points.groupby("method")["target"].idxmin(), frontier.CELL]
    return rows.merge(best, on=frontier.CELL).pivot_table(index="seed", columns="method", values=column)


def complaints(rows: Rows, points: Rows, at: float) -> list[dict[str, str]]:
    """What makes the comparison weaker than it looks."""
    verdicts = []
    bounded = frontier.bounded(points, at)
    for arm, part in points.groupby("method"):
        if arm in bounded and len(part) > 1:
            text = f"{arm} learns more than {at:.4f} at every rate: its F there is at most what is told; try a lower lr"
            verdicts.append({"code": "bound", "level": "warn", "text": text})
        rates = sorted(part["lr"].unique())
        best = float(part.loc[part["target"].idxmin(), "lr"])
        if best == rates[-1]:
            text = f"{arm} learns best at the largest rate that was tried, {best:g}: more might be learned beyond it"
            verdicts.append({"code": "edge", "level": "note", "text": text})
    sizes = rows.groupby("method")["N"].median()
    if {DENSE, FREE} <= set(sizes.index) and abs(sizes[FREE] / sizes[DENSE] - 1) > SLACK:
        text = f"the mixture has {sizes[FREE]:,.0f} active parameters and the dense model {sizes[DENSE]:,.0f}"
        verdicts.append({"code": "unequal", "level": "warn", "text": text})
    return verdicts


def load_table(rows: Rows, chosen: Rows, level: float) -> list[Json]:
    """Total variation distance of expert loads by arm (at its chosen setting), text and layer: mean over seeds."""
    kept = rows.merge(chosen[frontier.CELL], on=frontier.CELL).sort_values("method", kind="stable")
    table = []
    for arm, part in kept.groupby("method", sort=False):
        keys = {key for entry in part["shifts"] for key in entry}
        for kind, task, layer in sorted(keys, key=lambda key: ([*KINDS].index(key[0]), *key[1:])):
            values = [entry[kind, task, layer] for entry in part["shifts"] if (kind, task, layer) in entry]
            lo, hi = interval(values, level)
            mean = sum(values) / len(values)
            entry = {"arm": arm, "text": task, "distance": KINDS[kind], "layer": layer, "total variation": mean}
            table.append({**entry, "lo": lo, "hi": hi, "seeds": len(values)})
    return table


def figures(runs: Sequence[Run], record: Json) -> Figures:
    """The figures that the runs allow, by name."""
    from kleiber.studies import forgetting_figures

    points, chosen = pd.DataFrame(record["points"]), pd.DataFrame(record["chosen"])
    charts: Figures = {"pareto": lambda: forgetting_figures.pareto(points, record["matched_target"])}
    if any(row["reached"] for row in record["matched"]):
        charts["matched"] = lambda: forgetting_figures.matched(record)
    paths: Rows = trajectories(runs)
    if len(paths):
        configs = {run.name: run.config for run in runs}
        paths = paths.assign(method=[arm_of(configs[name]) for name in paths["run"]])
        paths = paths.merge(chosen[["method", "setting", "lr"]], on=["method", "setting", "lr"])
        charts["trajectory"] = lambda: forgetting_figures.trajectory(paths, forgetting_figures.methods_of(points))
    if record["loads"]:
        charts["loads"] = lambda: forgetting_figures.loads(
            record["loads"], forgetting_figures.methods_of(points), record["level"]
        )
    return charts


def headline(record: Json) -> str:
    """Whether the mixture forgets less at equal target loss, and whether freezing its router helps."""
    by_code = {row["code"]: row for row in record["claims"]}
    where = f"At a target loss of {record['matched_target']:.4f} nats"
    if "moe_less" not in by_code:
        arms = ", ".join(sorted({row["method"] for row in record["matched"]}))
        return f"{where} a mixture and a dense model cannot be compared yet: there is {arms}."
    first = sentence(by_code["moe_less"], "the mixture", "a dense model of equal active FLOPs")
    if "frozen_less" not in by_code:
        return f"{where} {first}."
    second = sentence(by_code["frozen_less"], "with its router frozen it", "with a router that learns")
    return f"{where} {first}; {second}."


def sentence(claim: Row, arm: str, other: str) -> str:
    """`the mixture forgets less than a dense model (F lower by .0300 nats [.02, .04])`."""
    if not claim["hi"] - claim["lo"] < float("inf"):
        by = f"F lower by {claim['value']:+.4f} nats, no interval without replicates"
        return f"{arm} against {other}: {by}"
    undecided = "forgets, within noise, as much as"
    outcome = {True: "forgets less than", False: "forgets more than", None: undecided}
    by = f"F lower by {claim['value']:+.4f} nats [{claim['lo']:+.4f}, {claim['hi']:+.4f}]"
    return f"{arm} {outcome[claim['holds']]} {other} ({by})"


METHODS = (
    "A dense base and a mixture of equal active FLOPs were trained with the same seeds on the same samples; each went "
    "on from its own base, with all weights free or the router frozen, at every learning rate. F is the rise of the "
    "earlier tasks' mean held-out loss. It is read off each arm's own frontier (straight lines between its undominated "
    "points, seed by seed) at a target loss of {at:.4f}, {tolerance:.0%} above the best of the arm that learns worst. "
    "Differences are within seeds with the noise that seeds and arms leave over; Student's intervals at {level:.0%}, "
    "both questions at once (Bonferroni). Dense and mixture go on from different bases, so what a base does to F is "
    "part of that noise. Loads are the share of assignments by expert on fixed held-out text; distances are total "
    "variation, half the sum of absolute differences, 0 to 1: of one text between the model before and after, and "
    "between the earlier text and the new one."
)
