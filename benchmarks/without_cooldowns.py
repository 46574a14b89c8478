"""A ladder's law from trunks and one cooldown, against that of all cooldowns: python benchmarks/without_cooldowns.py

The recorded ladder is that of multirun/results/golden_tuned: 14 trunks, each with a cooldown to four lengths. The cheap
one has 12 trunks at the constant rate, whose validation loss is logged, and one cooldown of the smallest size:

    SAME="model.depth=2 model.context=128 optimizer.betas=[0.9,0.98] optimizer.lr=0.018 optimizer.weight_decay=0
        batch.tokens=896 eval.tokens=512K callbacks.samples=null trainer.compile=true trainer.threads=1"
    python train.py -m name=small design=ladder "design.widths=[32,48,64,96]" "design.seeds=[3,3,2,2]" $SAME \\
        schedule=constant budget.tokens=12.8M eval.every_steps=893 callbacks.log.every=893
    python train.py -m name=large design=ladder "design.widths=[128,192]" "design.seeds=[1,1]" $SAME \\
        schedule=constant budget.tokens=5.6M eval.every_steps=446 callbacks.log.every=446
    python train.py name=cooldown model.width=32 model.num_heads=2 model.parametrization.base_width=32 \\
        model.parametrization.base_depth=2 $SAME schedule=wsd budget.tokens=7M eval.every_steps=112 \\
        callbacks.log.every=112
    python benchmarks/without_cooldowns.py --runs multirun/small multirun/large multirun/cooldown

With --runs the curves are recorded, and read from the record otherwise.

1. The law of schedules, fitted to the first trunk of the smallest size and to the cooldown, gives the ratio of the loss
   after a cooldown to that at the constant rate, at any number of tokens. Other sizes are assumed to gain the same.
2. Chinchilla's law is fitted to the losses of all trunks times this ratio, as `kleiber fit --cluster trunk` fits it.
3. The half-widths of its intervals are increased by what draws of the law of schedules add, as independent errors.

cost   training tokens times parameters, over that of the recorded ladder; evaluations are not counted
error  mean relative error for the recorded losses after cooldowns
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run, read_runs
from kleiber.studies.laws import analysis, table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.table_laws import Settings
from kleiber_topics.schedules.curves import rows_of_runs
from kleiber_topics.schedules.forms import FORMS, rate_path
from kleiber_topics.schedules.law import schedule
from kleiber_topics.schedules.prediction import values_of

LADDER = Path("multirun/results/golden_tuned")
RESULT = Path(__file__).parent / "results" / "without_cooldowns.json"
CURVES = RESULT.with_name("without_cooldowns.csv")
LOSS, LEAST_TOKENS, DECAY, BATCH, WARMUP, Z90 = "val/builtin/docs/loss", 2e6, 0.2, 896, 100, 1.645


def read_curves(folders: Sequence[Path]) -> pd.DataFrame:
    """Returns the curves of the trunks and of the cooldown: run, schedule, N, seed, step, lr, loss, tokens."""
    runs = [run for folder in folders for run in read_runs(folder) if run.finished]
    rows = rows_of_runs(runs, {"loss": LOSS}).rename(columns={LOSS: "loss"})
    sizes = {run.name: int(run.stage["params"]["active"]) for run in runs}
    rows = pd.DataFrame(rows[rows["measured"]]).assign(N=lambda part: [sizes[name] for name in part["run"]])
    names = rows["schedule"] + " " + rows["N"].astype(str) + " " + rows["seed"].astype(str)
    columns = ["run", "schedule", "N", "seed", "step", "lr", "loss", "tokens"]
    return pd.DataFrame(rows.assign(run=names, tokens=rows["step"] * BATCH)[columns])


def gains_of(curves: pd.DataFrame, tokens: np.ndarray, draws: int) -> np.ndarray:
    """Returns log ratios of the loss after a cooldown to that at the constant rate, (1 + draws, tokens)."""
    smallest = curves[(curves["N"] == curves["N"].min()) & (curves["seed"] == 0)]
    law = schedule().fit_table(pd.DataFrame(smallest), {}, Settings(bootstrap=draws))
    form, values = FORMS[law["form"]], np.concatenate([values_of(law), np.array(law["draws"])[:draws]])
    peak, logs = float(np.max(smallest["lr"])), []
    for each in tokens:
        steps = np.unique(np.round(np.linspace(1, each / BATCH, 400)))
        level = peak * np.minimum(1.0, steps / WARMUP)
        rates = level * np.minimum(1.0, (steps[-1] - steps + 1) / (DECAY * steps[-1]))
        after, before = (form.losses(rate_path(steps, each, steps[-1:]), values)[:, 0] for each in (rates, level))
        logs.append(np.log(after / before))
    return np.array(logs).T


def fit(trunks: pd.DataFrame, gain: np.ndarray, draws: int) -> dict:
    """Returns parameters and exponents of Chinchilla's law, fitted to the losses of trunks times the ratio."""
    rows = trunks.assign(L=trunks["loss"] * np.exp(gain))
    loaded = table.load(rows, {"N": "N", "D": "tokens", "L": "L"}, (), ("N", "D"))
    return analysis.fit_briefly(loaded, find("chinchilla"), analysis.Options(bootstrap=draws, cluster="run"))


