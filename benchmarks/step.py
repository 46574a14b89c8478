"""Seconds per optimizer step and peak memory of the whole train.py against the plain loop of bare.py.

Fresh processes in turn, A B A B ..., so that a machine that drifts drifts for both; the ratio is taken pair by pair and
its median and quartiles are printed. Run it on an idle machine:

    python benchmarks/step.py --shape tiny --ours gpt --bare plain --pairs 5
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
SHAPES = {
    "tiny": {"width": 128, "depth": 4, "heads": 4, "context": 256, "vocab": 4096, "rows": 16, "hidden": 352},
    "small": {"width": 384, "depth": 6, "heads": 6, "context": 256, "vocab": 8192, "rows": 8, "hidden": 1024},
}


def bare(shape: Mapping[str, int], steps: int, variant: str, *extra: str) -> dict[str, float]:
    flags = [*(f"--{name}={value}" for name, value in shape.items()), *extra]
    chunked = ["--chunked"] if variant == "chunked" else []
    out = subprocess.run(
        [sys.executable, HERE / "bare.py", f"--steps={steps}", *flags, *chunked],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(out.stdout)


def options(shape: Mapping[str, int], steps: int) -> list[str]:
    """Overrides for a run of this shape, less checkpoints and samples; bytes are its tokens where it has no "vocab"."""
    words = ["data.tokenizer=bpe", f"data.vocab_size={shape['vocab']}"] if "vocab" in shape else []
    return [
        f"model.width={shape['width']}", f"model.depth={shape['depth']}", f"model.num_heads={shape['heads']}",
        f"model.context={shape['context']}", f"batch.tokens={shape['rows'] * shape['context']}", *words,
        f"budget.steps={steps}", "logger=csv", "eval.tokens=4096", "callbacks.checkpoints.every=0",
        "callbacks.samples=null",
    ]  # fmt: skip


def ours(shape: dict[str, int], steps: int, model: str, extra: list[str]) -> dict[str, float]:
    """train.py as a user starts it, less checkpoints; seconds per step by its own summary, without the first step."""
    replaced = tuple(f"{override.partition('=')[0]}=" for override in extra)
    words = [override for override in options(shape, steps) if not override.startswith(replaced)]
    with tempfile.TemporaryDirectory() as root:
        command = [
            sys.executable, HERE.parent / "train.py", f"model={model}", f"root={root}", *words, *extra,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, text=True)
        (summary,) = Path(root).glob("*/*/summary.json")
        stage = json.loads(summary.read_text())["stages"][0]
    return {
        "seconds_per_step": stage["batch_tokens"] / stage["tokens_per_s"],
        "peak_memory_bytes": stage["peak_memory_bytes"],
    }


def quartiles(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--ours", choices=["gpt", "moe"], default="gpt")
    parser.add_argument("--bare", choices=["plain", "chunked"], default="plain")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("overrides", nargs="*", help="further overrides for train.py")
    a = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    shape = SHAPES[a.shape]
    ours(shape, 2, a.ours, a.overrides)  # builds the data cache, so that no measured run does
    pairs = []
    for number in range(a.pairs):
        pairs.append((ours(shape, a.steps, a.ours, a.overrides), bare(shape, a.steps, a.bare)))
        one, two = (round(1e3 * p["seconds_per_step"], 1) for p in pairs[-1])
        print(f"pair {number + 1}: ours {one} ms, bare {two} ms, ratio {one / two:.3f}", flush=True)
    print(f"{a.shape} {a.ours} / {a.bare} bare loop, {a.pairs} pairs of {a.steps} steps")
    for key in ("seconds_per_step", "peak_memory_bytes"):
        print(f"  {key:20} ratio {quartiles([one[key] / two[key] for one, two in pairs])}")


if __name__ == "__main__":
    main()
