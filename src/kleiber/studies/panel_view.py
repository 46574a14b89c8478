"""The table of a panel, and what is read from it: levels, samples, means, contrasts, and claims with their guards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kleiber.inference.contrasts import Cell
from kleiber.inference.joint import quantile
from kleiber.studies.claims import (
    EQUAL,
    RATE,
    Claim,
    Levels,
    Question,
    Result,
    Selection,
    chosen_levels,
    expand,
    read_claims,
    side_key,
)
from kleiber.studies.compare.arms import LRS, Unready
from kleiber.studies.compare.rows import Rows, mean_of, seed_means
from kleiber.studies.decision import Estimate, as_row, estimate_around, level_of_each, mean_estimate
from kleiber.studies.panel_declaration import Key, Measure, Table, mapping
from kleiber.studies.panel_table import ITEMS, SAME, same_origin
from kleiber.studies.statements import group, read_answer, statement, with_interval_of_claim
from kleiber.types import Json, Row

Node = Mapping[str, object]
TOLERANCE = 0.05  # relative difference up to which a quantity counts as equal


@dataclass(frozen=True)
class Sampled:
    """The result of a claim for each sample.

    sides     values of each side of the claim, by sample
    names     of the keys that make a sample
    left_out  number of samples that not all sides have
    """

    values: list[float]
    sides: list[dict[Hashable, float]]
    names: list[str]
    left_out: int


@dataclass(frozen=True, kw_only=True)
class View:
    """The table of a panel, and what is read from it.

    tables   declared tables by title
    arms     names of the arms of the design, in its order
    samples, level, equal  see `Panel`
    """

    table: Rows
    keys: Sequence[Key]
    measures: Mapping[str, Measure]
    tables: Mapping[str, Table]
    arms: Sequence[str]
    samples: Sequence[str]
    level: float
    equal: str

    @property
    def first(self) -> Json:
        """What a claim has where it does not say it: the first measure."""
        return {"measure": next(iter(self.measures))}

    @cached_property
    def levels(self) -> Levels:
        """The values of each key: numbers in ascending order, others in that of its labels and of the design's arms."""
        levels: dict[str, list[object]] = {}
        for key in self.keys:
            values = list(dict.fromkeys(self.table[key.name].dropna().tolist()))
            if all(isinstance(value, int | float) for value in values):
                values.sort()
            else:
                order = list(dict.fromkeys([*key.labels, *(self.arms if "study.arm" in key.sources else ())]))
                ranks = {value: order.index(str(value)) if str(value) in order else len(order) for value in values}
                values.sort(key=ranks.__getitem__)
            levels[key.name] = values
        return levels

    def label(self, key: str, value: object, short: bool = False) -> str:
        """Returns what people call a value of a key."""
        return next(entry.label(value, short) for entry in self.keys if entry.name == key)

    def selected(self, rows: Rows, side: Selection) -> np.ndarray:
        """Returns for each row whether its keys have the values of `side`; a value may be a list, or {not: [...]}."""
        is_selected = np.full(len(rows), True)
        for key, value in side.items():
            if isinstance(value, list | Mapping):
                matches = rows[key].isin([*chosen_levels(key, value, self.levels)])
            else:
                matches = rows[key] == value
            is_selected &= matches.to_numpy()
        return is_selected

    def chosen(self, rows: Rows, side: Selection) -> Rows:
        """Returns the rows whose keys have the values of `side`."""
        return rows[self.selected(rows, side)]

    def rows(self, measure: str, side: Selection) -> Rows:
        """Returns the rows of a measure whose keys have the values of `side`."""
        return self.table[self.measured(measure) & self.selected(self.table, side)]

    def measured(self, measure: str) -> np.ndarray:
        """Returns for each row of the table whether it is of a measure."""
        return (self.table["measure"] == measure).to_numpy()

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns of the table, None where a value is missing."""
        filled = self.table.astype(object).where(self.table.notna(), None)
        return {str(name): filled[name].to_numpy() for name in filled}

    def values(self, measure: str, side: Selection, columns: Sequence[str]) -> dict[tuple[object, ...], float]:
        """Returns the mean of a measure of a side by the values of `columns`."""
        selected = self.measured(measure) & self.selected(self.table, side)
        places = [self.columns[name][selected] for name in columns]
        groups: dict[tuple[object, ...], list[float]] = {}
        for *place, value in zip(*places, self.table["value"].to_numpy()[selected].tolist(), strict=True):
            groups.setdefault(tuple(place), []).append(value)
        return {place: sum(values) / len(values) for place, values in groups.items()}

    def sampled(self, claim: Claim) -> Sampled:
        """Returns the result of a claim for each sample, with those of its sides.

        Results are averaged over the keys that the claim leaves open, at those values that all sides have. A key with a
        list of values that all sides share is open as well.
        """
        sides = [side for _, side in claim.sides]
        stated = {key for side in sides for key in side}
        varied = {
            key
            for key in stated
            if isinstance(sides[0].get(key), list | Mapping)
            and all(side.get(key) == sides[0].get(key) for side in sides)
        }
        sample = [name for name in self.samples if name not in stated]
        free = [key.name for key in self.keys if key.name not in (stated - varied) and key.name not in sample]
        parts = [(sign, self.values(claim.measure, side, [*sample, *free])) for sign, side in claim.sides]
        places: dict[tuple[object, ...], list[tuple[object, ...]]] = {}
        for place in parts[0][1]:
            if all(place in values for _, values in parts):
                places.setdefault(place[: len(sample)], []).append(place)
        every = {place[: len(sample)] for _, values in parts for place in values}
        by_side: list[dict[Hashable, float]] = [
            {key: sum(values[place] for place in alike) / len(alike) for key, alike in places.items()}
            for _, values in parts
        ]
        signed = list(zip([sign for sign, _ in parts], by_side, strict=True))
        results = [sum(sign * means[key] for sign, means in signed) - claim.less for key in places]
        return Sampled(results, by_side, sample, len(every) - len(places))

    def questions(self, nodes: Sequence[Node], waiting: Unready) -> list[Question]:
        """Returns claims with what the runs say about them; `waiting` says why the runs decide nothing yet."""
        claims = read_claims(nodes, "study.claims", self.first, self.levels)
        return [self.question(claim, waiting) for claim in claims]

    def question(self, claim: Claim, waiting: Unready) -> Question:
        """Returns a claim with its samples."""
        measure = self.measures[claim.measure]
        equal, problem = self.guard(claim)
        claim = replace(claim, equal=equal)

        def wording(stated: Claim) -> str:
            """Returns a claim about the groups of this one as a sentence."""
            return statement(stated, measure.label, measure.unit, self.label)

        text = wording(claim) + (f", at equal {EQUAL[equal]}" if claim.text and equal else "")
        sampled, paired = self.sampled(claim), self.are_paired(claim)
        sides = zip(claim.sides, sampled.sides, strict=True)
        cells: dict[Hashable, list[Cell]] = {side_key(side): [values] for (_, side), values in sides}
        return Question(
            claim=claim, text=text, wording=wording, values=sampled.values, unit=measure.unit,
            limits=measure.limits, better=measure.better,
            problem=waiting.why or problem, advice=waiting.advice,
            tuned=None if equal is None else not problem and equal != RATE,
            samples=f"values of {' and '.join(sampled.names)}", paired=paired, groups={} if paired else cells,
            items=self.item_error(claim),
        )  # fmt: skip

    def item_error(self, claim: Claim) -> float:
        """Returns the standard error of a claim over the items of its sides, which all samples share; 0 without any."""
        name = f"{claim.measure}{ITEMS}"
        if not self.measures[claim.measure].items:
            return 0.0
        errors = [self.rows(name, side)["value"].mean() for _, side in claim.sides]
        return math.hypot(*(error for error in errors if not math.isnan(error)))

    def gap(self, claim: Claim, unit: str) -> Estimate | None:
        """Returns the mean result of a claim with its interval over samples, and over items where those are known."""
        mean, fixed = mean_estimate(self.sampled(claim).values, self.level, unit), self.item_error(claim)
        if mean is None or mean.hi is None or not fixed:
            return mean
        half = math.hypot(mean.hi - mean.value, quantile(math.inf, self.level) * fixed)
        return estimate_around(mean.value, half, mean.n, unit)

    def are_paired(self, claim: Claim) -> bool:
        """Returns whether samples pair the sides of a claim by design: by further keys than the seed, runs or bases."""
        parts = [self.rows(claim.measure, side) for _, side in claim.sides]
        runs = [name for part in parts for name in part["run"].unique().tolist()]
        return [*self.samples] != ["seed"] or len({*runs}) < len(runs) or any(part["base"].any() for part in parts)

    def guard(self, claim: Claim) -> tuple[str | None, str]:
        """Returns what the sides of a claim have equal, None where nothing needs to be, and why they decide nothing."""
        parts = [self.rows(claim.measure, side) for _, side in claim.sides]
        sides = [side for _, side in claim.sides]
        absent = [side for side, part in zip(sides, parts, strict=True) if part.empty]
        if absent:
            named = group(absent[0], {}, self.label)
            return claim.equal, f"no finished run measured {self.measures[claim.measure].label} for {named}"
        if any(side == other for side, other in itertools.combinations(sides, 2)):
            return claim.equal, "its sides are the same group: a key that they differ in has one value in these runs"
        if claim.equal is None and all(same_origin(parts[0], part) for part in parts):
            return None, ""
        equal = claim.equal or self.equal
        rates = min(part[f"{SAME}{RATE}"].nunique() for part in parts)
        if equal != RATE and rates < LRS:
            return equal, (
                f"a side has {rates} learning rate{'s' * (rates != 1)}, and a tuned arm needs {LRS}: state "
                f"equal={RATE} to compare at one rate"
            )
        for quantity in (RATE, "tokens") if equal == RATE else (equal,):
            values = [value for part in parts for value in part[f"{SAME}{quantity}"].dropna()]
            if values and max(values) > (1 + TOLERANCE) * min(values):
                low, high = (f"{end:,.0f}" if end >= 1000 else f"{end:g}" for end in (min(values), max(values)))
                return equal, f"the two sides differ in {EQUAL[quantity]} ({low} to {high})"
        return equal, ""

    def caveats(self, results: Sequence[Result]) -> list[Json]:
        """Returns a caveat for each claim that leaves out samples, since a side lacks them."""
        notes = []
        for result in results:
            sampled = self.sampled(result.claim)
            count = len(sampled.values)
            if count and sampled.left_out:
                kept = f"{count} of {count + sampled.left_out}"
                text = f"{kept} samples are on every side of the claim that {result.question.text}; others are left out"
                notes.append({"code": "unpaired", "text": text})
        return notes

    def answer(self, node: Node | None, results: Sequence[Result] = ()) -> str:
        """Returns the declared answer with its numbers; "" where there is none, or where a number is missing.

        results  claims, whose numbers have the intervals that decide them
        """
        text, numbers = read_answer(node, self.first, self.levels)
        written = {}
        for name, number in numbers.items():
            measure = self.measures[number.claim.measure]
            estimate = self.gap(number.claim, measure.unit)
            estimate = measure.within(estimate) if number.claim.against is None else estimate
            if estimate is None:
                return ""
            written[name] = number.text(with_interval_of_claim(estimate, results))
        return text.format_map(written)

    def cells(self, table: Table) -> list[dict[str, object]]:
        """Returns each combination of the levels of the keys of a table."""
        places = itertools.product(*(self.levels[key] for key in table.by))
        return [dict(zip(table.by, place, strict=True)) for place in places]

    def rows_of(self, table: Table) -> list[Json]:
        """Returns the rows of a table: keys, the name of the measure, value, lo, hi, n and unit."""
        if table.joint:
            number = len(self.rows_of(replace(table, joint=False))) // len(table.measures)
            joint = replace(self, level=level_of_each(self.level, max(number, 1), 1))
            return joint.rows_of(replace(table, joint=False))
        if table.contrast:
            rows = [*self.contrasts(table)]
        elif table.pooled is not None:
            rows = [row for name in table.measures for row in self.pooled_means(self.measures[name], table)]
        else:
            rows = [*self.means(table)]
        return [row for row in rows if row["value"] is not None]

    def means(self, table: Table) -> Iterator[Json]:
        """Yields a row for each measure and combination of keys: the mean with its interval."""
        for measure, cell in itertools.product((self.measures[name] for name in table.measures), self.cells(table)):
            (claim,) = expand({"of": {**table.where, **cell}, "measure": measure.name}, self.levels)
            mean = mean_estimate(self.sampled(claim).values, self.level, measure.unit)
            yield {**cell, "measure": measure.name, **as_row(measure.within(mean))}

    def pooled_means(self, measure: Measure, table: Table) -> Iterator[Json]:
        """Yields the means of a measure, whose intervals pool the noise of seeds over cells of the table."""
        (claim,) = expand({"of": table.where, "measure": measure.name}, self.levels)
        part = self.rows(measure.name, claim.of)
        if part.empty:
            return
        samples = list(dict.fromkeys([*table.by, *self.samples]))
        part = part.groupby(samples, as_index=False, sort=False).agg({"value": "mean", "run": "first"})
        groups: list[Rows] = [rows for _, rows in part.groupby([*table.pooled])] if table.pooled else [part]
        cells = [row for rows in groups for _, row in seed_means(rows, table.by, "value", self.level).iterrows()]
        means = {tuple(row[key] for key in table.by): mean_of(row, measure.unit) for row in cells}
        for cell in self.cells(table):
            mean = means.get(tuple(cell.values()))
            yield {**cell, "measure": measure.name, **as_row(measure.within(mean))}

    def contrasts(self, table: Table) -> Iterator[Json]:
        """Yields a row for each measure, value of `each` and combination of keys: the mean difference."""
        varied = [*mapping(table.contrast.get("each"), "each")]
        for measure, claim, cell in (
            (self.measures[name], claim, cell)
            for name in table.measures
            for claim in expand({"of": {}, **table.contrast, "measure": name}, self.levels)
            for cell in self.cells(table)
        ):
            claim = replace(claim, of={**claim.of, **cell})
            gap = as_row(self.gap(claim, measure.unit))
            yield {key: claim.of[key] for key in (*varied, *cell)} | {"measure": measure.name, **gap}

    def claim_rows(self, results: Sequence[Result]) -> list[Json]:
        """Returns the rows of a figure of claims: the difference of each with the interval that decides it.

        other    the bound below or above which a claim with a margin says it is; of two bounds the upper one
        another  the lower one
        verdict  what is claimed, and whether it is supported
        """
        rows = []
        for result in results:
            claim, against = result.claim, result.claim.against or {}
            name = f"{group(claim.of, against, self.label)} \N{MINUS SIGN} {group(against, claim.of, self.label)}"
            row = {"name": name if against else group(claim.of, {}, self.label), "measure": claim.measure}
            row["verdict"] = f"claimed {claim.criterion.region}: {result.decision}"
            low, high = claim.criterion.bounds if claim.margin else (None, None)
            bounds = {"other": high, "another": low}
            rows.append({**row, **as_row(result.estimate), "level": result.level, **bounds})
        return [row for row in rows if row["value"] is not None]

    def is_named(self, key: Key) -> bool:
        """Whether tables show what values of a key are called: of numbers only if each has a label."""
        values = self.levels[key.name]
        texts = any(isinstance(value, str) for value in values)
        return bool(key.labels) and (texts or all(str(value) in key.labels for value in values))

    def published(self, row: Row) -> Json:
        """Returns a row of a table as reports show it: keys by their titles, and names in place of values."""
        keys = {key.name: key for key in self.keys if key.name in row}
        named = {key.title: key.label(row[name]) if self.is_named(key) else row[name] for name, key in keys.items()}
        rest = {name: value for name, value in row.items() if name not in keys}
        return {**named, **rest, "measure": self.measures[str(row["measure"])].label}
