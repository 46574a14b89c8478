"""The study `search`: the best trial of a search, what it would gain from more trials, and whether it is tuned.

Only held-out seeds decide: the finalists are trained with seeds that the search has not seen, so neither the luck of a
seed nor an early lead in successive halving counts. The expected regret has three parts: that of choosing among the
finalists, by their means over these seeds; that of the trials that halving stopped, whose last loss is predicted from
their first by the trials that have both, with the controls among them; and what a search of twice as many trials would
gain, which is about what the second half of the trials has gained. The last part is the gain at the first number of
tokens, and it is not estimated for trials that tpe proposed, since they are a single sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.decision import Estimate, estimate_around
from kleiber.studies.designs.search import TPE, read_space
from kleiber.studies.laws.uncertainty import student_quantile
from kleiber.studies.search_trials import Trials, as_numbers, curve, last_loss, read_trials, running_best
from kleiber.studies.study import Figures, Findings, IntervalStudy
from kleiber.types import Json, Positive, Row
from kleiber.types.score import format_interval

NATS = "nats per token"
FEWEST = 4  # different trials for an estimate of the regret
AGREES = 0.5  # least rank correlation of the losses at two numbers of tokens
EDGE = 0.05  # share of a range that counts as its edge
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


@dataclass(frozen=True, kw_only=True)
class Search(IntervalStudy):
    """The best trial of design=search, the tuning curve, the importance of each key, and the verdict `tuned`.

    tolerance  largest expected regret of a tuned search, in nats per token
    arm        of a cell: set by the design
    """

    tolerance: Positive = 0.01
    arm: str | None = None

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Finds the best trial. Raises ValueError without finished trials."""
        trials = read_trials(runs)
        dependent = any((run.config.get("design") or {}).get("sampler") == TPE for run in runs)
        losses = list(trials.first.values())
        tuning = running_best(losses) if dependent else curve(losses, self.level)
        means = self.means(trials)
        best = min(means, key=lambda name: means[name].value) if means else None
        regret = self.regret(trials, best, None if dependent else tuning)
        caveats = [
            *self._untuned(best, regret, trials),
            *diverged(trials),
            *agreement(trials),
            *edges(trials, best, runs),
        ]
        if best is not None:
            caveats.append(optimism(trials, best))
        importance = importances(trials)
        tables = {
            "Finalists on held-out seeds": [
                {"trial": name, **trials.values[name], **_mean_row(mean), "search seed": last_loss(trials, name)}
                for name, mean in sorted(means.items(), key=lambda entry: entry[1].value)
            ],
            "Importance of each key": importance,
            "Tuning curve": tuning,
            "Trials": trial_rows(trials),
        }
        from kleiber.studies import search_figures

        figures: Figures = search_figures.figures(trials, tuning, means, self.level)
        methods = METHODS.format(level=f"{self.level:.0%}")
        return Findings(
            self._headline(trials, best, means, regret),
            question="Which hyperparameters have the lowest loss, and is the search tuned?",
            caveats=caveats,
            tables=tables,
            figures=figures,
            methods=methods,
        )

    def means(self, trials: Trials) -> dict[str, Estimate]:
        """The mean of each finalist over the held-out seeds; intervals have the noise pooled over finalists."""
        finalists = trials.finalists
        if not finalists:
            return {}
        losses = np.array([list(by_seed.values()) for by_seed in finalists.values()])
        spread = float(np.mean(losses.var(axis=1, ddof=1)))
        total = len(finalists) * (losses.shape[1] - 1)
        half = student_quantile(total, self.level) * math.sqrt(spread / losses.shape[1])
        return {
            name: estimate_around(float(row.mean()), half, losses.shape[1], NATS)
            for name, row in zip(finalists, losses, strict=True)
        }

    def regret(self, trials: Trials, best: str | None, tuning: Sequence[Row] | None) -> dict[str, float] | None:
        """The expected regret in nats: of the choice of a finalist, of halving, and of not searching twice as long.

        A part that cannot be estimated is inf.

        tuning  expected best loss by number of independent trials; None for trials that depend on each other
        """
        count = len(trials.first)
        if best is None or count < FEWEST:
            return None
        half, whole = (None, None) if tuning is None else (tuning[n - 1]["mean"] for n in (count // 2, count))
        return {
            "selection": selection_regret(trials.finalists, best),
            "halving": halving_regret(trials),
            "search": math.inf if half is None or whole is None else half - whole,
        }

    def is_tuned(self, regret: Mapping[str, float]) -> bool | None:
        """Whether the expected regret is within the tolerance; None where a part that is unknown decides it."""
        if known_regret(regret) > self.tolerance:
            return False
        return True if all(map(math.isfinite, regret.values())) else None

    def _untuned(self, best: str | None, regret: Mapping[str, float] | None, trials: Trials) -> list[Json]:
        """Why the search is not or cannot be called tuned; empty where it is."""
        if best is None or regret is None:
            text = "no trial has finished with all held-out seeds, so the search decides nothing"
            if best is not None:
                count = len(trials.first)
                text = f"the regret of {best} cannot be estimated from {count} trials: it takes {FEWEST} different ones"
            return [{"code": "not_tested", "text": text}]
        text = f"the expected regret of {best} is {format_total(regret)} nats per token: "
        text += regret_text(regret, list(trials.searched))
        tuned = self.is_tuned(regret)
        if tuned:
            return []
        if tuned is None:
            text += f"; so whether it is within the tolerance of {self.tolerance:g} is not determined"
            return [{"code": "not_tested", "text": text}]
        text += f"; above the tolerance of {self.tolerance:g}: raise design.trials or design.seeds"
        return [{"code": "untuned", "text": text}]

    def _headline(
        self, trials: Trials, best: str | None, means: Mapping[str, Estimate], regret: Mapping[str, float] | None
    ) -> str:
        count = len(trials.first)
        if best is None:
            return f"{count} trials were searched, and none has finished with all held-out seeds."
        values = ", ".join(f"{key} = {value}" for key, value in trials.values[best].items())
        text = f"The best of {count} trials is {values}, with a loss of {means[best].text('.4f')} on held-out seeds; "
        if regret is None:
            return f"{text}they are too few to estimate its regret."
        text += f"its expected regret is {format_total(regret)} nats"
        tuned = self.is_tuned(regret)
        if tuned is None:
            return f"{text}, so whether the search is tuned to {self.tolerance:g} nats is not determined."
        return f"{text}, so the search is {'tuned' if tuned else 'not tuned'} to {self.tolerance:g} nats."


METHODS = (
    "Values of the keys were sampled by the design `search`, and the best trials trained again with new seeds, which "
    "alone decide. The mean over these seeds has Student's interval at {level}, with the variance pooled over the "
    "finalists. The expected best loss after k trials is the unbiased estimate (Dodge et al. 2019, arXiv:1909.03004); "
    "the band is that of the median, from a simultaneous band of the distribution function of the losses (Lourie et "
    "al. 2023, arXiv:2311.09480). Trials that tpe proposed depend on each other: their curve is the best loss so far, "
    "without a band. The regret of the selection is the mean loss of the best trial above the lowest of "
    "the finalists, over draws of their means with the noise that pairing by seed leaves. The gain of twice as many "
    "trials is about that of the second half over the first at the first number of tokens; it is not estimated for tpe."
)


def diverged(trials: Trials) -> list[Json]:
    """A warning for each trial that diverged or failed with a held-out seed, and so is not chosen."""
    return [
        {
            "code": "diverged",
            "text": f"{name} diverged or failed with {count} of its "
            f"{len(trials.held_out[name])} held-out seeds, so it is not chosen",
        }
        for name, count in trials.diverged.items()
    ]


def agreement(trials: Trials) -> list[Json]:
    """A caveat where the losses of trials at successive numbers of tokens have a low rank correlation."""
    from scipy.stats import spearmanr

    out: list[Json] = []
    lengths = list(trials.searched)
    for short, long in pairwise(lengths):
        common = [name for name in trials.searched[long] if name in trials.searched[short]]
        pairs = np.array([[trials.searched[length][name] for name in common] for length in (short, long)])
        if len(common) < 4:
            continue
        rank = float(np.asarray(spearmanr(pairs[0], pairs[1]))[0])
        lengths_text = f"{short:,.0f} and {long:,.0f} tokens"
        text = f"the rank correlation of the losses at {lengths_text} is {rank:.2f} over {len(common)} trials"
        if rank < AGREES:
            text += ": the early losses are a poor guide, so the best trial may have been stopped early; use fewer or "
            text += "longer lengths in design.tokens"
            out.append({"code": "halving", "text": text})
    return out


def optimism(trials: Trials, best: str) -> Json:
    """A note on how much lower the loss of the best trial was with the seed by which it was selected."""
    held_out = float(np.mean(list(trials.finalists[best].values())))
    with_search_seed = last_loss(trials, best)
    gap = math.nan if with_search_seed is None else held_out - with_search_seed
    text = (
        f"the loss of {best} on held-out seeds less that with the seed of the search, by which it was selected, is "
        f"{gap:+.4f} nats per token"
    )
    return {"code": "optimism", "text": text}


def edges(trials: Trials, best: str | None, runs: Sequence[Run]) -> list[Json]:
    """A warning for each key whose best value lies at the edge of its range."""
    designs = [run.config.get("design") or {} for run in runs]
    nodes = [design["keys"] for design in designs if design.get("keys")]
    if best is None or not nodes:
        return []
    out = []
    for key, value in trials.values[best].items():
        space = nodes[0].get(key)
        if not isinstance(space, Mapping):
            continue
        bounds = read_space(key, space)
        low, high, at = bounds.low, bounds.high, float(value)
        if bounds.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        share = (at - low) / (high - low)
        if not EDGE < share < 1 - EDGE:
            span = format_interval(bounds.low, bounds.high, "g")
            text = f"the best {key}, {value}, is at the edge of its range {span}: widen it"
            out.append({"code": "edge", "text": text})
    return out


def importances(trials: Trials) -> list[Json]:
    """A row for each key: the share of the variance of the ranks of the losses that a parabola in it explains.

    The share is adjusted for the number of coefficients, and that of a key without an effect is near 0.
    """
    losses = trials.first
    ranks = pd.Series(list(losses.values())).rank().to_numpy(dtype=float)
    rows = []
    for key in next(iter(trials.values.values())):
        values = [trials.values[name][key] for name in losses]
        design = columns_of_key(values)
        spare = len(ranks) - design.shape[1]
        if spare < 1:
            continue
        fitted, *_ = np.linalg.lstsq(design, ranks, rcond=None)
        rest = float(((ranks - design @ fitted) ** 2).sum()) / spare
        variance = float(ranks.var(ddof=1))
        rows.append({"key": key, "share of variance": max(0.0, 1 - rest / variance) if variance else 0.0})
    return sorted(rows, key=lambda row: -row["share of variance"])


def columns_of_key(values: Sequence[str]) -> np.ndarray:
    """Returns 1, x and x^2 of the values of a key, x the logarithm of positive ones; of texts, a column for each."""
    numbers = as_numbers(values)
    if numbers is None:
        names = sorted(set(values))
        return np.array([[float(value == name) for name in names] for value in values])
    x = np.log(numbers) if min(numbers) > 0 else np.array(numbers)
    return np.column_stack([np.ones(len(x)), x, x**2])[:, : min(3, len(np.unique(x)))]


def trial_rows(trials: Trials) -> list[Json]:
    """A row for each trial: its values, and its loss at each number of tokens."""
    rows = []
    for name, values in trials.values.items():
        losses = {f"loss at {length:,.0f} tokens": by_trial.get(name) for length, by_trial in trials.searched.items()}
        rows.append({"trial": name, **values, **losses})
    last = list(rows[0])[-1]
    return sorted(rows, key=lambda row: (row[last] is None, row[last] if row[last] is not None else 0.0))


def _mean_row(mean: Estimate) -> Json:
    return {"loss": mean.value, "lo": mean.lo, "hi": mean.hi, "seeds": mean.n}
