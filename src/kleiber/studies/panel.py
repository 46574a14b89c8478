"""The study `panel`: a study that is a declaration of keys, measures, means, contrasts, claims and figures.

A panel reads finished runs into a table (`panel_table`), estimates what its config names (`panel_view`), and decides
its claims. A function that its config names may compute further measures from the table (`derive`).

A law of the panel is fitted to the values of a measure, with keys of the panel as its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import nan
from typing import TYPE_CHECKING

import numpy as np

from kleiber.config.errors import did_you_mean
from kleiber.config.nested import flatten
from kleiber.records.catalog import Run, score_of
from kleiber.studies import panel_figures
from kleiber.studies.claims import EXTREMES, Claim, Levels, Result, Selection, chosen_levels, decide_together, expand
from kleiber.studies.compare.arms import arm_name, not_ready, planned_arms
from kleiber.studies.compare.places import refuse_twins
from kleiber.studies.compare.rows import Rows
from kleiber.studies.designs.design import shortfall
from kleiber.studies.law_report import lines
from kleiber.studies.laws.analysis import Options, analyze_rows
from kleiber.studies.laws.catalog import find
from kleiber.studies.panel_declaration import (
    CONTRAST,
    MEANS,
    Key,
    Measure,
    Table,
    captured_keys,
    entries,
    mapping,
    pattern_of,
    read_function,
    read_keys,
    read_measures,
    read_tables,
    refuse_unknown,
)
from kleiber.studies.panel_table import HELD, SAME, STAGE, START, every_stage, inherited, levels_of, read_table
from kleiber.studies.panel_view import View
from kleiber.studies.statements import answer_text, read_answer, with_intervals_of_claims
from kleiber.studies.study import ClaimStudy, Figures, Findings, PlannedPoint
from kleiber.types import Config, Count, Json, Natural, Row
from kleiber.types.score import Score

if TYPE_CHECKING:
    from kleiber.charts.theme import Chart

SEED = "seed"
SPARE = 3  # rows that a law needs beyond its parameters
FLOPS = f"{SAME}flops"
ALIKE = 1.2  # largest ratio of the values of an input that do not tell its exponent, such as sizes up to a router's


@dataclass(frozen=True)
class PanelLaw:
    """A law as a panel declares it.

    name       of a law
    inputs     the key of the panel that each input of the law is: {N: size, D: tokens}
    measure    whose values it is fitted to
    bootstrap  number of resamples, of runs: branches of a trunk share its noise
    """

    name: str
    inputs: Mapping[str, str]
    measure: str
    bootstrap: int

    def plan_warnings(self, places: Sequence[Mapping[str, object]]) -> list[str]:
        """Returns a warning where planned runs have one value of an input; keys that only runs tell are not checked.

        places  values of the keys at each planned point
        """
        fixed = []
        for name, key in self.inputs.items():
            values = [float(value) for place in places if isinstance(value := place.get(key), (int, float))]
            if places and len(values) == len(places) and max(values) <= ALIKE * min(values):
                fixed.append(f"{name} ({key})")
        return [f"the law {self.name} cannot be fitted: all runs have one {' and '.join(fixed)}"] if fixed else []

    def fit(self, table: Rows, level: float) -> tuple[Json | None, list[Json]]:
        """Returns the content of laws.json and verdicts; None, and why, where the rows do not determine the law."""
        form, columns = find(self.name), [*self.inputs.values()]
        rows = table[table["measure"] == self.measure].dropna(subset=columns)
        rows = rows.sort_values([columns[0], "seed", *columns[1:]], ignore_index=True)
        rows = rows.astype(dict.fromkeys([*columns, "value"], float))
        why = (
            shortfall(form, {name: np.array(rows[column]) for name, column in self.inputs.items()}) if len(rows) else ""
        )
        if why is None and len(rows) < len(form.params) + SPARE:
            why = f"{len(rows)} rows are too few for the {len(form.params)} parameters of {self.name}"
        if why is not None:
            return None, [no_law(f"the law {self.name} is not fitted: {why or 'no run has the measure'}")]
        roles = {**self.inputs, "L": "value", **({"C": FLOPS} if rows[FLOPS].notna().all() else {})}
        try:
            law = analyze_rows(rows, form, roles, Options(bootstrap=self.bootstrap, cluster="run", level=level))
        except ValueError as error:
            return None, [no_law(f"the law {self.name} is not fitted: {error}")]
        return law, law["verdicts"]


def no_law(text: str) -> Json:
    """Returns the verdict that no law was fitted."""
    return {"code": "no_law", "level": "warn", "text": text}


def read_law(node: Row | None, measures: Sequence[str], keys: Sequence[str]) -> PanelLaw | None:
    """Returns the law of a panel's config. Raises ValueError, which names the key, for one that is invalid."""
    if node is None:
        return None
    entry = entries(node, "study.law", ("name", "inputs", "measure", "bootstrap"))
    inputs = {name: str(key) for name, key in mapping(entry.get("inputs"), "study.law.inputs").items()}
    form = find(str(entry.get("name")))
    if set(inputs) != set(form.inputs):
        raise ValueError(f"study.law.inputs={inputs} must name a key for each of {', '.join(form.inputs)}")
    refuse_unknown("study.law.inputs", [*inputs.values()], keys)
    measure, bootstrap = str(entry.get("measure", measures[0])), entry.get("bootstrap", 300)
    refuse_unknown("study.law.measure", [measure], measures)
    if not isinstance(bootstrap, int) or bootstrap < 0:
        raise ValueError(f"study.law.bootstrap={bootstrap} must be a whole number >= 0")
    return PanelLaw(form.name, inputs, measure, bootstrap)


