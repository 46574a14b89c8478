"""The study `adapters`: low-rank adapters of several ranks compared with full fine-tuning from common base runs.

Arms are compared each at its own best learning rate, and at equal target loss, since an arm that learns less also
forgets less. Differences are within seeds, whose arms share a base. The study needs runs of full fine-tuning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from kleiber.records.catalog import Run
from kleiber.studies.compare import frontier
from kleiber.studies.compare.arms import untuned
from kleiber.studies.compare.contrast import Claim, above
from kleiber.studies.compare.rows import PLAIN, Rows, outcomes
from kleiber.studies.study import EqualTargetStudy, Figures, Findings
from kleiber.types import Config, Json, NonNegative, Positive, Row

FULL = "full"
METHODS = (
    "All arms of a seed go on from one base run. F is the rise of the base's held-out loss on its own text. `At its "
    "own best rate`: each arm at the learning rate with the least mean target loss. `At equal target loss`: both read "
    "off their frontiers of F against target loss, seed by seed, at the least loss that both reach and "
    "{tolerance:.1%} more. Intervals are Student's at {level:.0%} for all ranks at once (Bonferroni), from the spread "
    "of the gaps over seeds, pooled over ranks. Frontiers overlap where the whole interval lies within {margin:g} "
    "nats. After Biderman et al. 2024, arXiv:2405.09673."
)


@dataclass(frozen=True)
class Adapters(EqualTargetStudy):
    """How to compare.

    tolerance  arms are matched at (1 + tolerance) times the best target loss of the weaker of the two
    margin     nats of F within which two frontiers are said to overlap
    level      of the intervals
    """

    tolerance: NonNegative = 0.005
    margin: Positive = 0.01

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares every arm with full fine-tuning. Raises ValueError without full fine-tuning and without adapters."""
        rows = named(runs)
        best = {arm: best_rate(part) for arm, part in rows.groupby("method")}
        if FULL not in best:
            raise ValueError("no run without an adapter: full fine-tuning is what the others are compared with")
        ranks = sorted((arm for arm in best if arm != FULL), key=rank_of)
        if not ranks:
            raise ValueError("no run with an adapter: nothing to compare full fine-tuning with")
        kinds = {
            "learns_less": gaps(at_best(rows, best, "target"), ranks, sign=1),
            "forgets_less": gaps(at_best(rows, best, "F"), ranks, sign=-1),
            "matched": {rank: self.matched(rows, best, rank) for rank in ranks},
        }
        claims = {kind: estimates(each, self.level) for kind, each in kinds.items()}
        points = frontier.averaged(rows)
        return Findings(
            headline(claims, ranks, self.level),
            [*self.verdicts(claims), *complaints(rows, best)],
            {
                "Each arm at its own best learning rate": own_best(rows, best, claims),
                "At equal target loss": equal_target(rows, best, claims, self.tolerance),
                "Settings": settings(points),
            },
            figures(points, rows, best, claims),
            methods=METHODS.format(tolerance=self.tolerance, level=self.level, margin=self.margin),
        )

    def matched(self, rows: Rows, best: dict[str, float], rank: str) -> Rows:
        """F of full fine-tuning less that of a rank at one target loss, by seed."""
        at = target_for(rows, best, rank, self.tolerance)
        table = frontier.at_target(rows[rows["method"].isin([FULL, rank])], at)
        return (table[FULL] - table[rank]).dropna()

    def verdicts(self, claims: dict[str, dict[str, Claim]]) -> list[Json]:
        """The verdicts on learning less, forgetting less and equal frontiers, one for each rank."""
        than_full = "than full fine-tuning, each at its best rate: by {} nats of"
        words = {
            "learns_less": f"LoRA of {{}} learns less {than_full} target loss",
            "forgets_less": f"LoRA of {{}} forgets less {than_full} F",
            "matched": f"at equal target loss the frontiers of {{}} and full lie within {self.margin:g} nats: "
            "F of full is above that of LoRA by {} nats",
        }
        verdicts = []
        for kind, each in claims.items():
            for rank, claim in each.items():
                text = words[kind].format(rank, spread(claim))
                code = f"{kind}_{rank.replace(' ', '')}"
                if kind != "matched":
                    verdicts.append(above(code, text, claim.value, claim.hi - claim.value).verdict())
                    continue
                inside = -self.margin < claim.lo and claim.hi < self.margin
                outside = claim.lo > self.margin or claim.hi < -self.margin
                holds = True if inside else False if outside else None
                verdicts.append(Claim(code, text, claim.value, claim.lo, claim.hi, holds).verdict())
        return verdicts


