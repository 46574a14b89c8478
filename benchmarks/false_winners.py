"""How often equal arms are told apart, and how often a true difference is found, in simulated studies.

A study has a plain arm and one to six others, each at five learning rates with the same seeds, and claims that each of
the others is better, decided as `study=compare` does. Winners among equal arms are false ones. Settings:

    arms    2, 4, 7, and 3 or 5 seeds
    noise   equal: normal; unequal: the last arm has four times the variance; unequal_plain: the plain arm has; heavy:
            Student's t with 3 degrees of freedom; seeds: runs of a seed share two standard deviations of a run
    curves  same: equal optima; half: the plain arm's optimum is half a step of the grid from the others'; flat: the
            last arm has the same loss at every rate; slope: the losses of a recorded sweep, no parabola

A run's noise has the standard deviation 1, and curves the median curvature of the recorded sweeps in this unit. Power
is the share of studies that find the one arm of six that is better by so many standard deviations. The real arms are
drawn from 200 runs of one config, 40 seeds at five rates: other seeds for each arm. There are two such configs.

    python benchmarks/false_winners.py [--studies 2000] [--seed 0] [--out benchmarks/results/false_winners.json]
    ... --kind "real runs" measures these rows alone; the others stay as they are in --out
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path

import numpy as np

from kleiber.inference.contrasts import Cell, Contrast, estimate_family
from kleiber.records.catalog import read_runs
from kleiber.studies.claims import Claim, Result, decide_together
from kleiber.studies.compare.arms import Arm, Unready, arm_from_rows
from kleiber.studies.compare.differences import question
from kleiber.studies.decision import Decision

STEPS = np.arange(-2, 3)  # of the learning rate, in factors of two
CURVATURE = 1.55  # standard deviations of a run for one step squared: the median of 16 tuned arms of recorded sweeps
SWEEP = np.array([3.826, 3.678, 3.596, 3.593, 3.634]) / 0.013  # baseline of six_questions, in standard deviations
ARMS, SEEDS = (2, 4, 7), (3, 5)
SETTINGS = [
    *product(("equal", "unequal", "heavy"), ("same", "half", "flat")),
    ("unequal_plain", "same"), ("seeds", "same"), ("equal", "slope"),
]  # fmt: skip
DECIDED = (Decision.SUPPORTED, Decision.CONTRADICTED)
RESULTS = Path(__file__).parent / "results"
RUNS = {32: RESULTS / "equal_arms.jsonl.gz", 96: RESULTS / "equal_arms_wide.jsonl.gz"}  # by width
PLANS = {"one look at 3": (3,), "one look at 5": (5,), "3, 5, 8": (3, 5, 8), "each of 3 to 10": tuple(range(3, 11))}

Draw = Callable[[np.random.Generator], np.ndarray]  # returns losses, arms x rates x seeds
Rows = Iterator[Mapping[str, object]]


def curves_of(arms: int, curve: str) -> np.ndarray:
    """Mean losses, arms x rates."""
    means = np.tile(SWEEP - SWEEP.min() if curve == "slope" else CURVATURE * STEPS**2.0, (arms, 1))
    if curve == "half":
        means[1:] = CURVATURE * (STEPS - 0.5) ** 2
    if curve == "flat":
        means[-1] = 0
    return means


def drawn(arms: int, seeds: int, noise: str, curve: str, shift: float = 0.0) -> Draw:
    """Returns a function that draws the losses of a study; the second arm is better by `shift`."""
    means = curves_of(arms, curve)
    means[1] -= shift
    scale = np.ones(arms)
    if noise.startswith("unequal"):
        scale[0 if noise == "unequal_plain" else -1] = 2

    def draw(rng: np.random.Generator) -> np.ndarray:
        shape = (arms, len(STEPS), seeds)
        own = rng.standard_t(3, shape) / np.sqrt(3) if noise == "heavy" else rng.normal(size=shape)
        shared = 2 * rng.normal(size=seeds) if noise == "seeds" else 0.0
        return means[:, :, None] + scale[:, None, None] * own + shared

    return draw


def real(width: int, arms: int, seeds: int) -> Draw:
    """Returns a function that draws arms of other seeds from the recorded runs of one config."""
    rows = [run.leaf_rows()[0] for run in read_runs(RUNS[width])]
    by_cell = {(row["lr"], row["seed"]): row["loss"] for row in rows}
    rates, every = (sorted({key[axis] for key in by_cell}) for axis in (0, 1))
    table = np.array([[by_cell[rate, seed] for seed in every] for rate in rates])

    def draw(rng: np.random.Generator) -> np.ndarray:
        return table[:, rng.permutation(len(every))[: arms * seeds].reshape(arms, seeds)].transpose(1, 0, 2)

    return draw


def arm(name: str, table: np.ndarray) -> Arm:
    """The arm of losses, rates x seeds."""
    costs = dict.fromkeys(("active", "core", "params", "tokens", "flops", "memory", "speed"), 1.0)
    rows = [
        {**costs, "lr": float(0.01 * 2.0 ** STEPS[at]), "seed": seed, "loss": float(loss)}
        for at, losses in enumerate(table)
        for seed, loss in enumerate(losses)
    ]
    return arm_from_rows(name, rows)


def decide(losses: np.ndarray, variance: str, looks: int = 1) -> list[Result]:
    """Decides that each arm is better than the first one."""
    ladders = {f"arm {at}": [arm(f"arm {at}", table)] for at, table in enumerate(losses)}
    plain, *others = ladders
    claims = [Claim(of={"arm": name}, against={"arm": plain}, equal="tokens") for name in others]
    return decide_together([question(claim, ladders, Unready()) for claim in claims], 0.9, looks, variance)


def share(draw: Draw, studies: int, seed: int, variance: str, first_alone: bool = False) -> Mapping[str, float]:
    """Returns the share of studies that decide a claim, or find the first one, and the median half-width."""
    rng, hits, widths = np.random.default_rng(seed), 0, []
    for _ in range(studies):
        results = decide(draw(rng), variance)
        hits += results[0].decision == Decision.SUPPORTED if first_alone else is_decided(results)
        estimates = [result.estimate for result in results]
        widths += [(each.hi - each.value) for each in estimates if each is not None and each.hi is not None]
    return {"share": hits / studies, "half_width": float(np.median(widths))}


def is_decided(results: Sequence[Result]) -> bool:
    """Whether some claim is decided."""
    return any(result.decision in DECIDED for result in results)


def looked_at(looks: tuple[int, ...], shift: float, arms: int, studies: int, seed: int) -> float:
    """Returns the share of studies that decide a claim, or with a shift find it, at one of the looks."""
    rng, hits = np.random.default_rng(seed), 0
    draw = drawn(arms, looks[-1], "equal", "same", shift)
    for _ in range(studies):
        losses = draw(rng)
        for seeds in looks:
            results = decide(losses[:, :, :seeds], "moderated", len(looks))
            if is_decided(results):
                hits += results[0].decision == Decision.SUPPORTED if shift else 1
                break
    return hits / studies


def false_winners(studies: int, seed: int) -> Rows:
    """Yields the share of simulated studies of equal arms with a winner."""
    for (noise, curve), arms, seeds in product(SETTINGS, ARMS, SEEDS):
        row = {"noise": noise, "curve": curve, "arms": arms, "seeds": seeds}
        yield {**row, **share(drawn(arms, seeds, noise, curve), studies, seed, "moderated")}


def real_runs(studies: int, seed: int) -> Rows:
    """Yields the share of studies of equal arms with a winner, whose losses are those of recorded runs."""
    for width, arms, seeds, variance in product(RUNS, ARMS, SEEDS, ("moderated", "separate")):
        row = {"width": width, "arms": arms, "seeds": seeds, "variance": variance}
        yield {**row, **share(real(width, arms, seeds), studies, seed, variance)}


def power(studies: int, seed: int) -> Rows:
    """Yields the share of simulated studies that find the better one of seven arms."""
    for seeds, shift, variance in product(SEEDS, (1.0, 2.0, 3.0), ("moderated", "separate")):
        row = {"arms": 7, "seeds": seeds, "shift": shift, "variance": variance}
        yield {**row, **share(drawn(7, seeds, "equal", "same", shift), studies, seed, variance, first_alone=True)}


def looks(studies: int, seed: int) -> Rows:
    """Yields the share of simulated studies that decide a claim at one of several looks."""
    for (name, plan), arms, shift in product(PLANS.items(), (2, 4), (0.0, 1.0, 2.0)):
        row = {"plan": name, "arms": arms, "shift": shift}
        yield row | {"share": looked_at(plan, shift, arms, studies // 4, seed), "studies": studies // 4}


def contrasts(studies: int, seed: int) -> Rows:
    """Yields how often some interval of differences from a first group misses it, without rates to tune.

    The variance of the last group is `ratio` times that of the others. Paired differences have their own variances.
    """
    for paired, groups, seeds, ratio in product((False, True), ARMS, SEEDS, (1, 4)):
        rng, wrong = np.random.default_rng(seed), 0
        scale = np.sqrt([1.0] * (groups - 1) + [ratio])[:, None]
        for _ in range(studies):
            table = scale * rng.normal(size=(groups, seeds))
            asked = [Contrast({0: -1.0, at: 1.0}, (row - table[0]).tolist()) for at, row in enumerate(table) if at]
            cells: dict[Hashable, list[Cell]] = {at: [dict(enumerate(row))] for at, row in enumerate(table.tolist())}
            family = estimate_family(asked, cells, 0.9, paired=paired)
            widths = [each.half_width(level) for each, level in zip(family.spreads, family.levels, strict=True)]
            wrong += any(abs(np.mean(each.values)) > half for each, half in zip(asked, widths, strict=True))
        yield {
            "paired": paired, "groups": groups, "seeds": seeds, "ratio": ratio, "share": wrong / studies,
        }  # fmt: skip


KINDS: Mapping[str, Callable[[int, int], Rows]] = {
    "false winners": false_winners, "real runs": real_runs, "power": power, "looks": looks, "contrasts": contrasts,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kind", choices=[*KINDS])
    options = parser.parse_args()
    rows: dict[str, list[object]] = {kind: [] for kind in KINDS}
    if options.kind:
        for row in json.loads(options.out.read_text(encoding="utf-8"))["rows"]:
            rows[row["kind"]].append(row)
    for kind in [options.kind] if options.kind else KINDS:
        rows[kind] = []
        for row in KINDS[kind](options.studies, options.seed):
            rows[kind].append({"kind": kind, **row})
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            if options.out:
                every = [*chain.from_iterable(rows.values())]
                record = {"studies": options.studies, "seed": options.seed, "level": 0.9, "rows": every}
                options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
