"""One run, from a composed config and its folder to an exit code; `python -m kleiber.cell FOLDER` is a rank or a cell.

A process that kleiber starts reads the resolved config that its parent checked and wrote, so nothing is composed twice
and a study file that asks for a sweep cannot sweep again. Exit codes: 0 done, 1 failed, 2 bad input, 75 preempted,
130 Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kleiber.errors import ConfigError
from kleiber.folder import locked, read_config, read_overrides
from kleiber.ranks import CELL, join_parent, rank, record_failure, silence
from kleiber.summary import Summary

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
PACKAGE = str(Path(__file__).resolve().parent)


def run(config: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> int:
    """Trains and returns the exit code. Every rank comes here; rank 0 alone holds the folder."""
    writes = rank() == 0 and not config["dry_run"]
    try:
        with locked(folder) if writes else nullcontext():
            try:
                code = _train(config, folder, overrides)
            except Exception as error:
                if writes and not isinstance(error, ConfigError):
                    Summary(folder).update(status="failed", error=f"{type(error).__name__}: {error}")
                raise
    except KeyboardInterrupt:
        print(f"interrupted; {folder} keeps what was finished, and the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        code = report(error)
        record_failure(code, error)
        return code
    if code:
        record_failure(code, None)
    return code


def _train(config: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> int:
    from kleiber.imports import import_lightning

    import_lightning()
    from kleiber.run import train

    return train(OmegaConf.create(dict(config)), folder, list(overrides))


def report(error: Exception) -> int:
    """One line for what the user can mend (2), a traceback for anything else (1)."""
    if is_users(error) and "HYDRA_FULL_ERROR" not in os.environ:
        print(f"kleiber: {error}", file=sys.stderr)
        return BAD_INPUT
    traceback.print_exception(error)
    return BAD_INPUT if is_users(error) else FAILED


def is_users(error: Exception) -> bool:
    """Whether we raised it for a user to read: a ValueError, or a missing file or server, from a line of ours."""
    if isinstance(error, ConfigError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(PACKAGE)
    return ours and isinstance(error, ValueError | FileNotFoundError | ConnectionError)


def main(argv: list[str]) -> int:
    folder = Path(argv[0])
    if CELL in os.environ:
        join_parent(signal.SIGKILL)
    silence(folder)
    return run(read_config(folder), folder, read_overrides(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
