"""The study `panel`: a study that is a declaration of keys, measures, means, contrasts, claims and figures.

A panel reads finished runs into a table (`panel_table`), estimates what its config names, and decides its claims. A
class derived from it may add measures by `derive`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from kleiber.records.catalog import Run
from kleiber.studies import panel_figures
from kleiber.studies.claims import EQUAL, RATE, Claim, Levels, Question, Selection, decide_together, expand, read_claims
from kleiber.studies.compare.arms import LRS, not_ready, planned_arms
from kleiber.studies.compare.decision import Estimate, as_row, mean_estimate
from kleiber.studies.compare.places import OneRunStudy
from kleiber.studies.compare.rows import Rows, mean_of, seed_means
from kleiber.studies.panel_table import (
    Key,
    Measure,
    captured_keys,
    mapping,
    read_keys,
    read_measures,
    read_table,
    texts,
)
from kleiber.studies.statements import statement
from kleiber.studies.study import Figures, Findings
from kleiber.types import Count, Json, Natural

Node = Mapping[str, object]
CONTRAST = ("of", "against", "than", "each")  # keys of a claim that a table of differences has
TOLERANCE = 0.05  # relative difference up to which a quantity counts as equal


@dataclass(frozen=True, kw_only=True)
class Table:
    """A declared table of means or of differences.

    measures  of its rows
    by        keys whose combinations of levels have a row each
    where     values of further keys
    contrast  of, against, than and each of a claim, for a table of differences
    pooled    whether the intervals pool the noise of seeds over all cells of the table
    """

    title: str
    measures: Sequence[str]
    by: Sequence[str] = ()
    where: Selection = field(default_factory=dict)
    contrast: Selection = field(default_factory=dict)
    pooled: bool = False


def read_tables(nodes: Sequence[Node], key: str, measures: Sequence[str], contrast: bool) -> list[Table]:
    """Returns the tables of config nodes. Raises ValueError, which names the key, for one that is invalid."""
    tables = []
    allowed = CONTRAST if contrast else ("where", "noise")
    for at, node in enumerate(nodes):
        place, entry = f"study.{key}[{at}]", mapping(node, f"study.{key}[{at}]")
        unknown = [name for name in entry if name not in ("title", "measures", "by", *allowed)]
        if unknown or "title" not in entry:
            what = f"does not have the key {unknown[0]}" if unknown else "needs a title"
            raise ValueError(f"{place} {what}: its keys are title, measures, by, {', '.join(allowed)}")
        chosen = texts(entry.get("measures"), f"{place}.measures") or [*measures]
        absent = [name for name in chosen if name not in measures]
        if absent or entry.get("noise", "own") not in ("own", "pooled"):
            wrong = f"measures={absent[0]} must be one of {', '.join(measures)}" if absent else ""
            raise ValueError(f"{place}.{wrong or 'noise=' + str(entry['noise']) + ' must be own or pooled'}")
        tables.append(
            Table(
                title=str(entry["title"]), measures=chosen, by=texts(entry.get("by"), f"{place}.by"),
                where=mapping(entry.get("where"), f"{place}.where"), pooled=entry.get("noise") == "pooled",
                contrast={name: entry[name] for name in CONTRAST if name in entry},
            )
        )  # fmt: skip
    return tables


@dataclass(frozen=True, kw_only=True)
class Panel(OneRunStudy):
    """A study from its declaration.

    question   that the study answers
    keys       what tells runs apart: {size: stage.params.total}, see `panel_table.Key`
    measures   {loss: val/builtin/docs/loss}, see `panel_table.Measure`; parts in braces become keys
    samples    keys whose values make a sample; over other keys that a claim or a mean leaves open, values are averaged
    means      tables of means: {title, measures, by: [KEY], noise: own|pooled, where: {KEY: VALUE}}
    contrasts  tables of differences: {title, measures, of, against, than, each, by: [KEY]}
    claims     see `kleiber.studies.claims.Claim`
    figures    see `panel_figures`
    equal      what the two sides of a claim have equal unless both are measured on the same runs, or one started from
               the other: a key of EQUAL
    looks      number of times that the runs will be looked at, each time with more seeds
    methods    a paragraph on methods for a paper
    arm, generation  of a cell: set by the design
    """

    question: str = ""
    keys: Mapping[str, object] = field(default_factory=dict)
    measures: Mapping[str, object] = field(default_factory=dict)
    samples: Sequence[str] = ("seed",)
    means: Sequence[Node] = ()
    contrasts: Sequence[Node] = ()
    claims: Sequence[Node] = ()
    figures: Sequence[Node] = ()
    equal: str = "tokens"
    looks: Count = 1
    methods: str = ""
    arm: str | None = None
    generation: Natural = 0

    def __post_init__(self) -> None:
        if not self.measures:
            raise ValueError("study.measures={} must name at least one measure, such as {loss: val/builtin/docs/loss}")
        if self.equal not in EQUAL:
            raise ValueError(f"study.equal={self.equal} must be one of {', '.join(EQUAL)}")
        read_keys(self.keys, [])
        names = [measure.name for measure in read_measures(self.measures)]
        panel_figures.check(self.figures, [table.title for table in self.tables(names)])

    def tables(self, measures: Sequence[str]) -> list[Table]:
        """Returns the declared tables of the study, of which `measures` are the measures."""
        means = read_tables(self.means, "means", measures, contrast=False)
        return [*means, *read_tables(self.contrasts, "contrasts", measures, contrast=True)]

    def derive(self, table: Rows, keys: Sequence[Key]) -> Rows:
        """Returns the table with further measures that a derived class computes from it; here the table itself."""
        return table

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates means and contrasts, and decides the claims."""
        view = self.view(runs)
        results = decide_together(view.questions(runs), self.level, self.looks)
        declared = self.tables([*view.measures])
        tables = {table.title: view.contrasts(table) if table.contrast else view.means(table) for table in declared}
        charts: Figures = {str(node["name"]): partial(panel_figures.draw, node, view, tables) for node in self.figures}
        return Findings(
            question=self.question,
            answer=" ".join(result.sentence() for result in results),
            claims=results,
            tables={title: rows for title, rows in tables.items() if rows},
            figures=charts,
            methods=self.methods,
        )

    def view(self, runs: Sequence[Run]) -> View:
        """Returns the table of the runs with its keys and measures."""
        measures = read_measures(self.measures)
        keys = read_keys(self.keys, captured_keys(measures))
        table = self.derive(read_table(runs, keys, measures), keys)
        return View(
            self,
            table,
            keys,
            {measure.name: measure for measure in measures},
            planned_arms([run.config for run in runs]),
        )