def named(runs: Sequence[Run]) -> Rows:
    """The outcomes with the arm as `method`: `full`, `rank r`, or what else the run trained with."""
    rows = outcomes(runs)
    adapters = {run.name: run.config.get("adapter") or {} for run in runs}
    low_rank = ranked([node for node in adapters.values() if "rank" in node])

    def arm(row: Row) -> str:
        if row["method"] == PLAIN:
            return FULL
        node = adapters[row["run"]]
        return low_rank[settled(node)] if row["method"] == "lora" else f"{row['method']} {row['setting']}"

    return rows.assign(method=rows.apply(arm, axis=1), setting="")


def ranked(nodes: Sequence[Row]) -> dict[str, str]:
    """`rank r` of every low-rank node, with what else is set where that is not the same in all of this rank."""
    names = {}
    for node in nodes:
        alike = [other for other in nodes if other["rank"] == node["rank"] and other["_target_"] == node["_target_"]]
        differ = [key for key in sorted(node) if any(other.get(key) != node[key] for other in alike)]
        names[settled(node)] = " ".join([f"rank {node['rank']}", *(f"{key}={node[key]}" for key in differ)])
    return names


def settled(node: Config) -> str:
    return json.dumps(node, sort_keys=True)


def rank_of(arm: str) -> tuple[int, str]:
    return (int(arm.split()[1]), "") if arm.startswith("rank ") else (10**9, arm)


def best_rate(rows: Rows) -> float:
    """The learning rate with the least mean target loss, among those that the most seeds finished."""
    by_rate = rows.groupby("lr")["target"].agg(["mean", "size"])
    return float(by_rate[by_rate["size"] == by_rate["size"].max()]["mean"].idxmin())


def at_best(rows: Rows, best: dict[str, float], column: str) -> Rows:
    """A column of each arm at its best rate, seeds x arms."""
    kept = rows[rows["lr"] == rows["method"].map(best)]
    return kept.pivot_table(index="seed", columns="method", values=column)


def gaps(table: Rows, ranks: Sequence[str], sign: int) -> dict[str, Rows]:
    """sign (rank - full) by seed."""
    return {rank: sign * (table[rank] - table[FULL]).dropna() for rank in ranks}


def target_for(rows: Rows, best: dict[str, float], rank: str, tolerance: float) -> float:
    """The target loss that the weaker of full and a rank reaches, and `tolerance` more."""
    means = at_best(rows, best, "target").mean()
    return (1 + tolerance) * float(max(means[FULL], means[rank]))


def estimates(each: dict[str, Rows], level: float) -> dict[str, Claim]:
    """Mean gap by rank with its interval, for all ranks at once; ranks without a pair are left out."""
    paired_gaps = {rank: differences for rank, differences in each.items() if len(differences)}
    noise = frontier.pooled([differences.to_numpy() for differences in paired_gaps.values()])
    claims = {}
    for rank, differences in paired_gaps.items():
        value, half = (
            float(differences.mean()),
            noise.half_width(1 - (1 - level) / len(paired_gaps), 1 / len(differences)),
        )
        claims[rank] = Claim(rank, "", value, value - half, value + half, None)
    return claims


def spread(claim: Claim) -> str:
    bounded = claim.hi - claim.lo < float("inf")
    return f"{claim.value:+.4f}" + (f" [{claim.lo:+.4f}, {claim.hi:+.4f}]" if bounded else " (no interval: one seed)")


