"""The expected regret of a search: of the choice of a finalist, and of the trials that halving stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from kleiber.studies.search_trials import Trials

DRAWS = 4000  # of the means of the finalists, and of the losses of stopped trials


def known_regret(regret: Mapping[str, float]) -> float:
    """Returns the sum of the parts of the expected regret that could be estimated, which are finite."""
    return sum(part for part in regret.values() if math.isfinite(part))


def format_total(regret: Mapping[str, float]) -> str:
    """Formats the expected regret in nats; a lower bound where a part could not be estimated."""
    at_least = "" if all(map(math.isfinite, regret.values())) else "at least "
    return f"{at_least}{known_regret(regret):.4f}"


def regret_text(regret: Mapping[str, float], lengths: Sequence[float]) -> str:
    """Formats the three parts of the expected regret.

    lengths  training tokens of the trials in successive halving; the part `search` is that after the first
    """
    missed = f"{regret['halving']:.4f}" if math.isfinite(regret["halving"]) else "an unknown loss (too few controls)"
    after = f", after {lengths[0]:,.0f} tokens," if len(lengths) > 1 else ""
    longer = f"about {regret['search']:.4f}{after} that twice as many trials would gain"
    if not math.isfinite(regret["search"]):
        longer = "an unknown loss that twice as many trials would gain"
    return (
        f"{regret['selection']:.4f} from choosing among the finalists, {missed} from stopped trials that might have "
        f"become better, and {longer}"
    )


def paired_noise(finalists: Mapping[str, Mapping[int, float]]) -> tuple[float, int]:
    """Returns the variance of a loss less the effects of its trial and its seed, and its degrees of freedom."""
    losses = np.array([list(by_seed.values()) for by_seed in finalists.values()])
    rest = losses - losses.mean(axis=1, keepdims=True) - losses.mean(axis=0) + losses.mean()
    df = (losses.shape[0] - 1) * (losses.shape[1] - 1)
    return (float((rest**2).sum() / df), df) if df else (0.0, 0)


def selection_regret(finalists: Mapping[str, Mapping[int, float]], best: str) -> float:
    """Returns the expected loss of the chosen finalist above the truly best one, by draws of their means."""
    noise, df = paired_noise(finalists)
    if not df:
        return 0.0
    names, losses = list(finalists), np.array([list(by_seed.values()) for by_seed in finalists.values()])
    rng = np.random.default_rng(0)
    width = np.sqrt(noise / losses.shape[1] * df / rng.chisquare(df, size=(DRAWS, 1)))
    means = losses.mean(axis=1) + width * rng.normal(size=(DRAWS, len(names)))
    return float((means[:, names.index(best)] - means.min(axis=1)).mean())


def halving_regret(trials: Trials) -> float:
    """Returns the expected loss of the best finalist above the best stopped trial, had all been trained to the end.

    The last loss of a stopped trial is predicted from its first by a line through the trials that have both, with their
    scatter beyond the noise of a run; inf if fewer than four have both, so that nothing is learned about halving.
    A trial that diverged at a later length was not stopped by halving.
    """
    lengths, finalists = list(trials.searched.values()), trials.finalists
    first, last = (finite(losses) for losses in (lengths[0], lengths[-1]))
    diverged = {name for losses in lengths[1:] for name in losses if name not in finite(losses)}
    stopped = [name for name in first if name not in last and name not in diverged]
    if len(lengths) < 2 or not stopped:
        return 0.0
    common = [name for name in last if name in first]
    if len(common) < 4:
        return math.inf
    center = float(np.mean([first[name] for name in common]))
    x, y = np.array([first[name] - center for name in common]), np.array([last[name] for name in common])
    design = np.column_stack([np.ones(len(x)), x])
    unit = np.linalg.pinv(design.T @ design)
    line = unit @ design.T @ y
    squares, df = float(((y - design @ line) ** 2).sum()), len(x) - 2
    rng = np.random.default_rng(0)
    variance = squares / rng.chisquare(df, size=DRAWS)
    lines = line + np.sqrt(variance)[:, None] * rng.multivariate_normal(np.zeros(2), unit, size=DRAWS)
    scatter = np.sqrt(np.maximum(variance - paired_noise(finalists)[0], 0.0))
    at = np.array([first[name] - center for name in stopped])
    drawn = lines[:, :1] + lines[:, 1:] * at + scatter[:, None] * rng.normal(size=(DRAWS, len(at)))
    return float(np.maximum(min(last.values()) - drawn.min(axis=1), 0.0).mean())


def finite(losses: Mapping[str, float]) -> dict[str, float]:
    """Returns the losses of the trials that did not diverge."""
    return {name: loss for name, loss in losses.items() if math.isfinite(loss)}
