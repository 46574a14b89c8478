"""Seconds of a step with two threads by GOMP_SPINCOUNT, on an idle machine and next to two busy loops.

Threads that wait for each other at the end of a parallel region spin that often before they sleep. Each measurement is
a process of its own, since OpenMP reads the variable once: twelve steps of a model of `benchmarks/pairs.py` with fused
AdamW, of which the median of the last nine counts. Prints a JSON line for each; `docs/speed.md` has those of one
machine. Measure on a machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SPINS = (2000, 10_000, 50_000, 300_000)
MODELS = ("tiny", "mixture")
STEPS, WARM_UP = 12, 3


def measure(model: str, threads: int) -> float:
    """Returns the median time of a step in milliseconds, in this process."""
    import torch
    from pairs import MIXTURE, TINY, ours

    torch.set_num_threads(threads)
    shape = TINY if model == "tiny" else TINY | MIXTURE
    module, loss = ours(shape)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(shape["vocab"], (shape["rows"], shape["context"] + 1))
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        loss(tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[WARM_UP:])


def in_process(model: str, threads: int, spin: int) -> float:
    """Returns what `measure` gives in a new process with GOMP_SPINCOUNT."""
    command = [sys.executable, __file__, "--one", model, "--threads", str(threads)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        command, env=environment | {"GOMP_SPINCOUNT": str(spin)}, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each setting")
    parser.add_argument("--one", choices=MODELS, help="measure this model in this process alone")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.one:
        print(measure(args.one, args.threads))
        return
    for _ in range(args.rounds):
        for model in MODELS:
            for busy in (False, True):
                loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * busy)]
                try:
                    settings = [*((args.threads, spin) for spin in SPINS), *([(1, SPINS[-1])] if busy else [])]
                    for threads, spin in settings:
                        row = {"model": model, "busy": busy, "threads": threads, "spin": spin}
                        print(json.dumps({**row, "ms": round(in_process(model, threads, spin), 1)}), flush=True)
                finally:
                    for loop in loops:
                        loop.kill()


if __name__ == "__main__":
    main()
