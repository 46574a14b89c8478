"""Exit codes of commands, statuses of runs, and the color in which each status is printed.

They stand here alone: every command, launcher, record and study takes them from this file. Imports no torch.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """What a kleiber process returns to its shell or scheduler."""

    DONE = 0
    FAILED = 1  # of a run, or of a check such as `kleiber check mup`
    BAD_INPUT = 2  # a config, file, column or command line that the user can correct
    UNDECIDED = 3  # a law that is not identified or is refused
    PARTLY_FAILED = 4  # a sweep in which some cells did not finish
    PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
    INTERRUPTED = 130  # Ctrl-C: 128 + SIGINT


class Status(StrEnum):
    """How far a run has come, or how it ended: `status` in summary.json, and in every table of runs."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"  # by an error, which `error` in summary.json names
    DIVERGED = "diverged"  # the loss is no longer finite
    PREEMPTED = "preempted"  # asked to make room; the same command continues it
    KILLED = "killed"  # interrupted, or its process died before it could write how it ended
    MISSING = "missing"  # planned, and no summary.json yet

    @property
    def color(self) -> str:
        """The name of the color (rich's) in which a table prints the status."""
        return {Status.FINISHED: "green", Status.RUNNING: "cyan", Status.MISSING: "yellow"}.get(self, "red")

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a run that ended with this status."""
        codes = {Status.FINISHED: ExitCode.DONE, Status.PREEMPTED: ExitCode.PREEMPTED}
        return codes.get(self, ExitCode.FAILED)