def cooled(runs: list[Run]) -> pd.DataFrame:
    """Returns the recorded losses after cooldowns: N, D and L, a row for each size and number of tokens."""
    rows = [
        {"N": float(run.stage["params"]["active"]), "D": float(leaf["tokens"]), "L": leaf["metrics"][LOSS]}
        for run in runs for leaf in run.leaves
    ]  # fmt: skip
    return pd.DataFrame(pd.DataFrame(rows).groupby(["N", "D"], as_index=False)["L"].mean())


def cost_of(curves: pd.DataFrame, runs: list[Run]) -> float:
    """Returns the training FLOPs of the cheap ladder over those of the recorded one, as parameters times tokens."""
    ends = curves.groupby("run").agg({"N": "first", "tokens": "max", "schedule": "first"})
    tokens = ends["tokens"].where(ends["schedule"] == "constant", DECAY * ends["tokens"])  # the rest is a trunk's
    recorded = 0.0
    for run in runs:
        lengths = [float(leaf["tokens"]) for leaf in run.leaves]
        recorded += run.stage["params"]["active"] * ((1 - DECAY) * max(lengths) + DECAY * sum(lengths))
    return float(np.sum(ends["N"] * tokens)) / recorded


def judge(curves: pd.DataFrame, runs: list[Run], draws: int) -> dict[str, object]:
    """Returns cost, exponent with its interval, and errors for the recorded cooldowns of the cheap ladder."""
    trunks = pd.DataFrame(curves[(curves["schedule"] == "constant") & (curves["tokens"] >= LEAST_TOKENS)])
    every = gains_of(curves, np.append(trunks["tokens"], [2e6, 16e6]), draws)
    gains, ends = every[:, :-2], every[0, -2:]
    law = fit(trunks, gains[0], 1000)
    a_opt, exponents = (
        law["derived"]["a_opt"],
        [fit(trunks, gain, 0)["derived"]["a_opt"]["value"] for gain in gains[1:]],
    )
    value, added = a_opt["value"], Z90 * float(np.std(exponents, ddof=1))
    lo, hi = value - np.hypot(value - a_opt["lo"], added), value + np.hypot(a_opt["hi"] - value, added)
    measured = cooled(runs)
    measured = measured[measured["D"] >= 0.99 * LEAST_TOKENS]
    p = {name: entry["value"] for name, entry in law["params"].items()}
    predicted = p["E"] + p["A"] * measured["N"] ** -p["alpha"] + p["B"] * measured["D"] ** -p["beta"]
    error = predicted / measured["L"] - 1
    return {
        "cost": cost_of(curves, runs), "trunks": len(set(trunks["run"])), "rows": len(trunks),
        "gain": {"2M": float(ends[0]), "16M": float(ends[1])},
        "a_opt": {"value": value, "lo": float(lo), "hi": float(hi), "half_width": float(hi - lo) / 2},
        "half_width_of_trunks": (a_opt["hi"] - a_opt["lo"]) / 2, "half_width_of_gain": added,
        "error": float(error.abs().mean()), "bias": float(error.mean()), "cells": len(measured),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="*", help="folders with the runs, whose curves are recorded")
    parser.add_argument("--draws", type=int, default=100, help="of the law of schedules")
    args = parser.parse_args()
    if args.runs:
        read_curves(args.runs).to_csv(CURVES, index=False)
    runs, recorded = read_runs(LADDER), json.loads((LADDER / "laws.json").read_text())
    full = recorded["derived"]["a_opt"]
    record: dict[str, object] = {
        "level": recorded["level"], "draws": args.draws,
        "full": {**{end: full[end] for end in ("value", "lo", "hi")}, "half_width": (full["hi"] - full["lo"]) / 2,
                 "residual_rms": recorded["residual_rms"]},
        "trunks": judge(pd.read_csv(CURVES), runs, args.draws),
    }  # fmt: skip
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
