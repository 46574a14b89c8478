"""Ten forecasts that `kleiber plan` writes before their runs, and how they came out: benchmarks/forecasts.py STEP

plan     writes results/forecasts/forecast_01.json to forecast_09.json, by Chinchilla's law of one rate and batch of
         multirun/results/hyperparameters
largest  writes forecast_10.json, with 4 times the largest compute of its law: that of the cooldowns of
         multirun/results/quantization up to 250K tokens
train    trains their runs into multirun/forecasts, one after another; repeat it to continue
record   compares: results/forecasts.json has a row for each, with the time of the forecast and of the start of the run

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
RUNS, RESULT = Path("multirun/forecasts"), FOLDER.with_suffix(".json")
RESULTS = Path("multirun/results")
LAWS = {  # runs, filters, and what the recipe of the runs changes in that of `kleiber plan`
    "law": (
        RESULTS / "hyperparameters",
        ("batch_tokens = 1024", "lr = 0.02"),
        ("optimizer.lr=0.02", "eval.tokens=256K"),
    ),
    "small_law": (RESULTS / "quantization", ("tokens < 300000",), ("eval.tokens=32K",)),
}
LOSS = "val/builtin/docs/loss"
SETTINGS = ("callbacks.samples=null", "logger=csv", "trainer.threads=1")
WIDTHS = ((32, 1), (48, 1), (64, 1), (80, 1), (96, 1), (32, 2), (48, 2), (64, 2), (80, 2))  # and seeds
HEAD, SECONDS = 16, 45.0  # channels of an attention head; duration of a run
LARGEST, RATIO = 64, 4.1  # width of the last run, and its compute over the largest of the law


def law_of(name: str) -> Path:
    """Returns the file of a law, which is fitted unless it is there."""
    path, (runs, filters, _) = FOLDER / f"{name}.json", LAWS[name]
    if not path.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        where = [word for text in filters for word in ("--where", text)]
        run(["fit", str(runs), "--map", "L=loss", *where, "--bootstrap", "400", "--json", str(path)])
    return path


def run(command: list[str]) -> None:
    """Runs a command of kleiber; ends where it fails. A law with a parameter that is not identified has exit code 3."""
    if kleiber(command) not in (0, 3):
        sys.exit(f"kleiber {shlex.join(command)} failed")


def plan(number: int, name: str, width: int, seed: int, seconds: float) -> dict:
    """Writes a forecast by a law unless it is there; returns its content."""
    out = FOLDER / f"forecast_{number:02}.json"
    if not out.is_file():
        overrides = [
            f"model.width={width}",
            f"model.num_heads={width // HEAD}",
            f"seed={seed}",
            *LAWS[name][2],
            *SETTINGS,
        ]
        hours = ["--hours", f"{seconds / 3600:.5f}"]
        run(["plan", *overrides, *hours, "--laws", str(law_of(name)), "--out", str(out)])
    return json.loads(out.read_text())


def plan_all() -> None:
    """Writes nine forecasts."""
    for number, (width, seed) in enumerate(WIDTHS, 1):
        plan(number, "law", width, seed, SECONDS)


def plan_largest() -> None:
    """Writes the last forecast: the largest size of the small law, with RATIO times its largest number of tokens."""
    known = next(
        plan(number, "law", LARGEST, seed, SECONDS)
        for number, (width, seed) in enumerate(WIDTHS, 1)
        if width == LARGEST
    )
    speed, tokens = known["speed"], RATIO * json.loads(law_of("small_law").read_text())["domain"]["D"][1]
    once = speed["seconds"] - known["tokens"] / speed["tokens_per_s"]
    plan(len(WIDTHS) + 1, "small_law", LARGEST, 1, once + tokens / speed["tokens_per_s"])


def train_all() -> None:
    """Trains the runs of the forecasts whose losses are not recorded, in their order."""
    recorded = recorded_rows()
    for path in sorted(FOLDER.glob("forecast_*.json")):
        if recorded.get(path.stem, {}).get("loss") is not None:
            continue
        overrides = json.loads(path.read_text())["overrides"]
        command = [sys.executable, "train.py", *overrides, "name=forecasts"]
        print(shlex.join(command[1:]), flush=True)
        subprocess.run(command, check=True)


def recorded_rows() -> dict[str, dict]:
    """Returns the rows of the record by forecast."""
    return {row["forecast"]: row for row in json.loads(RESULT.read_text())["rows"]} if RESULT.is_file() else {}


def record() -> None:
    """Writes how the forecasts came out."""
    runs = {
        str(run.summary["config_hash"])[:HASH]: run
        for run in (read_runs(RUNS) if RUNS.is_dir() else [])
        if run.finished
    }
    rows, recorded, small = [], recorded_rows(), f"forecast_{len(WIDTHS) + 1:02}"
    for path in sorted(FOLDER.glob("forecast_*.json")):
        content = json.loads(path.read_text())
        forecast, run = Forecast.model_validate_json(path.read_text()), runs.get(content["config_hash"])
        law = json.loads(law_of("small_law" if path.stem == small else "law").read_text())
        row = {
            "forecast": path.stem, "params": content["params"], "tokens": content["tokens"],
            "compute_ratio": 6 * content["params"] * content["tokens"] / law["domain"]["C"][1], **content["predicted"],
            "written": content["written"], "started": None, "loss": None, "inside": None,
        }  # fmt: skip
        if run is not None:
            started, loss = str(run.summary["started"]), float(run.metrics[LOSS])
            inside = forecast.contains(loss) if forecast.precedes(started) else None
            row |= {"started": started, "loss": loss, "inside": inside}
        elif path.stem in recorded:
            row |= {name: recorded[path.stem][name] for name in ("started", "loss", "inside")}
        rows.append(row)
    done = [row for row in rows if row["inside"] is not None]
    count = {"forecasts": len(rows), "trained": len(done), "inside": sum(bool(row["inside"]) for row in done)}
    RESULT.write_text(json.dumps({**count, "rows": rows}, indent=1) + "\n")
    print(json.dumps(count))


if __name__ == "__main__":
    steps = {"plan": plan_all, "largest": plan_largest, "train": train_all, "record": record}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=steps)
    steps[parser.parse_args().step]()