def headline(claims: dict[str, dict[str, Claim]], ranks: Sequence[str], level: float) -> str:
    """The lowest and the highest rank against full fine-tuning."""
    sentences = []
    for rank in dict.fromkeys((ranks[0], ranks[-1])):
        learns_less, less, equal = (claims[kind].get(rank) for kind in ("learns_less", "forgets_less", "matched"))
        if learns_less is None or less is None:
            continue
        at = f", at equal target loss by {spread(equal)}" if equal else ", and no seed reaches an equal target loss"
        sentences.append(f"{rank} learns less by {spread(learns_less)} nats, forgets less by {spread(less)}{at}")
    return f"Against full fine-tuning ({level:.0%} intervals): " + "; ".join(sentences) + "."


def complaints(rows: Rows, best: dict[str, float]) -> list[dict[str, str]]:
    """A verdict for each arm whose best rate is at an end, or that has too few rates or seeds."""
    verdicts = []
    for arm, part in rows.groupby("method"):
        wrong = untuned(sorted(set(part["lr"])), best[str(arm)], part["seed"].nunique())
        if wrong:
            verdicts.append({"code": "untuned", "level": "warn", "text": f"{arm} is not tuned: {wrong}"})
    return verdicts


def own_best(rows: Rows, best: dict[str, float], claims: dict[str, dict[str, Claim]]) -> list[Json]:
    """A row for each arm at its own best learning rate, with its differences from full fine-tuning."""
    kept = rows[rows["lr"] == rows["method"].map(best)].groupby("method")
    means = kept[["target", "F", "tuned", "seconds"]].mean()
    lines = []
    for arm in sorted(best, key=lambda arm: (arm != FULL, rank_of(arm))):
        line = {
            "arm": arm,
            "trained parameters": means.loc[arm, "tuned"],
            "lr": best[arm],
            "seeds": len(kept.groups[arm]),
        }
        line |= {"target loss": means.loc[arm, "target"], "F": means.loc[arm, "F"]}
        for kind, title in (("learns_less", "target loss above full"), ("forgets_less", "F below full")):
            line[title] = spread(claims[kind][arm]) if arm in claims[kind] else None
        lines.append(line | {"seconds": means.loc[arm, "seconds"]})
    return lines


def equal_target(
    rows: Rows, best: dict[str, float], claims: dict[str, dict[str, Claim]], tolerance: float
) -> list[Json]:
    """A row for each rank: F of both arms at one target loss, and the difference."""
    lines = []
    for rank, claim in claims["matched"].items():
        at = target_for(rows, best, rank, tolerance)
        table = frontier.at_target(rows[rows["method"].isin([FULL, rank])], at)[[FULL, rank]].dropna()
        lines.append(
            {
                "arm": rank, "target loss": at, "seeds": len(table), "F": table[rank].mean(),
                "F of full": table[FULL].mean(), "F below full": spread(claim),
            }
        )  # fmt: skip
    return lines


def settings(points: Rows) -> list[Json]:
    """A row for each arm and learning rate, means over seeds."""
    ordered = sorted(
        points.to_dict("records"), key=lambda point: (point["method"] != FULL, rank_of(point["method"]), point["lr"])
    )
    return [
        {"arm": point["method"], "lr": point["lr"], "seeds": point["n"], "target loss": point["target"],
         "sd": point["target_sd"], "F": point["F"], "sd of F": point["F_sd"], "peak F": point["peak"],
         "on the frontier": bool(point["best"])}
        for point in ordered
    ]  # fmt: skip


def figures(points: Rows, rows: Rows, best: dict[str, float], claims: dict[str, dict[str, Claim]]) -> Figures:
    """The figures of the study."""
    from kleiber.studies.compare.figures import frontier, learning_rates, ranks

    order = sorted(best, key=lambda arm: (arm != FULL, rank_of(arm)))
    return {
        "frontier": lambda: frontier(points, order),
        "ranks": lambda: ranks(claims, order[1:]),
        "tuning": lambda: learning_rates(rows, order),
    }