@dataclass(frozen=True)
class View:
    """The table of a panel, and what is read from it."""

    study: Panel
    table: Rows
    keys: Sequence[Key]
    measures: Mapping[str, Measure]
    arms: Sequence[str]

    @cached_property
    def levels(self) -> Levels:
        """The values of each key: arms in the order of the design, numbers in ascending order, others as they come."""
        levels: dict[str, list[object]] = {}
        for key in self.keys:
            values = list(dict.fromkeys(self.table[key.name].dropna().tolist()))
            labels = [*(key.labels or {})]
            if all(isinstance(value, int | float) for value in values):
                values.sort()
            else:
                order = [*(label for label in labels if label not in self.arms), *self.arms]
                values.sort(key=lambda value, order=order: order.index(value) if value in order else len(order))
            levels[key.name] = values
        return levels

    def label(self, key: str, value: object) -> str:
        """Returns what people call a value of a key."""
        return next((entry.label(value) for entry in self.keys if entry.name == key), str(value))

    def rows(self, measure: str, side: Selection) -> Rows:
        """Returns the rows of a measure whose keys have the values of `side`. Raises ValueError for an unknown key."""
        part = self.table[self.table["measure"] == measure]
        for key, value in side.items():
            if key not in part:
                raise ValueError(f"{key} is not a key of this study: its keys are {', '.join(self.levels)}")
            part = part[part[key].isin(value)] if isinstance(value, list) else part[part[key] == value]
        return part

    def values(self, measure: str, side: Selection, columns: Sequence[str]) -> dict[tuple[object, ...], float]:
        """Returns a measure of a side by its values of `columns`."""
        part = self.rows(measure, side)
        values = [part[name].astype(object).where(part[name].notna(), None) for name in columns]
        return dict(zip(zip(*values, strict=True), part["value"].tolist(), strict=True))

    def samples(self, claim: Claim) -> list[float]:
        """Returns the result of a claim for each sample, averaged over the keys that the claim leaves open."""
        fixed = {key for _, side in claim.sides for key in side}
        sample = [name for name in self.study.samples if name not in fixed]
        free = [key.name for key in self.keys if key.name not in fixed and key.name not in sample]
        parts = [(sign, self.values(claim.measure, side, [*sample, *free])) for sign, side in claim.sides]
        by_sample: dict[tuple[object, ...], list[float]] = {}
        for place in parts[0][1]:
            if all(place in values for _, values in parts):
                gap = sum(sign * values[place] for sign, values in parts) - claim.less
                by_sample.setdefault(place[: len(sample)], []).append(gap)
        return [sum(gaps) / len(gaps) for gaps in by_sample.values()]

    def questions(self, runs: Sequence[Run]) -> list[Question]:
        """Returns the claims of the study with what the runs say about them."""
        claims = read_claims(self.study.claims, "study.claims", {"measure": next(iter(self.measures))}, self.levels)
        waiting = not_ready(runs, self.study.looks)
        return [self.question(claim, waiting) for claim in claims]

    def question(self, claim: Claim, waiting: str) -> Question:
        """Returns a claim with its samples; `waiting` says why the runs decide nothing yet."""
        measure = self.measures.get(claim.measure)
        if measure is None:
            raise ValueError(f"measure={claim.measure} is not a measure of this study: {', '.join(self.measures)}")
        equal, problem = self.guard(claim)
        claim = replace(claim, equal=equal)
        return Question(
            claim=claim, text=statement(claim, measure.label, measure.unit, self.label), values=self.samples(claim),
            unit=measure.unit, better=measure.better, problem=problem or waiting,
            tuned=None if equal is None else not problem and equal != RATE,
        )  # fmt: skip

    def guard(self, claim: Claim) -> tuple[str | None, str]:
        """Returns what the sides of a claim have equal, None where nothing needs to be, and why they decide nothing."""
        parts = [self.rows(claim.measure, side) for _, side in claim.sides]
        absent = [side for (_, side), part in zip(claim.sides, parts, strict=True) if part.empty]
        if absent:
            named = ", ".join(f"{key}={value}" for key, value in absent[0].items())
            return claim.equal, f"no finished run with {named} has {claim.measure}"
        runs = [set(part["run"]) for part in parts]
        bases = [
            {Path(base).name for base in part["base"]} | {Path(base).parent.name for base in part["base"]}
            for part in parts
        ]
        if claim.equal is None and all(
            runs[0] == other or other <= bases[0] or runs[0] <= bases[i] for i, other in enumerate(runs)
        ):
            return None, ""
        equal = claim.equal or self.study.equal
        rates = [set(part["lr"]) for part in parts]
        if equal != RATE:
            few = min(map(len, rates))
            return equal, (
                f"a side has {few} learning rate{'s' * (few != 1)}, and a tuned arm needs {LRS}: state "
                f"equal={RATE} to compare at one rate"
            )
        for name, column in (("learning rates", "lr"), ("training tokens", "tokens")):
            values = [value for part in parts for value in part[column].dropna()]
            if max(values) > (1 + TOLERANCE) * min(values):
                return equal, f"the sides differ in their {name}: {min(values):g} to {max(values):g}"
        return equal, ""

    def cells(self, table: Table) -> Iterator[tuple[Measure, dict[str, object]]]:
        """Yields each measure of a table with each combination of the levels of its keys."""
        for name in table.measures:
            for values in itertools.product(*(self.levels[key] for key in table.by)):
                yield self.measures[name], dict(zip(table.by, values, strict=True))

    def means(self, table: Table) -> list[Json]:
        """Returns a row for each measure and combination of keys: the mean with its interval."""
        if table.pooled:
            return [row for name in table.measures for row in self.pooled_means(self.measures[name], table)]
        rows = []
        for measure, cell in self.cells(table):
            values = self.samples(Claim(of={**table.where, **cell}, measure=measure.name))
            rows.append(self.row(measure, cell, measure.within(mean_estimate(values, self.study.level, measure.unit))))
        return [row for row in rows if row["value"] is not None]

    def pooled_means(self, measure: Measure, table: Table) -> list[Json]:
        """Returns the means of a measure, whose intervals pool the noise of seeds over all cells of the table."""
        part = self.rows(measure.name, table.where)
        if part.empty:
            return []
        cells: Rows = seed_means(part, table.by, "value", self.study.level)
        means = {tuple(row[key] for key in table.by): mean_of(row, measure.unit) for _, row in cells.iterrows()}
        every = itertools.product(*(self.levels[key] for key in table.by))
        named = [(dict(zip(table.by, cell, strict=True)), means[cell]) for cell in every if cell in means]
        return [self.row(measure, cell, measure.within(mean)) for cell, mean in named]

    def contrasts(self, table: Table) -> list[Json]:
        """Returns a row for each measure, value of `each` and combination of keys: the mean difference."""
        rows, level = [], self.study.level
        varied = [*mapping(table.contrast.get("each"), "each")]
        for measure, cell in self.cells(table):
            for claim in expand({**table.contrast, "measure": measure.name}, self.levels):
                chosen = replace(claim, of={**claim.of, **cell})
                named = {key: chosen.of[key] for key in (*varied, *cell)}
                rows.append(self.row(measure, named, mean_estimate(self.samples(chosen), level, measure.unit)))
        return [row for row in rows if row["value"] is not None]

    def row(self, measure: Measure, cell: Selection, estimate: Estimate | None) -> Json:
        """Returns the row of a table: keys by their titles, measure, value, lo, hi, n and unit."""
        titles = {key.name: key.title for key in self.keys}
        labelled = {key.name for key in self.keys if key.labels}
        named = {titles[key]: self.label(key, value) if key in labelled else value for key, value in cell.items()}
        return {**named, "measure": measure.label, **as_row(estimate)}
