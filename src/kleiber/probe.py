"""What runs of given configs would cost on this machine: a process of its own, since it imports torch.

`ask` starts it: `python -m kleiber.probe` reads a request from standard input and prints the answer as its last line.
What the answer says is computed in `prices`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kleiber.errors import ConfigError


def ask(runs: Mapping[Path, Mapping[str, Any]], threads: int | None, words: bool = False) -> dict[str, Any]:
    """The answer of a fresh process: `cells` in the order of `runs` (resolved configs by folder), `memory_bytes`,
    `start` (seconds until a process can compute), and with `words` the one run as `plan.describe` tells it.

    A run whose start point is another of `runs` is priced as if that one were trained. Raises ConfigError where a run
    cannot be planned.
    """
    request = {"runs": {str(folder): dict(config) for folder, config in runs.items()}, "words": words}
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "kleiber.probe"], input=json.dumps({**request, "asked": time.time()}), text=True,
        capture_output=True, env={**os.environ, **limits},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("kleiber: ")
        raise ConfigError(last if done.returncode == 2 else f"the price could not be computed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def seconds_per_token(configs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of training per token of each config. Raises ValueError where they cannot be measured."""
    threads = configs[0]["trainer"].get("threads") or 1  # cells of a sweep have one each
    answer = ask({Path(f"{number}"): config for number, config in enumerate(configs)}, threads)
    if answer["unmeasured"]:
        raise ValueError(f"the speed of this machine could not be measured: {answer['unmeasured']}")
    return [cell["seconds_per_token"] for cell in answer["cells"]]


def main() -> int:
    from kleiber import cell
    from kleiber.imports import import_lightning

    request = json.load(sys.stdin)
    try:
        import_lightning()
        import kleiber.preload  # noqa: F401  (what a run imports is not part of its time)
        from kleiber.prices import answer

        priced = answer(request)
    except Exception as error:
        return cell.report(error)
    print(json.dumps(priced))
    return 0


if __name__ == "__main__":
    sys.exit(main())
