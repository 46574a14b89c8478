"""One run, from a composed config and its folder to an exit code; `python -m kleiber.cell FOLDER` is a rank or a cell.

A process that kleiber starts reads the resolved config that its parent checked and wrote, so nothing is composed twice and
a study file that asks for a sweep cannot sweep again. Exit codes: 0 done, 1 failed, 2 bad input, 75 preempted, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kleiber.errors import ConfigError
from kleiber.folder import locked, read_config, read_overrides

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
PACKAGE = str(Path(__file__).resolve().parent)


def run(config: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> int:
    """Trains and returns the exit code. Every rank comes here; rank 0 alone holds the folder."""
    holds = int(os.environ.get("RANK", "0")) == 0 and not config["dry_run"]
    try:
        with locked(folder) if holds else nullcontext():
            from kleiber.run import train

            return train(OmegaConf.create(dict(config)), folder, list(overrides))
    except KeyboardInterrupt:
        print(f"interrupted; {folder} keeps what was finished, and the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return report(error)


def report(error: Exception) -> int:
    """One line for what the user can mend (2), a traceback for anything else (1)."""
    if is_users(error) and "HYDRA_FULL_ERROR" not in os.environ:
        print(f"kleiber: {error}", file=sys.stderr)
        return BAD_INPUT
    traceback.print_exception(error)
    return FAILED


def is_users(error: Exception) -> bool:
    """Whether we raised it for a user to read: a ValueError or a missing file or server, from a line of kleiber itself."""
    if isinstance(error, ConfigError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(PACKAGE)
    return ours and isinstance(error, ValueError | FileNotFoundError | ConnectionError)


def main(argv: list[str]) -> int:
    folder = Path(argv[0])
    return run(read_config(folder), folder, read_overrides(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
