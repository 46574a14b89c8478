"""The figures that studies of arms share, by name, each made when someone looks.

Drawing needs the extra `report`, so altair is imported by the figure and not by the study. It decides nothing: where
no difference could be taken there is no figure of differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kleiber.studies.arm_rows import Arm

Figures = dict[str, Callable[[], Any]]


def differences_chart(gaps: Sequence[Mapping[str, Any]], title: str) -> Figures:
    return {"differences": lambda: _plots().differences(gaps, title)} if gaps else {}


def each_arm(arms: Mapping[str, Arm]) -> Figures:
    """The arms side by side, and what each learning rate gave."""
    return {"arms": lambda: _plots().side_by_side(arms), "tuning": lambda: _plots().tuning(arms)}


def against_loss(name: str, rows: Sequence[Mapping[str, Any]], x: str, title: str) -> Figures:
    """Loss of the arms against another of their numbers."""
    return {name: lambda: _plots().scatter(rows, x, "loss", title)} if rows else {}


def _plots() -> Any:
    from kleiber.studies import arm_plots

    return arm_plots
