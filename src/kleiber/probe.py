"""How fast this machine trains models of given configs, by a few steps of each; a process of its own, since it imports
torch.

`python -m kleiber.probe` reads a list of resolved configs from standard input and prints seconds per token, one each.
The text is a small part of the data, so that nothing long is prepared only to be timed. It writes nothing and keeps
nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

SMALL = 200_000  # bytes of text


def seconds_per_token(configs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Measured in a fresh process. Raises ValueError with its last line when it fails."""
    threads = configs[0]["trainer"].get("threads") or 1  # cells of a sweep have one each
    done = subprocess.run(
        [sys.executable, "-m", "kleiber.probe"], input=json.dumps(list(configs)), capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"the speed of this machine could not be measured: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(config: Mapping[str, Any]) -> float:
    """Seconds per token of forward and backward, in this process."""
    from omegaconf import OmegaConf

    from kleiber.build import build
    from kleiber.plan import make_plan, measured_step

    small = deepcopy(dict(config))
    if "max_bytes" in small["data"]:
        small["data"]["max_bytes"] = SMALL
    cfg = OmegaConf.create(small)
    hardware = build(cfg.trainer)
    hardware.prepare()
    plan = make_plan(cfg, hardware)
    return measured_step(plan) / plan.batch_tokens


def main() -> None:
    print(json.dumps([measure(config) for config in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
