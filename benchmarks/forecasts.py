"""Ten forecasts that `kleiber plan` writes before their runs, and how they came out: benchmarks/forecasts.py STEP

law     fits Chinchilla's law to the cooldowns of study=quantization up to 250K tokens (multirun/quantization)
plan    writes results/forecasts/forecast_01.json to forecast_10.json; the last has 4 times the law's largest compute
train   trains their runs into multirun/forecasts, one after another; repeat it to continue
record  compares: results/forecasts.json has a row for each, with the time of the forecast and of the start of the run

A forecast belongs to the run with its config_hash, and counts only if it was written before the run started.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from kleiber.launch.cli import main as kleiber
from kleiber.records.catalog import read_runs
from kleiber.records.forecast import HASH, Forecast

FOLDER = Path(__file__).parent / "results" / "forecasts"
LAW, RUNS, RESULT = FOLDER / "law.json", Path("multirun/forecasts"), FOLDER.with_suffix(".json")
LOSS = "val/builtin/docs/loss"
SETTINGS = ("eval.tokens=32K", "callbacks.samples=null", "logger=csv", "trainer.threads=1")
WIDTHS = ((32, 1), (48, 1), (64, 1), (80, 1), (96, 1), (32, 2), (48, 2), (64, 2), (80, 2))  # and seeds
HEAD, SECONDS = 16, 45.0  # channels of an attention head; duration of a run
LARGEST, RATIO = 64, 4.1  # width of the last run, and its compute over the largest of the law


def fit_law() -> None:
    """Fits the law, up to a quarter of the compute of the last forecast."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = ["fit", "multirun/quantization", "--where", "tokens < 300000", "--bootstrap", "400", "--json", str(LAW)]
    sys.exit(kleiber(command))


def plan(number: int, width: int, seed: int, seconds: float) -> dict:
    """Writes a forecast unless it is there; returns its content."""
    out = FOLDER / f"forecast_{number:02}.json"
    if not out.is_file():
        overrides = [f"model.width={width}", f"model.num_heads={width // HEAD}", f"seed={seed}", *SETTINGS]
        command = ["plan", *overrides, "--hours", f"{seconds / 3600:.5f}", "--laws", str(LAW), "--out", str(out)]
        if kleiber(command):
            sys.exit(f"{' '.join(command)} failed")
    return json.loads(out.read_text())


def plan_all() -> None:
    """Writes the ten forecasts."""
    forecasts = [plan(number, *setting, SECONDS) for number, setting in enumerate(WIDTHS, 1)]
    speed = next(each["speed"] for each in forecasts if f"model.width={LARGEST}" in each["overrides"])
    domain = json.loads(LAW.read_text())["domain"]
    tokens = RATIO * domain["D"][1]  # the size is the largest of the law
    once = (
        speed["seconds"] - next(each["tokens"] for each in forecasts if each["speed"] is speed) / speed["tokens_per_s"]
    )
    plan(len(WIDTHS) + 1, LARGEST, 1, once + tokens / speed["tokens_per_s"])


def train_all() -> None:
    """Trains the runs of the forecasts, in their order."""
    for path in sorted(FOLDER.glob("forecast_*.json")):
        overrides = json.loads(path.read_text())["overrides"]
        command = [sys.executable, "train.py", *overrides, "name=forecasts"]
        print(shlex.join(command[1:]), flush=True)
        subprocess.run(command, check=True)


def record() -> None:
    """Writes how the forecasts came out."""
    runs = {str(run.summary["config_hash"])[:HASH]: run for run in read_runs(RUNS) if run.finished}
    law, rows = json.loads(LAW.read_text()), []
    most = 6 * law["domain"]["N"][1] * law["domain"]["D"][1]
    for path in sorted(FOLDER.glob("forecast_*.json")):
        content = json.loads(path.read_text())
        forecast, run = Forecast.model_validate_json(path.read_text()), runs.get(content["config_hash"])
        row = {
            "forecast": path.stem, "params": content["params"], "tokens": content["tokens"],
            "compute_ratio": 6 * content["params"] * content["tokens"] / most, **content["predicted"],
            "written": content["written"], "started": None, "loss": None, "inside": None,
        }  # fmt: skip
        if run is not None:
            started, loss = str(run.summary["started"]), float(run.metrics[LOSS])
            inside = forecast.contains(loss) if forecast.precedes(started) else None
            row |= {"started": started, "loss": loss, "inside": inside}
        rows.append(row)
    done = [row for row in rows if row["inside"] is not None]
    count = {"forecasts": len(rows), "trained": len(done), "inside": sum(bool(row["inside"]) for row in done)}
    RESULT.write_text(json.dumps({**count, "rows": rows}, indent=1) + "\n")
    print(json.dumps(count))


if __name__ == "__main__":
    steps = {"law": fit_law, "plan": plan_all, "train": train_all, "record": record}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=steps)
    steps[parser.parse_args().step]()
