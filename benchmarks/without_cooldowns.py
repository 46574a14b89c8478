"""A ladder's law from trunks and one cooldown, against that of all cooldowns: python benchmarks/without_cooldowns.py

The rows are those of multirun/results/golden_tuned, whose trunks logged the training loss of every 50th step; the
trunks of multirun/golden are recorded without logs. The cheap ladder has one trunk of each size, up to some number of
tokens, and one cooldown, of the smallest size:

1. The law of schedules, fitted to the trunk of the smallest size and to its cooldown, gives the ratio of the loss after
   a cooldown to that at the constant rate, at any number of tokens. Other sizes are assumed to gain the same ratio.
2. Chinchilla's law is fitted to the logs of the training losses of all trunks, times this ratio. Trunks of one seed
   read the same batches, whose difficulty is a random effect of the step that all sizes share. The validation loss at
   the end of a trunk is a point of the fit too, where it was recorded; training losses have one offset from it.
3. Intervals are percentiles over blocks of steps, drawn with replacement for all sizes together, draws of the law of
   schedules, and draws of the noise of trunks, which one seed cannot show: TRUNK_SD is that of the recorded ladder.

cost      training tokens times parameters, over that of the recorded ladder
a_opt     exponent of the optimal size, with the half-width of its 90% interval; `full` is that of golden_tuned
error     mean relative error for the recorded cooldowns of all trunks that have at least 2M tokens
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from kleiber.records.catalog import Run, read_runs
from kleiber.studies.laws.table_laws import Settings
from kleiber_topics.schedules.curves import rows_of_runs
from kleiber_topics.schedules.forms import FORMS, rate_path
from kleiber_topics.schedules.law import schedule
from kleiber_topics.schedules.prediction import values_of

ROWS = Path("multirun/results/golden_tuned")
RESULT = Path(__file__).parent / "results" / "without_cooldowns.json"
LOSS, LEAST_TOKENS, BLOCK, DECAY = "val/builtin/docs/loss", 2e6, 8, 0.2
TRUNK_SD = 0.0043  # of the log loss, between trunks of one size


@dataclass(frozen=True)
class Ladder:
    """A cheap ladder: the tokens at the constant rate of each size, and the tokens after the one cooldown."""

    constant: dict[float, float]
    cooldown: str


def sizes_of(runs: Sequence[Run]) -> dict[float, list[Run]]:
    """Returns the runs by number of parameters, in the order of sizes and seeds."""
    ordered = sorted(runs, key=lambda run: (run.stage["params"]["active"], run.summary["seed"]))
    return {float(N): [run for run in ordered if run.stage["params"]["active"] == N] for N in
            dict.fromkeys(run.stage["params"]["active"] for run in ordered)}  # fmt: skip


def cooled(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns the recorded losses after cooldowns: N, D and L, a row for each size and number of tokens."""
    rows = [
        {"N": float(run.stage["params"]["active"]), "D": float(leaf["tokens"]), "L": leaf["metrics"][LOSS]}
        for run in runs for leaf in run.leaves
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    return pd.DataFrame(frame.groupby(["N", "D"], as_index=False)["L"].mean())


def logged(runs: Sequence[Run], ladder: Ladder) -> pd.DataFrame:
    """Returns the losses at the constant rate: N, step, D, y, the log loss, and whether it is of the validation."""
    parts = []
    for run in runs:
        N, batch = float(run.stage["params"]["active"]), float(run.stage["batch_tokens"])
        rows = [
            {"step": row["step"], "y": np.log(row[name]), "validation": name == LOSS}
            for row in run.rows if row.get("stage") == "trunk" for name in ("train/loss", LOSS) if name in row
        ]  # fmt: skip
        part = pd.DataFrame(rows).assign(N=N)
        part["D"] = part["step"] * batch
        parts.append(part[(part["D"] >= (1 - DECAY) * LEAST_TOKENS) & (part["D"] <= 1.001 * ladder.constant[N])])
    return pd.concat(parts, ignore_index=True)


def gain_of(run: Run, ladder: Ladder, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns log D, and log ratios of the loss after a cooldown to that at the constant rate, (1 + draws, points)."""
    name, batch = f"{run.name}/{ladder.cooldown}", float(run.stage["batch_tokens"])
    curve = rows_of_runs([run], {})
    curve = pd.DataFrame(curve[curve["run"] == name])
    begin = next(stage["branch_step"] for stage in run.stages if stage["name"] == ladder.cooldown)
    trunk = curve[curve["step"] <= begin].assign(run="trunk")
    decay = curve.assign(run="cooldown", loss=curve["loss"].where(curve["step"] > begin))
    rows = pd.concat([trunk.dropna(subset=["loss"]), decay[(decay["step"] <= begin) | decay["loss"].notna()]])
    law = schedule().fit_table(pd.DataFrame(rows), {}, Settings(bootstrap=draws))
    form, values = FORMS[law["form"]], np.concatenate([values_of(law), np.array(law["draws"])[:draws]])
    peak, at, logs = float(np.max(curve["lr"])), np.geomspace(LEAST_TOKENS / 2, 16e6, 12), []
    for tokens in at:
        steps = np.unique(np.round(np.linspace(1, tokens / batch, 400)))
        level = peak * np.minimum(1.0, steps / 100)
        rates = level * np.minimum(1.0, (steps[-1] - steps + 1) / (DECAY * steps[-1]))
        after, before = (form.losses(rate_path(steps, each, steps[-1:]), values)[:, 0] for each in (rates, level))
        logs.append(np.log(after / before))
    return np.log(at), np.array(logs).T


def predict(p: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Returns Chinchilla's log loss; p are the logs of E, A, B, alpha and beta."""
    E, A, B, alpha, beta = np.exp(p)
    return np.log(E + A * N**-alpha + B * D**-beta)


def fit_trunks(rows: pd.DataFrame, start: np.ndarray, spread: tuple[float, float]) -> np.ndarray:
    """Returns the parameters that fit log losses with an effect of each step that all sizes share; the offset is last.

    spread  standard deviations of a size's residual and of the shared effect
    """
    held = rows["validation"].to_numpy()
    codes = pd.factorize(rows["draw"].to_numpy()[~held])[0]
    count = np.bincount(codes)
    N, D, y = (rows[name].to_numpy() for name in ("N", "D", "y"))
    alone, shared = spread
    scale = np.sqrt(count) / np.sqrt(alone**2 + count * shared**2)

    def residuals(p: np.ndarray) -> np.ndarray:
        every = y - predict(p[:5], N, D)
        r = every[~held] - p[5]
        mean = np.bincount(codes, r) / count
        weak = (p - start) / 3.0  # far weaker than the rows
        return np.concatenate([(r - mean[codes]) / alone, mean * scale, every[held] / TRUNK_SD, weak])

    return least_squares(residuals, start, max_nfev=200).x


def spread_of(rows: pd.DataFrame, p: np.ndarray) -> tuple[float, float]:
    """Returns the standard deviations of a size's residual and of the effect of a step."""
    N, D, y, step = (rows[name].to_numpy()[~rows["validation"].to_numpy()] for name in ("N", "D", "y", "draw"))
    codes = np.unique(step, return_inverse=True)[1]
    r = y - predict(p[:5], N, D) - p[5]
    means = np.bincount(codes, r) / np.bincount(codes)
    alone = float(np.sqrt(np.sum((r - means[codes]) ** 2) / max(len(r) - len(means), 1)))
    return alone, float(np.sqrt(max(means.var() - alone**2 / len(np.unique(N)), 1e-12)))


def judge(runs: dict[float, list[Run]], ladder: Ladder, resamples: int, full: dict[str, object]) -> dict[str, object]:
    """Returns cost, exponent with its interval, and errors for the recorded cooldowns of a cheap ladder."""
    firsts = [each[0] for N, each in runs.items() if N in ladder.constant]
    small, every = firsts[0], cooled([run for each in runs.values() for run in each])
    every = pd.DataFrame(every[every["D"] >= 0.99 * LEAST_TOKENS])
    at, gains = gain_of(small, ladder, resamples)
    rows = logged(firsts, ladder)
    rows["draw"] = rows["step"]
    ends, rows = (pd.DataFrame(rows[rows["validation"] == held]) for held in (True, False))
    steps, start = np.unique(rows["step"]), np.array([*np.log([0.93, 55.0, 117.0, 0.457, 0.4]), 0.0])
    anchor = next(leaf for leaf in small.leaves if leaf["name"] == ladder.cooldown)
    place = np.array([float(small.stage["params"]["active"])]), np.array([float(anchor["tokens"])])
    rng = np.random.default_rng(0)

    def refit(train: pd.DataFrame, held: pd.DataFrame, gain: np.ndarray) -> np.ndarray:
        """Returns the parameters of the law of losses after cooldowns, of which the last is the level."""
        both = pd.concat([train, held], ignore_index=True)
        both["y"] += np.interp(np.log(both["D"]), at, gain)
        p = fit_trunks(both, start, spread)
        p[5] = np.log(anchor["metrics"][LOSS]) - predict(p[:5], *place)[0]
        return p

    spread = (0.02, 0.06)
    plain = rows.assign(y=rows["y"] + np.interp(np.log(rows["D"]), at, gains[0]))
    spread = spread_of(plain, fit_trunks(plain, start, spread))
    best = refit(rows, ends, gains[0])
    blocks, draws = max(1, len(steps) // BLOCK), []
    for k in range(resamples):
        begins = rng.integers(len(steps) - BLOCK + 1, size=blocks)
        chosen = pd.DataFrame({"step": steps[(begins[:, None] + np.arange(BLOCK)).ravel()]})
        train = chosen.assign(draw=np.arange(len(chosen))).merge(rows.drop(columns="draw"), on="step")
        draws.append(refit(train, ends.assign(y=ends["y"] + rng.normal(0, TRUNK_SD, len(ends))), gains[1 + k]))
    exponents = [np.exp(p[4]) / (np.exp(p[3]) + np.exp(p[4])) for p in (best, *draws)]
    value, (lo, hi) = float(exponents[0]), (float(end) for end in np.quantile(exponents[1:], [0.05, 0.95]))
    N, D, observed = (np.asarray(every[name]) for name in ("N", "D", "L"))
    predicted, losses = predict(best[:5], N, D) + best[5], [predict(p[:5], N, D) + p[5] for p in draws]
    error = predicted - np.log(observed)
    outside = np.quantile(losses, [0.05, 0.95], axis=0) - np.log(observed)
    return {
        "cost": cost_of(runs, ladder), "sizes": len(firsts), "rows": len(rows),
        "noise": {"size": spread[0], "step": spread[1]},
        "gain": {name: float(np.interp(np.log(D), at, gains[0])) for name, D in (("2M", 2e6), ("16M", 16e6))},
        "a_opt": {"value": value, "lo": lo, "hi": hi, "half_width": (hi - lo) / 2},
        "error": float(np.abs(np.expm1(error)).mean()), "bias": float(np.expm1(error).mean()),
        "held": int(((outside[0] <= 0) & (outside[1] >= 0)).sum()), "cells": len(every),
        "equal_intervals": bool((hi - lo) / 2 <= float(full["half_width"])),  # type: ignore[arg-type]
    }  # fmt: skip


def cost_of(runs: dict[float, list[Run]], ladder: Ladder) -> float:
    """Returns the training FLOPs of a cheap ladder over those of the recorded one, as parameters times tokens."""
    branches = {leaf["name"]: float(leaf["tokens"]) for leaf in next(iter(runs.values()))[0].leaves}
    trunk = (1 - DECAY) * max(branches.values()) + DECAY * sum(branches.values())
    recorded = sum(N * trunk * len(each) for N, each in runs.items())
    cheap = sum(N * tokens for N, tokens in ladder.constant.items())
    return (cheap + min(runs) * DECAY * branches[ladder.cooldown]) / recorded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    runs = sizes_of(read_runs(ROWS))
    recorded = json.loads((ROWS / "laws.json").read_text())
    a_opt = recorded["derived"]["a_opt"]
    full: dict[str, object] = {
        "value": a_opt["value"], "lo": a_opt["lo"], "hi": a_opt["hi"], "half_width": (a_opt["hi"] - a_opt["lo"]) / 2,
        "residual_rms": recorded["residual_rms"],
    }  # fmt: skip
    ladders = {
        "trunks_to_8M": Ladder(dict.fromkeys(runs, 6.4e6), "8M"),
        "five_sizes": Ladder({N: 12.8e6 for N in runs if sorted(runs)[-2] != N}, "16M"),
        "six_sizes": Ladder(dict.fromkeys(runs, 12.8e6), "16M"),
    }
    record: dict[str, object] = {"level": 0.9, "resamples": args.resamples, "full": full}
    record["ladders"] = {name: judge(runs, ladder, args.resamples, full) for name, ladder in ladders.items()}
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
