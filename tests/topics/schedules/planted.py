"""Curves of a planted law of schedules, for tests."""

import numpy as np
import pandas as pd

from kleiber.studies import Settings
from kleiber_topics.schedules.forms import ANNEALING, MULTI_POWER, rate_path
from kleiber_topics.schedules.law import schedule

PLANTED = {
    "multi_power": (MULTI_POWER, [3.0, 0.5, 0.5, 420.0, 2.0, 0.58, 0.64]),
    "annealing": (ANNEALING, [3.0, 0.5, 0.5, 0.5, 800.0]),
}
ROLES = {"run": "schedule", "lr": "rate"}
SCHEDULES = ("constant", "cosine", "wsd", "step")


def rates_of(name: str, steps: np.ndarray, total: int) -> np.ndarray:
    """Learning rates with a warm-up of 500 steps and a peak of 3e-4."""
    factor = {
        "constant": np.ones_like(steps),
        "cosine": 0.55 + 0.45 * np.cos(np.pi * steps / total),
        "wsd": np.clip((total - steps) / (0.2 * total), 0.05, 1.0),
        "step": np.where(steps < 0.5 * total, 1.0, 0.3),
    }[name]
    return 3e-4 * np.minimum(1.0, steps / 500) * factor


def curves(
    names=SCHEDULES, form: str = "multi_power", total: int = 12_000, every: int = 80, noise: float = 0.0
) -> pd.DataFrame:
    """Rows of schedule, step, rate and loss, with autocorrelated noise of the log loss."""
    rng, parts = np.random.default_rng(0), []
    law, values = PLANTED[form]
    for name in names:
        steps = np.arange(every, total + 1, every, dtype=float)
        rates = rates_of(name, steps, total)
        losses = law.losses(rate_path(steps, rates, steps), np.array([values]))[0]
        wander = np.convolve(rng.normal(size=len(steps) + 8), np.ones(9) / 3, "valid")
        parts.append(
            pd.DataFrame({"schedule": name, "step": steps, "rate": rates, "loss": losses * np.exp(noise * wander)})
        )
    return pd.concat(parts, ignore_index=True)


def fit(rows: pd.DataFrame, bootstrap: int = 1000, roles=ROLES) -> dict:
    """The record of the law that is fitted to rows."""
    return schedule().fit_table(rows, roles, Settings(bootstrap=bootstrap))
