"""The design `search`: a search over hyperparameters, with successive halving and held-out seeds for the best."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt
from scipy.stats import qmc

from kleiber.config.errors import ConfigError
from kleiber.config.stages import Quantity, quantity
from kleiber.records.terminal import print_line
from kleiber.studies.designs.design import Cell, Level, SweepContext, Values, as_list, format_value
from kleiber.studies.designs.trial_losses import losses_of
from kleiber.studies.laws.law import Array
from kleiber.types import Count, Natural, Positive

TPE = "tpe"
SAMPLERS = ("sobol", "random", TPE)
SET_BY_THE_DESIGN = ("seed", "budget.", "study.")
DIGITS = 4  # of a sampled value


@dataclass(frozen=True)
class Space:
    """The values of one key: choices, or a range on a linear or logarithmic scale.

    step  values are rounded to multiples of it within the range; None leaves them as they are
    """

    choices: tuple[Values, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None

    def value(self, share: float) -> Values:
        """Returns the value at a share of the range in [0, 1)."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = ends[0] + share * (ends[1] - ends[0])
        value = math.exp(value) if self.log else value
        if self.step is not None:
            first, last = self.multiples(self.step)
            value = min(max(round(value / self.step), first), last) * self.step
            return round(value) if float(self.step).is_integer() else float(f"{value:.{DIGITS}g}")
        return float(f"{value:.{DIGITS}g}")

    def multiples(self, step: float) -> tuple[int, int]:
        """Returns the least and the largest integer whose product with `step` is in the range, but for rounding."""
        return math.ceil(round(self.low / step, 9)), math.floor(round(self.high / step, 9))


