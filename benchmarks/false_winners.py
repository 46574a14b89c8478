"""How often two equal arms are told apart, and how often a true difference is found, in simulated studies.

A study has two arms, each at five learning rates with paired seeds, decided as `study=compare` does: each arm at its
rate of best mean, Student's interval of the paired difference. After every look an undecided study gets more seeds, up
to the planned number of looks. The noise of a run is normal or has heavy tails (Student's t with 3 degrees of freedom).
With --runs, the losses are those of real runs of one config at several learning rates: each study draws two arms of
other seeds from them, so that every winner is a false one.

    python benchmarks/false_winners.py [--studies 2000] [--seed 0]
    python benchmarks/false_winners.py --runs benchmarks/results/equal_arms.jsonl.gz --studies 1000
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np

from kleiber.records.catalog import read_runs
from kleiber.studies.compare.arms import Arm, arm_from_rows
from kleiber.studies.decision import Criterion, Decision, level_of_each, paired_difference

LRS = 0.01 * 2.0 ** np.arange(-2, 3)
SEED_SD, RUN_SD = 0.01, 0.005  # nats: what all runs of a seed share, and what a run has of its own
DECIDED = (Decision.SUPPORTED, Decision.CONTRADICTED)


def losses(rng: np.random.Generator, shift: float, shared: np.ndarray, heavy: bool) -> np.ndarray:
    """Losses of an arm by learning rate and seed, lower by `shift` times the noise of a run."""
    noise = (
        rng.standard_t(3, (len(LRS), len(shared))) / np.sqrt(3) if heavy else rng.normal(size=(len(LRS), len(shared)))
    )
    curve = 0.02 * np.log2(LRS / 0.01) ** 2
    return 3.0 + curve[:, None] + SEED_SD * shared + RUN_SD * (noise - shift)


def arm(name: str, table: np.ndarray, seeds: int) -> Arm:
    """The arm after its first `seeds` seeds."""
    common = dict.fromkeys(("active", "core", "params", "tokens", "flops", "memory", "speed"))
    rows = [
        {**common, "lr": float(lr), "seed": seed, "loss": float(table[i, seed])}
        for i, lr in enumerate(LRS)
        for seed in range(seeds)
    ]
    return arm_from_rows(name, rows)


def decision(tables: list[np.ndarray], looks: list[int], level: float) -> Decision:
    """The decision at the first look that decides, or at the last one."""
    outcome = Decision.UNDECIDED
    for seeds in looks:
        first, second = (arm(name, table, seeds) for name, table in zip("ab", tables, strict=True))
        estimate = paired_difference(second.best_values, first.best_values, level, "nats")
        outcome = Criterion().decide(estimate)
        if outcome in DECIDED:
            break
    return outcome


def bootstrap_decision(tables: list[np.ndarray]) -> Decision:
    """The decision by the 90 % percentile interval over all resamples of the paired differences at the best rates."""
    best = [table[table.mean(1).argmin()] for table in tables]
    gaps = best[1] - best[0]
    means = gaps[np.array(list(product(range(len(gaps)), repeat=len(gaps))))].mean(1)
    low, high = np.quantile(means, [0.05, 0.95])
    return Decision.SUPPORTED if high < 0 else Decision.CONTRADICTED if low > 0 else Decision.UNDECIDED


def real_losses(source: Path) -> np.ndarray:
    """Final losses of runs, learning rates x seeds; every rate has to have every seed."""
    rows = [run.leaf_rows()[0] for run in read_runs(source)]
    by_cell = {(row["lr"], row["seed"]): row["loss"] for row in rows}
    lrs, seeds = (sorted({key[axis] for key in by_cell}) for axis in (0, 1))
    return np.array([[by_cell[lr, seed] for seed in seeds] for lr in lrs])


def real_winners(table: np.ndarray, seeds: int, options: argparse.Namespace) -> tuple[float, float]:
    """The shares of studies of two arms of other seeds that have a winner: by Student's interval, by the bootstrap."""
    rng, hits = np.random.default_rng(options.seed), np.zeros(2)
    for _ in range(options.studies):
        chosen = rng.permutation(table.shape[1])[: 2 * seeds]
        tables = [table[:, chosen[:seeds]], table[:, chosen[seeds:]]]
        hits += [decision(tables, [seeds], 0.9) in DECIDED, bootstrap_decision(tables) in DECIDED]
    return hits[0] / options.studies, hits[1] / options.studies


def rate(
    looks: list[int], options: argparse.Namespace, wanted: tuple[Decision, ...], shift: float = 0.0, claims: int = 1,
    heavy: bool = False,
) -> float:  # fmt: skip
    """The share of studies that end with one of the decisions `wanted`; with several claims, for any of them."""
    rng = np.random.default_rng(options.seed)
    level = level_of_each(0.9, claims, len(looks))
    hits = 0
    for _ in range(options.studies):
        shared = rng.normal(size=looks[-1])
        plain = losses(rng, 0.0, shared, heavy)
        outcomes = [decision([plain, losses(rng, shift, shared, heavy)], looks, level) for _ in range(claims)]
        hits += any(outcome in wanted for outcome in outcomes)
    return hits / options.studies


PLANS = {
    "3 seeds, one look": [3],
    "5 seeds, one look": [5],
    "3, 5, 8 seeds, three looks": [3, 5, 8],
    "a look after each of 3 to 10 seeds": list(range(3, 11)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="a folder of runs or a runs.jsonl.gz")
    options = parser.parse_args()
    if options.runs:
        table = real_losses(options.runs)
        print(f"{table.shape[1]} seeds at {table.shape[0]} learning rates; mean losses {table.mean(1).round(4)}")
        for seeds in (3, 5):
            shares = real_winners(table, seeds, options)
            print(
                f"  {seeds} seeds: false winners {shares[0]:.3f} by Student, {shares[1]:.3f} by the bootstrap",
                flush=True,
            )
        return
    print("false winners at a nominal 10 % (goal: at most 11.5 %)")
    for name, looks in PLANS.items():
        cells = []
        for noise, heavy in (("normal", False), ("heavy tails", True)):
            for claims in (1, 3):
                share = rate(looks, options, DECIDED, claims=claims, heavy=heavy)
                cells.append(f"{noise}, {claims} claims {share:.3f}")
        print(f"  {name:36} {';  '.join(cells)}", flush=True)
    print("power: share of studies that find a true difference, in standard deviations of a run, for 1 and 3 claims")
    for name, looks in PLANS.items():
        cells = []
        for shift in (0.5, 1.0, 2.0, 4.0):
            shares = [rate(looks, options, (Decision.SUPPORTED,), shift, claims) for claims in (1, 3)]
            cells.append(f"{shift:g}: {shares[0]:.2f}/{shares[1]:.2f}")
        print(f"  {name:36} {';  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
