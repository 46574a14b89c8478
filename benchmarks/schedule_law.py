"""Coverage of the law of schedules by simulation, and its errors on published curves: python benchmarks/schedule_law.py

Each simulated table has a constant and a cosine curve of 24,000 steps with the noise of one run each: an autocorrelated
part and independent noise. Parameters are drawn from the priors of the multi-power form, so the law holds but for the
error of TRANSFER that another schedule has. The law predicts the last loss of a WSD run, which was not fitted.

law   intervals that contain the loss of the law without noise
band  bands of a new run that contain the loss of a simulated new run

The published curves (arXiv:2503.12811, MIT license) are read from ../shared/laws/multipower where they are: fitted to
constant_24000 and cosine_24000 of each size, the law predicts the other seven. `held` counts curves of which the 90%
band contains at least 90% of the rows.

Our own ladder (study=schedules) is read from multirun/results/schedules: fitted to its constant and cosine runs, the
law predicts those with WSD; fitted to all three, it chooses the decay, whose runs are compared with the others by seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run, read_runs
from kleiber.studies import Settings, select
from kleiber.types import Json, Row
from kleiber_topics.schedules.choice import RIVALS, best_decay
from kleiber_topics.schedules.curves import rows_of_runs
from kleiber_topics.schedules.forms import MULTI_POWER, rate_path
from kleiber_topics.schedules.law import TRANSFER, schedule
from kleiber_topics.schedules.prediction import losses_of, predict_rows, summarize

RESULT = Path(__file__).parent / "results" / "schedule_law.json"
CURVES = Path("../shared/laws/multipower/curves.csv")
STEPS = np.arange(2176.0, 24000.0, 128.0)
PEAK, CORRELATION, SD, WHITE = 3e-4, 1000.0, 1e-3, 5e-4  # rate; steps and size of the noise; independent noise
FITTED = ("constant_24000", "cosine_24000")
LADDER, LOSS, STEPS_OF_LADDER = Path("multirun/results/schedules"), "val/builtin/docs/loss", 977


def rates_of(schedule: str) -> np.ndarray:
    """Returns the learning rates at STEPS."""
    if schedule == "cosine":
        return PEAK * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * STEPS / 24000)))
    left = np.clip((24000 - STEPS) / 4000, 0.0, 1.0)
    return PEAK * (0.1 ** (1 - left) if schedule == "wsd" else np.ones_like(STEPS))


def draw_noise(rng: np.random.Generator) -> np.ndarray:
    """Returns the noise of the log losses of one run."""
    keep = np.exp(-np.diff(STEPS)[0] / CORRELATION)
    noise = np.empty(len(STEPS))
    noise[0] = rng.normal() * SD
    for i in range(1, len(noise)):
        noise[i] = keep * noise[i - 1] + np.sqrt(1 - keep**2) * SD * rng.normal()
    return noise + WHITE * rng.normal(size=len(STEPS))


def draw_truth(rng: np.random.Generator) -> np.ndarray:
    """Returns parameters of the multi-power form, drawn from its priors; alpha from the range of published fits."""
    priors = dict(MULTI_POWER.priors)
    drawn = {
        name: prior.median * PEAK**prior.per_rate * np.exp(prior.sd * np.clip(rng.normal(), -2, 2))
        for name, prior in priors.items()
    }
    drawn |= {"alpha": rng.uniform(0.4, 0.6), "B": 0.13 / PEAK * np.exp(0.25 * rng.normal())}
    drawn |= {"E": rng.uniform(2.5, 3.2), "A": rng.uniform(0.4, 0.7)}
    return np.array([[drawn[name] for name in MULTI_POWER.params]])


def simulate(seed: int) -> dict[str, bool]:
    """Returns whether interval and band contain the last loss of a run with a WSD schedule."""
    rng = np.random.default_rng(seed)
    truth, parts = draw_truth(rng), []
    for name in ("constant", "cosine"):
        rates = rates_of(name)
        losses = MULTI_POWER.losses(rate_path(STEPS, rates, STEPS), truth)[0] * np.exp(draw_noise(rng))
        parts.append(pd.DataFrame({"run": name, "step": STEPS, "lr": rates, "loss": losses}))
    law = schedule().fit_table(pd.concat(parts), {}, Settings(bootstrap=400))
    path = rate_path(STEPS, rates_of("wsd"), STEPS[-1:])
    mean = MULTI_POWER.losses(path, truth)[0, 0]
    run = mean * np.exp(draw_noise(rng)[-1] + TRANSFER * rng.normal())
    ends = {name: float(column[0]) for name, column in losses_of(law, path, PEAK).items()}
    return {"law": ends["lo"] <= mean <= ends["hi"], "band": ends["run_lo"] <= run <= ends["run_hi"]}


def compare(law: Row, frame: pd.DataFrame, roles: dict[str, str]) -> tuple[Json, list[Json]]:
    """Returns the errors of a law on curves that it was not fitted to, and the predictions."""
    rows, measured = predict_rows(law, frame, roles)
    return summarize(law, rows, measured)[0], rows


def published() -> dict[str, object]:
    """Returns the errors on the published curves that were not fitted, by size."""
    out: dict[str, object] = {}
    roles = {"run": "schedule"}
    for size in ("25M", "100M"):
        chosen = f"schedule in [{', '.join(FITTED)}]"
        law = schedule().fit_table(select(CURVES, roles, [f"size = {size}", chosen]), roles, Settings())
        comparison, _ = compare(law, select(CURVES, roles, [f"size = {size}", f"not ({chosen})"]), roles)
        curves = {row["run"]: {"mae": row["mae"], "coverage": row["coverage"]} for row in comparison["curves"]}
        wsd = [row["mae"] for row in comparison["curves"] if row["run"].startswith("wsd")]
        decays = [row["mae"] for row in comparison["curves"] if row["run"].startswith(("wsd_", "wsdld"))]
        out[size] = {
            "form": law["form"], "curves": curves, "mae_wsd": float(np.mean(decays)),
            "mae_wsd_and_wsdcon": float(np.mean(wsd)),
            "mae_of_curves": float(np.mean([row["mae"] for row in comparison["curves"]])),
            "held": sum(bool(row["held"]) for row in comparison["curves"]),
        }  # fmt: skip
    return out


def own_ladder() -> dict[str, object]:
    """Returns the errors for the schedule that was left out, and the decay that the law of all three chooses."""
    runs = read_runs(LADDER)
    roles, arms = {"loss": LOSS}, rows_by_arm(runs)
    two = schedule().fit_table(pd.concat([arms["constant"], arms["cosine"]]), roles, Settings())
    comparison, rows = compare(two, arms["wsd"], roles)
    ends = [list(part)[-1] for _, part in groupby(rows, key=lambda row: row["run"])]
    three = pd.concat([arms[name] for name in ("constant", "cosine", "wsd")])
    best = best_decay(schedule().fit_table(three, roles, Settings()), {"steps": STEPS_OF_LADDER})
    last = {name: frame.groupby("run", sort=False)[LOSS].last().to_numpy() for name, frame in arms.items()}
    measured = {name: float(np.mean(last["best"] - last[name])) for name in RIVALS} if "best" in last else None
    trained = [run.config["schedule"]["decay"] for run in runs if run.config["study"]["arm"] == "best"]
    return {
        "runs": {name: len(losses) for name, losses in last.items()},
        "third": {name: comparison[name] for name in ("mae", "bias", "coverage")},
        "held": sum(bool(row["held"]) for row in comparison["curves"]),
        "last": [{name: row[name] for name in ("value", "lo", "hi", "observed")} for row in ends],
        "losses": {name: losses.tolist() for name, losses in last.items()},
        "best": {name: best[name] for name in ("decay", "against", "value", "lo", "hi", "run_lo", "run_hi")},
        "measured": measured,
        "trained_decay": trained[0] if trained else None,
    }  # fmt: skip


def rows_by_arm(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Returns the rows of the curves by the arm of their run, in the order of the seeds."""
    rows: dict[str, list[pd.DataFrame]] = {}
    for run in sorted(runs, key=lambda run: run.summary["seed"]):
        rows.setdefault(run.config["study"]["arm"], []).append(
            rows_of_runs([run], {"loss": LOSS}).dropna(subset=[LOSS])
        )
    return {arm: pd.concat(parts, ignore_index=True) for arm, parts in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=200, help="0: our own ladder alone")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    record: dict[str, object] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    if args.tables:
        results = [simulate(seed) for seed in range(args.tables)]
        coverage = {name: float(np.mean([row[name] for row in results])) for name in ("law", "band")}
        record |= {"tables": args.tables, "level": 0.9, "coverage": coverage}
        if CURVES.is_file():
            record["published"] = published()
    record["ladder"] = own_ladder()
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