class Search:
    """Trains trials, sampled values of some keys, and the best of them again with new seeds.

    The trials are trained for each number of `tokens` in turn; a fraction 1/`eta` of them, the best by validation loss,
    goes on to the next number (successive halving), from scratch. Some of the others, drawn at random, are trained for
    the last number all the same, so that the study sees what halving has missed. The `finalists` of the last number are
    trained with `seeds` further seeds, so that neither the luck of a seed nor an early lead decides. Trials keep their
    values when their number is raised, so that a repeated command continues the search. Every run records its trial in
    `study.arm`.

    keys       space by key: a list of choices, {log: [LOW, HIGH]} or {linear: [LOW, HIGH]}; `round: 1` beside a range
               rounds its values to multiples of 1; null removes a key
    trials     largest number of trials
    tokens     training tokens of a trial, or an ascending list of them for successive halving
    eta        factor by which the number of trials falls from one number of tokens to the next
    controls   number of stopped trials that are trained for the last number of tokens
    sampler    sobol (scrambled Sobol points, which fill the space evenly), random, or tpe (Optuna's tree-structured
               Parzen estimator: Bergstra et al. 2011, NeurIPS 24), which proposes values by the losses so far
    at_once    number of trials that tpe proposes before it reads their losses
    finalists  number of trials that are trained with new seeds
    seeds      number of these seeds, at least two; the search itself has seed 0
    flops      budget of the whole design in training FLOPs, by which the number of trials is reduced; null: none
    hours      likewise in hours of training on this machine, one run at a time
    sampler_seed  seed of the sampled values
    """

    def __init__(
        self,
        keys: Mapping[str, Values | None],
        trials: Count = 32,
        tokens: Quantity | Sequence[Quantity] = "1M",
        eta: Annotated[float, Gt(1)] = 3.0,
        controls: Natural = 3,
        sampler: str = "sobol",
        at_once: Count = 4,
        finalists: Count = 3,
        seeds: Annotated[int, Ge(2)] = 3,
        flops: Quantity | None = None,
        hours: Positive | None = None,
        sampler_seed: Natural = 0,
    ) -> None:
        keys = {key: values for key, values in keys.items() if values is not None}
        if not keys:
            raise ValueError("design.keys={} must have at least one key, such as {optimizer.lr: {log: [0.002, 0.1]}}")
        for key in keys:
            if key.startswith(SET_BY_THE_DESIGN):
                raise ValueError(f"design.keys must not have {key}, which the design sets itself")
        if sampler not in SAMPLERS:
            raise ValueError(f"design.sampler={sampler} must be one of {', '.join(SAMPLERS)}")
        self.spaces = {key: read_space(key, values) for key, values in keys.items()}
        self.tokens = [round(quantity(value)) for value in as_list(tokens)]
        if sorted(set(self.tokens)) != self.tokens:
            raise ValueError(f"design.tokens={tokens} must be numbers of tokens in ascending order")
        if finalists > trials:
            raise ValueError(f"design.finalists={finalists} must be <= design.trials={trials}")
        self.trials, self.eta, self.sampler, self.sampler_seed = trials, eta, sampler, sampler_seed
        self.at_once, self.finalists, self.seeds = at_once, finalists, seeds
        self.controls = controls if len(self.tokens) > 1 else 0
        self.flops, self.hours = None if flops is None else quantity(flops), hours

    def points(self, count: int) -> Array:
        """Returns the shares of the ranges of `count` trials, (count, keys) in [0, 1); a prefix of those of more."""
        dims = len(self.spaces)
        if self.sampler == "random":
            return np.random.default_rng(self.sampler_seed).random((count, dims))
        power = math.ceil(math.log2(max(count, 2)))
        return qmc.Sobol(dims, rng=self.sampler_seed).random_base2(power)[:count]

    def levels(self, count: int) -> list[Level]:
        """Returns the values of each of `count` trials."""
        return [self.level(number, shares) for number, shares in enumerate(self.points(count).tolist())]

    def level(self, number: int, shares: Sequence[float]) -> Level:
        """Returns the values of a trial at shares of the ranges."""
        spaces = zip(self.spaces.items(), shares, strict=True)
        values = {key: format_value(space.value(share)) for (key, space), share in spaces}
        return Level({**values, "study.arm": f"trial{number}"})

    def proposed(self, context: SweepContext, count: int) -> Generator[list[Cell], None, list[Level]]:
        """Yields the trials that tpe proposes for the first number of tokens; returns the values of all of them."""
        sampler, levels = TreeSampler(self.spaces, self.sampler_seed), list[Level]()
        while len(levels) < count:
            numbers = range(len(levels), min(len(levels) + self.at_once, count))
            levels += [
                self.level(number, shares) for number, shares in zip(numbers, sampler.ask(len(numbers)), strict=True)
            ]
            cells = {number: cell_of(levels[number], 0, self.tokens[0]) for number in numbers}
            yield list(cells.values())
            sampler.tell(list(losses_of(context, cells).values()))
        return levels

    def rungs(self, trials: int) -> list[int]:
        """Returns the number of trials that are trained for each number of tokens."""
        counts = [trials]
        for _ in self.tokens[1:]:
            counts.append(max(min(self.finalists, trials), math.ceil(counts[-1] / self.eta)))
        return counts

    def cost(self, trials: int) -> float:
        """Returns the training tokens of a search of `trials` trials, with controls and held-out seeds."""
        controls = min(self.controls, trials - self.rungs(trials)[-1])
        last = (controls + min(self.finalists, trials) * self.seeds) * self.tokens[-1]
        return last + sum(count * tokens for count, tokens in zip(self.rungs(trials), self.tokens, strict=True))

    def affordable(self, context: SweepContext) -> int:
        """Returns the largest number of trials within the budget.

        Raises ValueError if not even the finalists fit, and if the searched keys change the cost of a token otherwise
        than by the width of the model.
        """
        if self.flops is None and self.hours is None:
            return self.trials
        other = [key for key in self.spaces if key.startswith(("model.", "model/")) and key != "model.width"]
        if other:
            raise ValueError(f"design.flops and design.hours cannot be used with the key {other[0]}: use design.trials")
        width = round(self.widest(context))
        per_token = context.size(width).flops_per_token
        budgets = [] if self.flops is None else [self.flops]
        if self.hours is not None:
            budgets.append(self.hours * 3600 * context.speed([width])[0])
        affordable = [
            count for count in range(self.finalists, self.trials + 1) if self.cost(count) * per_token <= min(budgets)
        ]
        if not affordable:
            least = self.cost(self.finalists) * per_token
            raise ValueError(
                f"the budget of {min(budgets):.3g} FLOPs does not allow {self.finalists} trials and their held-out "
                f"seeds, which take {least:.3g} FLOPs: raise design.flops or design.hours, or lower design.finalists, "
                "design.seeds or design.tokens"
            )
        return affordable[-1]

    def widest(self, context: SweepContext) -> float:
        """Returns the largest width of the model in the search."""
        space = self.spaces.get("model.width")
        if space is None:
            return float(context.model["width"])
        return max(map(float, space.choices)) if space.choices else space.high

    def rounds(self, context: SweepContext) -> Iterator[list[Cell]]:
        """Yields the trials for each number of tokens, then the held-out seeds of the finalists."""
        count = self.affordable(context)
        if self.sampler == TPE:
            levels = yield from self.proposed(context, count)
        else:
            levels = self.levels(count)
        # Choices and rounded values can give a trial twice, which must not take two places among the finalists.
        first = {tuple(level.values[key] for key in self.spaces): n for n, level in [*enumerate(levels)][::-1]}
        counts, alive = self.rungs(len(levels)), sorted(first.values())
        stopped: list[int] = []
        for number, tokens in enumerate(self.tokens):
            if number == len(self.tokens) - 1 and stopped:
                drawn = np.random.default_rng(self.sampler_seed).permutation(sorted(stopped))[: self.controls]
                alive = [*alive, *map(int, drawn)]
            cells = {trial: cell_of(levels[trial], 0, tokens) for trial in alive}
            if number or self.sampler != TPE:
                yield list(cells.values())
            losses = losses_of(context, cells)
            best = sorted(alive, key=lambda trial: (losses[trial], trial))
            kept = counts[number + 1] if number + 1 < len(counts) else self.finalists
            finite = [trial for trial in best if losses[trial] < math.inf]
            alive, stopped = finite[:kept], [*stopped, *finite[kept:]]
            if not alive:
                print_line("no trial has finished with a finite loss: the search ends")
                return
        yield [cell_of(levels[trial], seed, self.tokens[-1]) for seed in range(1, self.seeds + 1) for trial in alive]