def claims_at(place: str, node: Config, levels: Levels) -> list[Claim]:
    """Returns the claims of a node. Raises ValueError, which names the key, for an invalid one."""
    try:
        return expand(node, levels)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def is_of_stage(source: str) -> bool:
    """Whether a run has the value of a key only after its last stage."""
    return source.startswith(STAGE)


def refuse_selection(place: str, side: Selection, levels: Levels) -> None:
    """Raises ValueError, which names the key, for a value of a key that is neither one, a list, nor {not: [...]}."""
    for key, value in side.items():
        if isinstance(value, Mapping):
            try:
                chosen_levels(key, value, levels)
            except ValueError as error:
                raise ValueError(f"{place}: {str(error).removeprefix('each.')}") from None


def recorded_score(runs: Sequence[Run], table: Rows, measure: str) -> Score:
    """Returns unit, direction and label that the runs recorded for a measure.

    A measure of several metrics, such as the losses of several data sets, has its name as label.
    """
    metrics = table.loc[table["measure"] == measure, "metric"].unique().tolist()
    score = score_of(runs, metrics[0].removeprefix(START)) if metrics else Score(nan)
    return score if len(metrics) == 1 else replace(score, label=measure.replace("_", " "))


def means_of(tables: Mapping[str, Table]) -> list[str]:
    """Returns the titles of the tables of means."""
    return [title for title, table in tables.items() if table.contrast is None]


def _draw(node: Config, view: View, tables: panel_figures.Tables) -> Chart:
    from kleiber.studies.panel_charts import draw  # late, for the libraries of charts

    return draw(node, view, tables)


