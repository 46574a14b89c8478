"""The designs `grid`, `cases`, `arms` and `methods`: models and methods at several settings, rates and seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from annotated_types import MinLen

from kleiber.config.stages import Quantity, quantity
from kleiber.studies.compare.arms import SEEDS
from kleiber.studies.designs.design import (
    Cell,
    Level,
    RunSource,
    SweepContext,
    Values,
    as_list,
    combine,
    finished_base,
    from_checkpoint,
    parse_lines,
    seed_levels,
)
from kleiber.types import Count, Positive, Width

LR = "optimizer.lr"
REPLAYED = "retention.replay.fraction"


class Grid:
    """Trains every width with every seed. The config groups `stages` and `budget` set the training length.

    widths    values of `model.width`
    seeds     number of seeds of every width, or a list with one number for each width; small models are noisier and
              cheaper, so they deserve more seeds
    head_dim  channels of an attention head, the same at every width as muP requires; null keeps `model.num_heads`
    """

    def __init__(
        self,
        widths: Annotated[Sequence[Width], MinLen(1)],
        seeds: Count | Sequence[Count] = 2,
        head_dim: Width | None = 16,
    ) -> None:
        each = [seeds] * len(widths) if isinstance(seeds, int) else list(seeds)
        if len(set(widths)) < len(widths):
            raise ValueError(f"design.widths={list(widths)} must list no width twice")
        if len(each) != len(widths):
            raise ValueError(
                f"design.seeds={seeds} must be a number, or a list of {len(widths)} numbers, one for each of "
                f"design.widths={list(widths)}, such as design.seeds=2"
            )
        for width in widths:
            if head_dim is not None and width % head_dim:
                raise ValueError(
                    f"design.widths has {width}, which must be a multiple of design.head_dim={head_dim}: choose "
                    f"another width, or set design.head_dim={math.gcd(head_dim, *widths)}, a divisor of all widths"
                )
        self.widths, self.seeds, self.head_dim = list(widths), each, head_dim

    def shapes(self) -> list[Level]:
        """Returns the factor of widths and their seeds, in the order of the widths."""
        pairs = sorted(zip(self.widths, self.seeds, strict=True))
        return [self._width(width) | seed for width, seeds in pairs for seed in seed_levels(seeds)]

    def _width(self, width: int) -> Level:
        heads = {} if self.head_dim is None else {"model.num_heads": width // self.head_dim}
        return Level({"model.width": width, **heads})

    def cells(self, context: SweepContext | None = None) -> list[Cell]:
        """Returns the overrides of each cell."""
        return combine(self.shapes())


class Cases:
    """Trains several named configurations, each at every width with every seed.

    cases   lists of overrides by name: {clm: [model=gpt], mlm: [model=bert, objective=mlm]}
    widths, seeds, head_dim  as in `Grid`; widths=null keeps the `model.width` of the config
    """

    def __init__(
        self, cases: Mapping[str, Sequence[str]], widths: Sequence[Width] | None = None, seeds: Count = 2,
        head_dim: Width | None = 16,
    ) -> None:  # fmt: skip
        if not cases:
            raise ValueError("design.cases={} must have at least one case")
        self.cases = [Level(parse_lines(lines)) for lines in cases.values()]
        self.shapes = seed_levels(seeds) if widths is None else Grid(widths, seeds, head_dim).shapes()

    def cells(self, context: SweepContext | None = None) -> list[Cell]:
        return combine(self.cases, self.shapes, slow=1)


class Arms:
    """Trains every arm at every learning rate with every seed, one seed after another.

    Every run records the name of its arm in `study.arm`. Runs with the same seed see the same samples in the same
    order.

    arms   overrides of each arm, by name: {dense: {}, moe: {model: moe}}. A list of values makes a run for each of
           them; a list as the value is [[...]]; null removes an arm. The placeholders `{seed}` and `{NAME}`, for each
           NAME of `fill`, are replaced by their value for the seed of the run
    lrs    values of `optimizer.lr` of the arms that do not set it, or a list for each arm by name
    seeds  number of seeds
    fill   lists of values by name, one value for each seed, such as the paths of the runs to start from
    """

    def __init__(
        self,
        arms: Mapping[str, Mapping[str, Values] | None],
        lrs: Sequence[Positive] | Mapping[str, Sequence[Positive]],
        seeds: Count = SEEDS,
        fill: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.arms = kept_arms(arms)
        for name, arm in self.arms.items():
            rates = lrs.get(name, ()) if isinstance(lrs, Mapping) else lrs
            if LR not in arm and (not rates or len(set(rates)) < len(rates)):
                raise ValueError(
                    f"design.lrs={lrs} must have at least one learning rate for {name}, and no rate may be listed twice"
                )
            arm.setdefault(LR, [f"{lr:g}" for lr in sorted(rates)])
        for name, values in (fill or {}).items():
            if len(values) < seeds:
                raise ValueError(
                    f"design.fill.{name} has {len(values)} values, but needs one for each of the {seeds} seeds of "
                    "design.seeds"
                )
        same: dict[frozenset[str], str] = {}
        for name, arm in self.arms.items():
            for overrides in Level(arm).cells():
                if (twin := same.setdefault(frozenset(overrides), name)) != name:
                    raise ValueError(
                        f"design.arms: {name} and {twin} have the same overrides; remove one of the two arms"
                    )
        self.seeds = seed_levels(seeds, fill)

    def cells(self, context: SweepContext | None = None) -> list[Cell]:
        """Returns the overrides of each cell."""
        return combine([Level({**arm, "study.arm": name}) for name, arm in self.arms.items()], self.seeds, slow=1)


class Methods:
    """Trains every base with every seed, then fine-tunes it by every arm at each of the arm's settings and rates.

    It has two rounds, because a fine-tuning run starts from the folder of a finished base run. A base run that did not
    finish is skipped, together with its fine-tuning runs.

    base    overrides of the base runs; a list of values makes several bases: {data.domain: docs, model.width: [32, 64]}
    start   overrides that load trained weights, in place of base runs: {init: hf, init.path: FOLDER, init.upstream:
            [tinystories]}, or {init: checkpoint, init.path: RUN}
    arms    overrides of the fine-tuning runs, by name; a list of values makes one run for each value: {ewc: {retention:
            ewc, ...: [1, 10]}}; null removes an arm
    lrs     learning rates of every arm that does not set `optimizer.lr`
    tokens  training tokens of each arm, or a list of token counts; null keeps the budget of the config
    equal   what all arms have in common: "compute" counts replayed tokens as part of `tokens`; "target" adds them to
            `tokens`, so that every arm reads the same amount of new text
    seeds   number of seeds of the bases; a fine-tuning run has the seed of its base
    only    overrides that the base of an arm must have, by arm: {frozen: [model=moe]}; other arms start from every base
    """

    def __init__(
        self,
        base: Mapping[str, Values],
        arms: Mapping[str, Mapping[str, Values] | None],
        lrs: Sequence[Positive] = (),
        tokens: Quantity | Sequence[Quantity] | None = None,
        equal: str = "compute",
        seeds: Count = 2,
        only: Mapping[str, Sequence[str]] | None = None,
        start: Mapping[str, Values] | None = None,
    ) -> None:
        self.base, self.arms, self.lrs, self.seeds = base, kept_arms(arms), list(lrs), seeds
        self.start, self.tokens, self.equal, self.only = start, tokens, equal, dict(only or {})
        if equal not in ("compute", "target"):
            raise ValueError(f"design.equal={equal} must be 'compute' or 'target'")
        if equal == "target" and tokens is None:
            raise ValueError("design.equal=target needs design.tokens, the number of new tokens that each arm reads")
        for name, arm in self.arms.items():
            if equal == "target" and "replay" in str(arm.get("retention")) and REPLAYED not in arm:
                raise ValueError(
                    f"design.arms.{name} must set {REPLAYED}: design.equal=target adds its replayed tokens to the "
                    "budget"
                )
        for name in ("seed", "init", "init.path"):
            if name in base or any(name in arm for arm in self.arms.values()):
                raise ValueError(f"design.base and design.arms must not set {name}: the design sets it for every run")
        if start is not None and not {"init", "init.path"} <= set(start):
            raise ValueError(
                f"design.start={dict(start)} must have init and init.path: {{init: hf, init.path: FOLDER}}"
            )
        for name, lines in self.only.items():
            if name not in arms:
                raise ValueError(f"design.only.{name}: design.arms has no arm {name}; it has {', '.join(arms)}")
            if name in self.arms and not any(set(lines) <= set(overrides) for overrides in self.bases()):
                raise ValueError(f"design.only.{name}={list(lines)}: no base of design.base has all of these overrides")

    def bases(self) -> list[Cell]:
        """Returns the overrides of each base run."""
        if self.start is not None:
            return []
        return Level({**self.base, "seed": list(range(self.seeds))}).cells()

    def arm_levels(self, base: Sequence[str] | None = None) -> list[Level]:
        """Returns the factor of arms and token counts; with `base`, only of the arms that may start from that base."""
        rates = {LR: self.lrs} if self.lrs else {}
        return [
            Level({**arm, **(rates if LR not in arm else {}), **self._budget(tokens)})
            for name, arm in self.arms.items()
            if base is None or set(self.only.get(name, ())) <= set(base)
            for tokens in as_list(self.tokens)
        ]

    def _budget(self, tokens: int | float | str | None) -> dict[str, Values]:
        """Returns the override of the budget, which at equal target tokens depends on the replayed fraction."""
        if tokens is None:
            return {}

        def with_replayed(values: Mapping[str, Values]) -> Values:
            return round(quantity(tokens) / (1 - float(values[REPLAYED]))) if REPLAYED in values else tokens

        return {"budget.tokens": tokens if self.equal == "compute" else with_replayed}

    def rounds(self, context: RunSource) -> Iterator[list[Cell]]:
        """Yields the base runs, then the fine-tuning runs."""
        if self.start is None:
            yield self.bases()
        yield self.fine_tuning_cells(context)

    def fine_tuning_cells(self, context: RunSource) -> list[Cell]:
        """Returns the overrides of each fine-tuning run from every finished base, or from the weights of `start`.

        Prints a line for each base without a finished run.
        """
        if self.start is not None:
            start = Level({key: [value] for key, value in self.start.items()})
            return combine(self.arm_levels(), [seed | start for seed in seed_levels(self.seeds)], slow=1)
        runs, planned = context.runs(), []
        for base in self.bases():
            arms = self.arm_levels(base)
            run = finished_base(runs, base, self.bases(), f"{len(combine(arms))} fine-tuning runs")
            if run is not None:
                seed = Level({"seed": parse_lines(base)["seed"]})
                planned += combine(arms, [seed | from_checkpoint(run)])
        return planned


def kept_arms(arms: Mapping[str, Mapping[str, Values] | None]) -> dict[str, dict[str, Values]]:
    """Returns the arms that are not null. Raises ValueError if there is none."""
    kept = {name: dict(arm) for name, arm in arms.items() if arm is not None}
    if not kept:
        raise ValueError(
            f"design.arms={dict(arms)} must have at least one arm: write the overrides of each under its name, as in "
            "'design.arms={adamw: {optimizer: adamw}, lion: {optimizer: lion}}'"
        )
    return kept