class TreeSampler:
    """Proposes values of keys by Optuna's tree-structured Parzen estimator; the same losses give the same values.

    Raises ConfigError without the extra `optuna`.
    """

    def __init__(self, spaces: Mapping[str, Space], seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "design.sampler=tpe needs Optuna: pip install 'kleiber[optuna]', or use design.sampler=sobol"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        whole, choice = optuna.distributions.FloatDistribution(0, 1), optuna.distributions.CategoricalDistribution
        self.sizes = {key: len(space.choices) for key, space in spaces.items()}
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {
            key: choice(range(size)) if size else whole for key, size in self.sizes.items()
        }
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True))
        self.open: list[optuna.Trial] = []

    def ask(self, count: int) -> list[list[float]]:
        """Returns the shares of the ranges of `count` new trials."""
        self.open = [self.study.ask(self.distributions) for _ in range(count)]
        return [
            [(trial.params[key] + 0.5) / size if size else trial.params[key] for key, size in self.sizes.items()]
            for trial in self.open
        ]

    def tell(self, losses: Sequence[float]) -> None:
        """Notes the losses of the trials of the last `ask`; inf for one that diverged."""
        for trial, loss in zip(self.open, losses, strict=True):
            self.study.tell(trial, loss)


def cell_of(level: Level, seed: int, tokens: int) -> Cell:
    """Returns the overrides of one trial with a seed and a number of tokens."""
    (cell,) = (level | Level({"seed": seed, "budget.tokens": tokens})).cells()
    return cell


def read_space(key: str, values: Values) -> Space:
    """Returns the space of a key. Raises ValueError for a malformed one."""
    if isinstance(values, list | tuple) and len(values) > 1:
        return Space(choices=tuple(values))
    form = (
        "must be a list of at least two choices, {log: [LOW, HIGH]} or {linear: [LOW, HIGH]}, with round: STEP or not"
    )
    if not isinstance(values, Mapping) or len(scales := [name for name in values if name in ("log", "linear")]) != 1:
        raise ValueError(f"design.keys.{key}={values} {form}")
    ends, step = values[scales[0]], values.get("round")
    numbers = [end for end in as_list(ends) if isinstance(end, int | float)]
    if set(values) - {"log", "linear", "round"} or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"design.keys.{key}={dict(values)} {form}; LOW must be below HIGH")
    log = scales[0] == "log"
    if log and numbers[0] <= 0:
        raise ValueError(f"design.keys.{key}={dict(values)}: the ends of a log range must be > 0")
    if step is not None and not (isinstance(step, int | float) and step > 0):
        raise ValueError(f"design.keys.{key}: round={step} must be a number > 0")
    space = Space(low=float(numbers[0]), high=float(numbers[1]), log=log, step=step)
    if step is not None and space.multiples(step)[0] > space.multiples(step)[1]:
        raise ValueError(f"design.keys.{key}={dict(values)}: no multiple of round={step} is in the range")
    return space