@dataclass(frozen=True, kw_only=True)
class Panel(ClaimStudy):
    """A study from its declaration.

    question   that the study answers
    keys       what tells runs apart: {size: stage.params.total}, see `panel_declaration.Key`
    measures   {loss: val/builtin/docs/loss}, see `panel_declaration.Measure`; parts in braces become keys
    samples    keys whose values make a sample; over other keys that a claim or a mean leaves open, values are averaged
    means      tables of means: {title, measures, by: [KEY], where: {KEY: VALUE}, noise: own|pooled, joint}
    contrasts  tables of differences: {title, measures, of, against, than, each, by: [KEY], joint}
    claims     see `kleiber.studies.claims.Claim`
    figures    see `panel_figures`
    answer     {text: "... {NAME} ...", values: {NAME: {measure, of, against, format}}}; None: made from the claims
    equal      what the two sides of a claim have equal unless both are measured on the same runs, or one started from
               the other: one of HELD
    looks      number of times that the runs will be looked at, each time with more seeds
    methods    a paragraph on methods for a paper
    arm, generation  of a cell: set by the design
    law        a law that is fitted to a measure, with keys as its inputs, see `PanelLaw`
    derive     name of a function of the table and the runs, which returns the table with the rows of further measures
               and columns of further keys; those have no source in the config
    """

    question: str = ""
    keys: Config = field(default_factory=dict)
    measures: Config = field(default_factory=dict)
    samples: Sequence[str] = (SEED,)
    means: Sequence[Config] = ()
    contrasts: Sequence[Config] = ()
    claims: Sequence[Config] = ()
    figures: Sequence[Config] = ()
    answer: Config | None = None
    equal: str = "tokens"
    looks: Count = 1
    methods: str = ""
    law: Config | None = None
    derive: str | None = None
    arm: str | None = None
    generation: Natural = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.measures:
            raise ValueError("study.measures={} must name at least one measure, such as {loss: val/builtin/docs/loss}")
        refuse_unknown("study.equal", [self.equal], HELD)
        measures, keys = self.read()
        names, key_names = [measure.name for measure in measures], [key.name for key in keys]
        if self.derive is not None:
            read_function(self.derive)
        for pattern in (source for measure in measures for source in measure.sources):
            pattern_of(pattern)
        refuse_unknown("study.samples", self.samples, [SEED, *key_names])
        read_law(self.law, names, key_names)
        tables, first = self.tables(measures), {"measure": names[0]}
        levels: Levels = {name: [0] for name in key_names}  # stand for those that the runs will have
        stated = [(f"study.claims[{at}]", node) for at, node in enumerate(self.claims)]
        for table in tables.values():
            refuse_unknown(f"{table.place}.by", table.by, key_names)
            stated.append((table.place, {"of": {}, **(table.contrast or {"of": table.where})}))
        claims = [(place, claim) for place, node in stated for claim in claims_at(place, {**first, **node}, levels)]
        for name, number in read_answer(self.answer, first, levels)[1].items():
            claims.append((f"study.answer.values.{name}", number.claim))
        for place, claim in claims:
            refuse_unknown(f"{place}.measure", [claim.measure], names)
            refuse_unknown(f"{place}.equal", [claim.equal or self.equal], HELD)
            for side in (side for _, side in claim.sides):
                refuse_unknown(place, [*side], key_names)
                refuse_selection(place, side, levels)
        panel_figures.check(self.figures, tables, names, key_names)

    def read(self) -> tuple[list[Measure], list[Key]]:
        """Returns the measures and the keys. Raises ValueError, which names the key, for one that is invalid."""
        measures = read_measures(self.measures, sources=self.derive is None)
        return measures, read_keys(self.keys, captured_keys(measures), sources=self.derive is None)

    def tables(self, measures: Sequence[Measure]) -> dict[str, Table]:
        """Returns the declared tables by title. Raises ValueError, which names the key, for one that is invalid."""
        names = [measure.name for measure in measures]
        means = read_tables(self.means, "study.means", names, MEANS)
        tables: dict[str, Table] = {}
        for table in (*means, *read_tables(self.contrasts, "study.contrasts", names, CONTRAST)):
            if table.title in tables:
                raise ValueError(
                    f"{table.place}.title={table.title} must differ from that of {tables[table.title].place}"
                )
            tables[table.title] = table
        return tables

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Warns of a law that the points cannot determine, and of claims about values that no point has.

        Raises ValueError as `refuse_twins` where planned runs have the same keys and seed, and for a key whose sources
        no point has.
        """
        measures, keys = self.read()
        placed, places = [], []
        for point in points:
            unknown = {source: point.folder.name for key in keys for source in key.sources if is_of_stage(source)}
            planned = {f"{STAGE}params.total": point.N, f"{STAGE}params.active": point.N, f"{STAGE}tokens": point.D}
            levels = levels_of(point.config, unknown | planned, keys)
            places.append(dict(levels))
            if None not in levels.values():
                levels[SEED] = point.config[SEED]
                place = ", ".join(f"{name} {value}" for name, value in levels.items())
                placed.append((place, point.folder.name, point.config))
        refuse_twins(placed)
        for key in (key for key in keys if key.sources and not any(place[key.name] is not None for place in places)):
            names, near = " or ".join(key.sources), did_you_mean(key.sources[0], flatten(points[0].config))
            raise ValueError(f"study.keys.{key.name}: no planned run has {names} in its config.{near}")
        law = read_law(self.law, [measure.name for measure in measures], [key.name for key in keys])
        return [*self.untested(places, measures, keys), *(() if law is None else law.plan_warnings(places))]

    def untested(self, places: Sequence[Row], measures: Sequence[Measure], keys: Sequence[Key]) -> list[str]:
        """Returns which claims name a value that none of the planned places has."""
        from_config = (key.name for key in keys if key.sources and not any(map(is_of_stage, key.sources)))
        planned = {name: list(dict.fromkeys(place[name] for place in places)) for name in from_config}
        texts, first = [], {"measure": measures[0].name}
        levels: Levels = {key.name: planned.get(key.name, [0]) for key in keys}
        for at, node in enumerate(self.claims):
            sides = [side for claim in expand({**first, **node}, levels) for _, side in claim.sides]
            pairs = [pair for side in sides for pair in side.items() if isinstance(pair[1], str | int | float)]
            for name, value in dict.fromkeys(pairs):
                if value not in (*planned.get(name, [value]), *EXTREMES):
                    names = ", ".join(map(str, planned[name]))
                    texts.append(f"study.claims[{at}] will not be tested: {name}={value} is none of {names}")
        return texts

    def view(self, runs: Sequence[Run], is_read: Callable[[Run, Json], bool] = every_stage) -> View:
        """Returns the table of the runs, and what it is read by.

        is_read  whether the table has a stage of a run
        """
        measures, keys = self.read()
        table = read_table(runs, keys, measures, is_read)
        if self.derive is not None:
            table = inherited(read_function(self.derive)(table, runs)).fillna({"base": ""})
            table = table.assign(metric=table["metric"].fillna(table["measure"]))
        described = [measure.as_recorded(recorded_score(runs, table, measure.name)) for measure in measures]
        return View(
            table=table, keys=keys, measures={measure.name: measure for measure in described},
            tables=self.tables(measures), arms=planned_arms([run.config for run in runs]),
            samples=self.samples, level=self.level, equal=self.equal,
        )  # fmt: skip

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates means and contrasts, and decides the claims."""
        view = self.view(runs)
        waiting = not_ready(runs, self.looks, lambda run: arm_name(run) or "")
        results = decide_together(view.questions(self.claims, waiting), self.level, self.looks, self.variance)
        tables, charts = self.shown(view, results)
        stated = read_law(self.law, [*view.measures], [key.name for key in view.keys])
        law, verdicts = (None, []) if stated is None else stated.fit(view.table, self.level)
        return Findings(
            question=self.question,
            answer=answer_text(view.answer(self.answer, results), results, self.level),
            claims=results,
            verdicts=verdicts,
            caveats=view.caveats(results),
            tables=tables,
            means=means_of(view.tables),
            figures=charts,
            law=law,
            text=() if law is None else lines(law),
            methods=self.methods.strip(),
        )

    def shown(self, view: View, results: Sequence[Result] = ()) -> tuple[dict[str, list[Json]], Figures]:
        """Returns the tables by title, as reports show them, and functions that draw the figures.

        results  claims, whose intervals figures draw where their tables have the same numbers
        """
        tables = {title: view.rows_of(table) for title, table in view.tables.items()}
        means = means_of(view.tables)
        rows = {
            title: with_intervals_of_claims(table, results, self.level, means=title in means)
            for title, table in tables.items()
        }
        rows[panel_figures.CLAIMS] = view.claim_rows(results)
        charts: Figures = {
            str(node["name"]): partial(_draw, node, view, rows)
            for node in self.figures
            if panel_figures.is_shown(node, view, rows)
        }
        return {title: [view.published(row) for row in rows] for title, rows in tables.items() if rows}, charts

    def labels_of(self, source: str) -> dict[str, str]:
        """Returns what people call the values of the key with a source; empty without such a key."""
        _, keys = self.read()
        return next((dict(key.labels) for key in keys if source in key.sources), {})
