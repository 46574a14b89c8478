"""How the ranks of a run failed: each writes a file, in which the process that started them finds the cause."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from kleiber.config.errors import SIGNAL_CODES, ExitCode, RankLost, RankTimeout
from kleiber.config.url_secrets import hide_secrets, map_secrets
from kleiber.records.files import read_json, write_json
from kleiber.records.terminal import print_line

FAILURES = "KLEIBER_FAILURES"  # variable with the folder of the files, where kleiber has started the ranks
ADVICE = {"killed by SIGKILL": ", as the system does where memory runs out"}


class Failure(NamedTuple):
    """How the ranks of a run ended.

    is_cause  whether the error is the cause of what other ranks report, and so stands in place of it
    """

    code: int
    error: str
    is_cause: bool = False


def end_of(code: int) -> str:
    """Says how a process ended: `exit code 3`, or minus the number of the signal that killed it."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def first_failure(failures: Path, devices: int) -> Failure | None:
    """Returns how the rank ended that failed first; None when no rank recorded a failure.

    A rank that was killed by a signal is the cause, whatever the others report, and then one whose error is not that it
    lost another rank. Prints the cause, unless rank 0 has printed the same error or a signal ended the rank in order.
    Where a rank waited for another one in vain, the error names the ranks that recorded nothing.

    failures  folder that `record_failure` and `record_killed_ranks` write to
    devices   number of ranks
    """
    records = [read_json(file) for file in failures.glob("*.json")]
    records.sort(key=lambda record: (not record["killed"], record["lost"], record["time"]))
    if not records:
        return None
    first = records[0]
    if first["killed"]:
        ranks = [record for record in records if record["killed"]]
        error = ", ".join(f"rank {record['rank']} was {record['error']}" for record in ranks)
        print_line(f"kleiber: {error}{ADVICE.get(first['error'], '')}; run the same command again", err=True)
        return Failure(ExitCode.FAILED, error, is_cause=True)
    silent = [str(number) for number in range(devices) if number not in {record["rank"] for record in records}]
    if silent and any(record["timeout"] for record in records):
        error = f"rank {', '.join(silent)} did not answer within trainer.rank_timeout"
        print_line(f"kleiber: {error}", err=True)
        return Failure(first["code"], error, is_cause=True)
    printed = any(record["rank"] == 0 and record["error"] == first["error"] for record in records)
    if not printed and first["code"] not in SIGNAL_CODES:
        print_line(f"rank {first['rank']} failed first:\n{first['trace'] or first['error']}", err=True)
    return Failure(first["code"], f"rank {first['rank']}: {first['error']}")


def record_failure(code: int, error: BaseException | None) -> None:
    """Writes exit code, error and traceback of this rank to a file that the parent process reads (`first_failure`).

    Does nothing when kleiber did not start this process.
    """
    trace = "" if error is None else "".join(traceback.format_exception(error))
    lost, timeout = isinstance(error, RankLost), isinstance(error, RankTimeout)
    number = int(os.environ.get("RANK", "0"))
    write_record(number, code=code, error=repr(error), trace=trace, lost=lost, timeout=timeout)


def record_killed_ranks(exit_codes: Mapping[int, int]) -> None:
    """Writes such a file for each rank that a signal killed.

    exit_codes  by rank, minus the number of the signal
    """
    for number, code in exit_codes.items():
        if code < 0:
            write_record(number, code=ExitCode.FAILED, error=end_of(code), killed=True)


def write_record(number: int, **facts: object) -> None:
    """Writes how a rank ended, with the time, where kleiber started this process."""
    if FAILURES not in os.environ:
        return
    defaults = {"trace": "", "killed": False, "lost": False, "timeout": False}
    record = map_secrets({"rank": number, "time": time.time(), **defaults, **facts}, hide_secrets)
    write_json(Path(os.environ[FAILURES], f"{number}.json"), record)
