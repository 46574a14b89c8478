"""Streams of proposed changes, most of them worthless: how often each rule keeps one, what it finds, and its runs.

Every stream has 200 proposals. Of these 90% change nothing, and the others are better by 0.5 to 4 standard deviations
of a run. Noise is normal, has heavy tails (t with three degrees of freedom), or drifts: the level walks at random by
0.15 standard deviations a proposal, and the noise doubles over the stream; or each change also multiplies the noise of
a run by its own factor, exp of a normal value of standard deviation 0.5 (in the recorded nights it was 0.6).

kleiber       the screen and the sequential test of `kleiber gate`, by its own code
e-value       the same with an e-value in place of the boundary
fixed         five pairs of runs for each proposal, tested when all are there: with the variance of each, or that of all
              together; Benjamini-Hochberg for `keep`, Bonferroni for `stream`
greedy        one run, kept if it is better than the best so far
MAD           one run, kept if it is better than the best so far by twice the median absolute deviation of all runs
bootstrap     three runs against three, kept if the 90% bootstrap interval excludes 0

All runs count: those of the plain recipe, and `shared` where the fixed design uses five plain runs for all proposals.

    python benchmarks/gate.py --out benchmarks/results/gate.json
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kleiber.inference.gating import ErrorBudget, ErrorKind, Rules, Stream

Array = NDArray[np.float64]
PROPOSALS, NULL, EFFECTS, ERROR = 200, 0.9, (0.5, 1.0, 2.0, 3.0, 4.0), 0.1
RERUN = 20  # proposals after which the plain recipe is run again
KINDS = ("normal", "t3", "drift", "recipes")
SPREAD = 0.5  # of the logarithm of the factors by which changes multiply the noise of a run
ERRORS: tuple[ErrorKind, ...] = ("keep", "stream")


@dataclass(frozen=True)
class World:
    """The streams of one kind of noise: effects, and level and scale of the noise, each streams x proposals.

    factor  by which a change multiplies the noise of a run
    """

    kind: str
    effects: Array
    level: Array
    scale: Array
    factor: Array

    def draw(
        self, rng: np.random.Generator, stream: object, at: object, size: tuple[int, ...], of: Array | float = 1.0
    ) -> Array:
        """Draws the gains of runs that change nothing; `of` multiplies their noise."""
        noise = rng.standard_t(3, size) / np.sqrt(3) if self.kind == "t3" else rng.standard_normal(size)
        return noise * of * self.scale[stream, at] + self.level[stream, at]  # type: ignore[index]


def make_world(kind: str, streams: int, seed: int) -> World:
    """Draws the effects of all proposals, and the drift."""
    rng = np.random.default_rng(seed)
    shape = streams, PROPOSALS
    effects = np.where(rng.random(shape) < NULL, 0.0, np.array(EFFECTS)[rng.integers(0, len(EFFECTS), shape)])
    level, scale = np.zeros(shape), np.ones(shape)
    if kind == "drift":
        level = np.cumsum(0.15 * rng.standard_normal(shape), 1)
        scale = np.broadcast_to(2.0 ** np.linspace(-0.5, 0.5, PROPOSALS), shape)
    factor = np.exp(SPREAD * rng.standard_normal(shape)) if kind == "recipes" else np.ones(shape)
    return World(kind, effects, level, scale, factor)


def gate(world: World, error: ErrorKind, test: str, seed: int) -> tuple[NDArray[np.bool_], Array]:
    """Runs the rules of `kleiber gate`; returns what each stream kept, and its number of runs."""
    kept, runs = np.zeros(world.effects.shape, dtype=bool), np.zeros(len(world.effects))
    for number in range(len(world.effects)):
        rng = np.random.default_rng([seed, number])
        rules = Rules(test=test)  # type: ignore[arg-type]
        stream, of = Stream(rules, ErrorBudget(error, ERROR, PROPOSALS)), 1.0
        for at in range(PROPOSALS):

            def draw(of: float, number: int = number, at: int = at, rng: np.random.Generator = rng) -> float:
                return float(world.draw(rng, number, at, (), of))

            changed = of * float(world.factor[number, at])
            draws = partial(draw, of), partial(draw, changed)
            stream, kept[number, at], spent = propose(stream, float(world.effects[number, at]), *draws, at)
            runs[number] += spent
            of = changed if kept[number, at] else of
    return kept, runs


def propose(
    stream: Stream, effect: float, draw: Callable[[], float], draw_changed: Callable[[], float], at: int
) -> tuple[Stream, bool, int]:
    """Decides one proposal; returns the stream after it, whether it was kept, and its runs.

    Gains are relative to the plain recipe, so the pool of a recipe that was just kept has the effect subtracted.
    """
    missing = max(stream.missing_plain, 1 if at % RERUN == RERUN - 1 else 0)
    spent = missing
    if missing > 0:
        stream = stream.with_plain([(0, draw()) for _ in range(missing)])
    gains: list[float] = []
    verdict = "run"
    while verdict == "run":
        gains.append(draw_changed() + effect)
        verdict = stream.rules.screen(stream.plain, gains, (), stream.noise)
    spent += len(gains)
    if verdict == "stop":
        return stream, False, spent
    pairs: list[tuple[int, float, float]] = []
    verdict, error = "run", stream.budget.next_error
    while verdict == "run":
        pairs.append((0, draw(), draw_changed() + effect))
        verdict = stream.rules.test_pairs([new - old for _, old, new in pairs], stream.noise, error)
    kept = verdict == "keep"
    after = stream.after_test(pairs, kept)
    if kept:
        after = replace(after, pool=tuple((number, gain - effect) for number, gain in after.pool))
    return after, kept, spent + 2 * len(pairs)


def fixed(
    world: World, error: ErrorKind, pooled: bool, shared: bool, seed: int, pairs: int = 5
) -> tuple[NDArray[np.bool_], Array]:
    """Five pairs for each proposal, all tested at the end of the stream."""
    rng, shape = np.random.default_rng(seed), (*world.effects.shape, pairs)
    places = np.arange(shape[0])[:, None, None], np.arange(PROPOSALS)[None, :, None]
    plain, changed = world.draw(rng, *places, shape), world.draw(rng, *places, shape, world.factor[..., None])
    plain = np.broadcast_to(plain[:, :1], shape) if shared else plain
    gaps = changed + world.effects[..., None] - plain
    mean, variance = gaps.mean(-1), gaps.var(-1, ddof=1)
    if pooled:
        p = stats.norm.sf(mean / np.sqrt(variance.mean(1, keepdims=True) / pairs))
    else:
        p = stats.t.sf(mean / np.sqrt(variance / pairs), pairs - 1)
    runs = PROPOSALS * pairs * (1 if shared else 2) + (pairs if shared else 0)
    if error == "stream":
        return p < ERROR / PROPOSALS, np.full(shape[0], float(runs))
    ordered = np.sort(p, 1)
    passing = ordered <= ERROR * np.arange(1, PROPOSALS + 1) / PROPOSALS
    last = np.where(passing.any(1), PROPOSALS - 1 - np.argmax(passing[:, ::-1], 1), -1)
    limit = np.where(last >= 0, np.take_along_axis(ordered, np.maximum(last, 0)[:, None], 1)[:, 0], -1.0)
    return p <= limit[:, None], np.full(shape[0], float(runs))


def single(world: World, seed: int, mads: float) -> tuple[NDArray[np.bool_], Array]:
    """One run for each proposal, kept if it beats the best by `mads` median absolute deviations of all runs."""
    rng, streams = np.random.default_rng(seed), np.arange(len(world.effects))
    kept, recipe, of = np.zeros(world.effects.shape, dtype=bool), np.zeros(len(streams)), np.ones(len(streams))
    best = world.draw(rng, streams, 0, (len(streams),))
    values = [best]
    for at in range(PROPOSALS):
        changed = of * world.factor[:, at]
        value = world.draw(rng, streams, at, (len(streams),), changed) + recipe + world.effects[:, at]
        values.append(value)
        history = np.stack(values, 1)
        spread = np.median(np.abs(history - np.median(history, 1, keepdims=True)), 1)
        kept[:, at] = value > best + mads * spread
        recipe, of = recipe + np.where(kept[:, at], world.effects[:, at], 0.0), np.where(kept[:, at], changed, of)
        best = np.where(kept[:, at], value, best)
    return kept, np.full(len(streams), PROPOSALS + 1.0)


def bootstrap(world: World, seed: int, resamples: int = 500) -> tuple[NDArray[np.bool_], Array]:
    """Three runs against three of the standing recipe, kept if the 90% bootstrap interval excludes 0."""
    rng, streams = np.random.default_rng(seed), np.arange(len(world.effects))
    kept = np.zeros(world.effects.shape, dtype=bool)
    standing, of = world.draw(rng, streams[:, None], 0, (len(streams), 3)), np.ones((len(streams), 1))
    for at in range(PROPOSALS):
        changed = of * world.factor[:, [at]]
        value = world.draw(rng, streams[:, None], at, (len(streams), 3), changed) + world.effects[:, [at]]
        ours, theirs = (
            np.take_along_axis(runs, rng.integers(0, 3, (len(streams), 3 * resamples)), 1)
            .reshape(len(streams), resamples, 3).mean(-1)
            for runs in (value, standing)
        )  # fmt: skip
        kept[:, at] = np.quantile(ours - theirs, 0.05, axis=1) > 0
        standing = np.where(kept[:, [at]], value - world.effects[:, [at]], standing)
        of = np.where(kept[:, [at]], changed, of)
    return kept, np.full(len(streams), 3.0 * PROPOSALS + 3)


def measured(world: World, kept: NDArray[np.bool_], runs: Array) -> dict[str, object]:
    """Returns error rates with their standard errors, power, and runs."""
    null, streams = world.effects == 0, len(kept)
    false, number = (kept & null).sum(1), kept.sum(1)
    share, any_false = false / np.maximum(number, 1), false > 0
    return {
        "false_keep_share": round(float(share.mean()), 4),
        "false_keep_share_se": round(float(share.std(ddof=1) / streams**0.5), 4),
        "any_false_keep": round(float(any_false.mean()), 4),
        "any_false_keep_se": round(float(np.sqrt(any_false.mean() * (1 - any_false.mean()) / streams)), 4),
        "false_keeps": round(float(false.mean()), 2),
        "power": round(float(kept[~null].mean()), 4),
        "power_by_effect": {f"{size:g}": round(float(kept[world.effects == size].mean()), 3) for size in EFFECTS},
        "runs_per_proposal": round(float(runs.mean()) / PROPOSALS, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for kind in KINDS:
        world = make_world(kind, arguments.streams, arguments.seed)
        for error in ERRORS:
            rules: dict[str, tuple[NDArray[np.bool_], Array]] = {
                "kleiber": gate(world, error, "sequential", 1),
                "e-value": gate(world, error, "e_value", 1),
                "fixed": fixed(world, error, True, False, 2),
                "fixed with shared plain runs": fixed(world, error, True, True, 2),
                "fixed with Student's t": fixed(world, error, False, False, 2),
            }
            if error == "keep":
                rules |= {
                    "greedy single run": single(world, 3, 0.0),
                    "MAD rule": single(world, 3, 2.0),
                    "bootstrap of three seeds": bootstrap(world, 4),
                }
            for name, (kept, runs) in rules.items():
                row = {"noise": kind, "error": error, "rule": name, **measured(world, kept, runs)}
                rows.append(row)
                print(json.dumps(row), flush=True)
    record = {
        "schema": "kleiber.gate_simulation/1", "streams": arguments.streams, "proposals": PROPOSALS, "null": NULL,
        "effects": EFFECTS, "level": 1 - ERROR, "rows": rows,
    }  # fmt: skip
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
