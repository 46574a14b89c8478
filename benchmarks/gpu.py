"""All measurements of kleiber on a GPU in one command: agreement with the CPU, resuming, speed, profile, small models.

Rows are appended to the JSON file as they are measured, so that a time limit loses nothing. Needs neither pytest nor a
package index nor a network; the text is made of random words unless --text names a file.

    python benchmarks/gpu.py OUT.json                                      # nine minutes at most
    python benchmarks/gpu.py OUT.json --device cpu --scale small           # the same code, without a GPU
    python benchmarks/gpu.py OUT.json --only dense mixture --budget dense=300
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "tests", HERE.parent / "tests/gpu", HERE.parent / "src"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

Row = dict[str, Any]
BUDGETS = {  # seconds of each part, in the order in which they run
    "agreement": 90, "choices": 120, "resume": 90, "dense": 120, "mixture": 45, "profile": 45, "small": 60,
}  # fmt: skip
PACKAGES = ("torch", "lightning", "transformers", "triton", "numpy", "hydra-core", "omegaconf", "pydantic", "datasets")
MODULES = [  # that kleiber imports, from other packages
    "torch", "lightning", "transformers", "tokenizers", "tiktoken", "safetensors", "torchmetrics", "hydra", "omegaconf",
    "pydantic", "annotated_types", "datasets", "fsspec", "xxhash", "huggingface_hub", "jaxtyping", "numpy", "scipy",
    "pandas", "typer", "jinja2", "rich",
]  # fmt: skip
FEW = ["adapter/lora", "model/router/topk", "objective/dpo", "optimizer/muon", "retention/ewc"]  # of --scale small


class Results:
    """The JSON file of results: {"machine": {...}, "rows": [...]}, complete after every row."""

    def __init__(self, path: Path, machine: Row) -> None:
        self.path, self.record = path, {"machine": machine, "rows": []}
        self.write()

    def add(self, part: str, row: Row) -> None:
        """Appends a row and prints it."""
        self.record["rows"].append({"part": part, **row})
        print(json.dumps(self.record["rows"][-1]), flush=True)
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.name}.part")
        unfinished.write_text(json.dumps(self.record, indent=1))
        os.replace(unfinished, self.path)


def describe_machine(device: str) -> Row:
    """Returns the card, its driver, versions of packages, and which modules that kleiber needs are missing."""
    import torch

    gpu: Row = {}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        gpu = {"card": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    versions: Row = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    facts = {"device": device, "cores": os.cpu_count(), "python": platform.python_version()}
    return {**gpu, **facts, "versions": versions, "missing_modules": missing}


def parts_of(arguments: argparse.Namespace, root: Path) -> dict[str, Callable[[], Iterator[Row]]]:
    """Returns the function of each part, which yields its rows."""
    import agreement
    import gpu_speed
    import resume

    small = arguments.scale == "small"
    device = agreement.Device(arguments.device, root)
    machine = gpu_speed.Machine(arguments.device, arguments.scale, root, arguments.text)
    choices = arguments.choices or (FEW if small else agreement.COMPARED)
    compared: Row = {"precisions": ("fp32", "bf16"), "steps": 5} if small else {}
    interrupted: Row = {"steps": 30, "modes": (True,)} if small else {"steps": 200}
    return {
        "agreement": lambda: agreement.dense_and_mixture(device, **compared),
        "choices": lambda: agreement.every_choice(device, choices),
        "resume": lambda: resume.kill_and_continue(device, **interrupted),
        "dense": lambda: gpu_speed.dense(machine),
        "mixture": lambda: gpu_speed.mixture(machine),
        "profile": lambda: gpu_speed.profiles(machine),
        "small": lambda: gpu_speed.small_models(machine),
    }


def run_part(name: str, rows: Callable[[], Iterator[Row]], seconds: float, results: Results) -> None:
    """Adds the rows of a part until its time is over; an error ends the part and becomes a row."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"the budget of {seconds:g} seconds is spent")

    before, started = signal.signal(signal.SIGALRM, stop), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        for row in rows():
            results.add(name, {**row, "at_seconds": round(time.monotonic() - started, 1)})
            if time.monotonic() - started > seconds:
                stop()
    except TimeoutError as error:
        results.add(name, {"status": "stopped", "error": str(error)})
    except Exception as error:  # a part that fails must not lose the others
        results.add(name, {"status": "failed", "error": f"{type(error).__name__}: {error}"})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def seconds_by_part(text: str) -> tuple[str, float]:
    """Parses PART=SECONDS. Raises ArgumentTypeError for another part or what is no number."""
    name, _, value = text.partition("=")
    if name not in BUDGETS or not value.replace(".", "", 1).isdigit():
        raise argparse.ArgumentTypeError(f"{text} must be PART=SECONDS with a part of {', '.join(BUDGETS)}")
    return name, float(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--scale", choices=["full", "small"], default="full")
    parser.add_argument("--only", nargs="+", choices=list(BUDGETS), default=list(BUDGETS), metavar="PART")
    parser.add_argument("--budget", nargs="+", type=seconds_by_part, default=[], metavar="PART=SECONDS")
    parser.add_argument("--choices", nargs="+", help="choices of the part of that name, such as optimizer/muon")
    parser.add_argument("--text", type=Path, help="text for the speed of training, instead of random words")
    arguments = parser.parse_args(argv)
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU: set --device cpu --scale small to try the script without one")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    budgets = BUDGETS | dict(arguments.budget)
    results = Results(arguments.out, describe_machine(arguments.device))
    with tempfile.TemporaryDirectory(prefix="kleiber-gpu-") as root:
        os.environ.setdefault("KLEIBER_CACHE", str(Path(root, "cache")))
        parts = parts_of(arguments, Path(root))
        for name in (name for name in BUDGETS if name in arguments.only):
            run_part(name, parts[name], budgets[name], results)
    wrong = [row for row in results.record["rows"] if row["status"] != "ok"]
    print(f"{len(results.record['rows'])} rows in {arguments.out}, {len(wrong)} of them not ok")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
