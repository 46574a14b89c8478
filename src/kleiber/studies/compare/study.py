"""The study `compare`: is one arm better than another, at equal what, and how sure is that?

Each arm enters at its learning rate of best mean over all seeds. An arm that is not tuned decides nothing. Claims say
what is compared and what is held equal. All other differences, and their trends over tokens and sizes, are shown beside
the claims and decide nothing. The studies `sparsity`, `moe_gain`, `routers` and `upcycling` are such claims.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING

from kleiber.config.errors import did_you_mean, listed
from kleiber.config.nested import flatten
from kleiber.records.catalog import Run
from kleiber.studies.claims import Claim, Levels, Question, decide_together, read_claims
from kleiber.studies.compare.arms import (
    Arm,
    ArmOf,
    arm_name,
    arms_in_order,
    near,
    not_ready,
    planned_arms,
    read_ladders,
    too_few,
)
from kleiber.studies.compare.costs import arms_without_latency, cost_table, uneven_speeds
from kleiber.studies.compare.differences import (
    Differences,
    Ladders,
    arm_named,
    arms_of,
    differences_drawn,
    name_with_keys,
    plain_arm,
    question,
)
from kleiber.studies.compare.labels import LOSS, arm_labels, axis_label, with_labels
from kleiber.studies.compare.measures import Measures, direction_of, panels_of
from kleiber.studies.compare.places import refuse_planned_twins
from kleiber.studies.compare.setup import arms_table, methods, question_of, recipe_table
from kleiber.studies.compare.tables import (
    Pairs,
    at_common_budget,
    multiplier_sentence,
    multiplier_table,
    tokens_table,
    trends,
)
from kleiber.studies.decision import QUANTITIES, from_row
from kleiber.studies.statements import answer_text, signed, with_intervals_of_claims
from kleiber.studies.study import ClaimStudy, Figures, Findings, PlannedPoint
from kleiber.types import Config, Count, Json, Row

if TYPE_CHECKING:
    from kleiber.studies.panel import Panel

COSTS = "Speed and memory"
TABLES = (
    "What the arms are", "What all arms share", "Differences", "Differences by training tokens",
    "Trends of differences", "Effective parameter multiplier", "Arms", COSTS,
)  # fmt: skip
DIFFERENT = 1.25  # factor between the sizes of arms from which a figure over sizes is drawn
FIGURES = ("differences", "time", "arms", "tuning", "tokens", "sizes")


@dataclass(frozen=True)
class Compare(ClaimStudy):
    """Compares arms that the design `arms` trained, and decides claims about them.

    arm      of a cell: set by the design
    measure  column of the table of runs, such as loss or val/sst2/accuracy, by which arms are tuned and compared; or a
             pattern that one column of each arm matches, such as val/*/accuracy where arms learn different tasks
    equal    what is held equal: tokens, flops, seconds (of training), params or memory (of inference)
    claims   see `kleiber.studies.claims.Claim`; `arm: a, against: b` is short for `of: {arm: a}, against: {arm: b}`,
             and `against: {moment: start}` is the arm before its last stage. Measure and equal are those of the study
             where a claim has none. Without claims: the second arm is better than the first, which means lower for
             losses and errors and higher for accuracies and other scores. A measure of unknown direction needs claims
             that state one
    keys     further keys of the config that tell arms apart, by the name that claims give them: {width: model.width}
    looks    number of times that the runs will be looked at, each time with more seeds, until the claims are decided.
             A study that is looked at more often decides nothing
    sizes    arms of one kind of model at several sizes: the report tells at which size their measure would be that
             of the arm of the first claim, at training tokens that all of them have
    panel    tables, figures and numbers of the answer that a panel declares, of each arm at its best learning rate; its
             claims are those of the study. Labels of its key with the source study.arm are those of the arms
    hidden   tables and figures that are left out, such as those of losses that do not compare between arms
    """

    arm: str | None = None
    measure: str = LOSS
    equal: str = "tokens"
    claims: Sequence[Config] = field(default_factory=tuple)
    keys: Mapping[str, str] = field(default_factory=dict)
    looks: Count = 1
    sizes: Sequence[str] = field(default_factory=tuple)
    panel: Panel | None = None
    hidden: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.hidden:
            if name not in (*TABLES, *FIGURES):
                hint = did_you_mean(name, [*TABLES, *FIGURES])
                raise ValueError(f"study.hidden: {name} must be one of {', '.join((*TABLES, *FIGURES))}.{hint}")
        if self.panel is not None and self.panel.claims:
            raise ValueError("study.panel.claims must be empty: write the claims into study.claims")
        if self.equal not in QUANTITIES:
            raise ValueError(f"study.equal={self.equal} must be one of {', '.join(QUANTITIES)}")
        if self.keys and not self.claims:
            raise ValueError(f"study.keys={dict(self.keys)} needs study.claims that say which arms to compare")
        self.read_claims({"arm": ("", ""), **dict.fromkeys(self.keys, (0, 1))})

    def read_claims(self, levels: Levels, better: str = "lower") -> list[Claim]:
        """The claims of the study about these arms. Raises ValueError, which names the key, for one that is invalid.

        levels  the values of the key `arm` and of `keys`
        better  which value of the measure is better, for the claim of a study without claims
        """
        if not self.claims:
            first, second, *_ = levels["arm"]
            of, against = {"arm": second}, {"arm": first}
            return [Claim(of=of, against=against, direction=better, measure=self.measure, equal=self.equal)]
        shared = {"measure": self.measure, "equal": self.equal}
        claims = read_claims(self.claims, "study.claims", shared, levels)
        for at, claim in enumerate(claims):
            if claim.equal not in QUANTITIES:
                raise ValueError(f"study.claims[{at}].equal={claim.equal} must be one of {', '.join(QUANTITIES)}")
        return claims

    def direction(self, runs: Sequence[Run]) -> str:
        """Whether a "lower" or a "higher" measure is better, as `direction_of`."""
        return direction_of(self.measure, self.claims, runs)

    def ladders(self, runs: Sequence[Run], arm_of: ArmOf = arm_name) -> dict[str, list[Arm]]:
        """The arms of the runs at each of their budgets, as `read_ladders`."""
        return read_ladders(runs, self.measure, arm_of, higher_is_better=self.direction(runs) == "higher")

    def labels(self, runs: Sequence[Run], arm_of: ArmOf = arm_name) -> dict[str, str]:
        """What figures call each arm: as the panel says it, else as `arm_labels`."""
        declared = {} if self.panel is None else self.panel.labels_of("study.arm")
        return {arm: declared.get(arm, text) for arm, text in arm_labels(runs, arm_of).items()}

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Warns of arms that have too few learning rates or seeds to be tuned, so that their claims are not tested.

        Raises ValueError for arms of equal configs, fewer than two arms, a claim about an arm without runs, and two
        planned runs of an arm at the same tokens, rate and seed.
        """
        planned = [point.config["study"].get("arm") for point in points]  # None: a base that arms start from
        arms = list(dict.fromkeys(str(name) for name in planned if name is not None))
        same_runs = [name for name in planned_arms([point.config for point in points]) if name not in arms]
        if same_runs:
            raise ValueError(
                f"design.arms: {same_runs[0]} has the same runs as another arm; does an override set its key?"
            )
        if len(arms) < 2:
            raise ValueError(f"design.arms={listed(arms)}: a comparison needs two arms or more")
        configs = [point.config for point in points if point.config["study"].get("arm") is not None]
        self.require_arms(self.levels(arms, configs))
        refuse_planned_twins(points, lambda config: self.name_of(config["study"].get("arm"), config))
        grids: dict[str, tuple[set[object], set[object]]] = {arm: (set(), set()) for arm in arms}
        for config in configs:
            rates, seeds = grids[str(config["study"]["arm"])]
            rates.add((config.get("optimizer") or {}).get("lr"))
            seeds.add(config["seed"])
        shortages = {arm: why for arm, grid in grids.items() if (why := too_few(*map(len, grid)))}
        return [f"claims will not be tested: for {arm}, {why}" for arm, why in shortages.items()]

    def name_of(self, arm: str | None, config: Config) -> str | None:
        """The name of an arm with the values of `keys` that a config of it has; None without an arm."""
        if arm is None or not self.keys:
            return arm
        values = flatten(config)
        return name_with_keys(arm, {key: values.get(source) for key, source in self.keys.items()})

    def levels(self, arms: Sequence[str], configs: Sequence[Config]) -> Levels:
        """The arms, and the values of `keys` in these configs in ascending order."""
        flat = [flatten(config) for config in configs] if self.keys else []
        values = {
            key: dict.fromkeys(node[source] for node in flat if source in node) for key, source in self.keys.items()
        }
        return {"arm": arms, **{key: sorted(each) for key, each in values.items()}}

    def require_arms(self, levels: Levels) -> None:
        """Raises ValueError where the study names an arm that does not exist, or a value that no run of it has."""
        combined = itertools.product(*(levels[key] for key in sorted(self.keys)))
        keyed = [dict(zip(sorted(self.keys), values, strict=True)) for values in combined]
        names = [name_with_keys(str(arm), values) for arm in levels["arm"] for values in keyed]
        sides = [arm_named(side) for claim in self.read_claims(levels) for _, side in claim.sides]
        for key, asked in (("claims", sides), ("sizes", self.sizes)):
            for name in asked:
                if name not in names:
                    raise ValueError(
                        f"study.{key}: {name} is not an arm of these runs; name some of {', '.join(names)}"
                    )

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates the differences of the claims and decides them."""
        return compare_arms(runs, self, arm_name)


def compare_arms(
    runs: Sequence[Run], study: Compare, arm_of: ArmOf, further: Sequence[Question] = (),
    panels: Mapping[str, str] | None = None,
) -> Findings:  # fmt: skip
    """Compares the arms of runs. `further` claims of a study are decided together with those about arms.

    panels  as in `figures`

    Raises ValueError for fewer than two arms, a claim or a size of another arm, and a measure that no run has.
    """
    level = study.level
    waiting = not_ready(runs, study.looks, arm_of)
    levels = study.levels(arms_in_order(runs, arm_of), configs(runs, arm_of))

    def named(run: Run) -> str | None:
        """The arm of a run with the values of the study's keys."""
        return study.name_of(arm_of(run), run.config)

    ladders, scores = study.ladders(runs, named), Measures(runs)
    claims = study.read_claims(levels, study.direction(runs))
    study.require_arms(levels)
    labels = study.labels(runs, named)
    plain = plain_arm(claims, next(iter(ladders)))
    questions = [*(question(claim, ladders, waiting, labels, plain) for claim in claims), *further]
    panels = panels or panels_of(runs, study.measure, named)
    findings = decide_arms(questions, claims, ladders, study, scores, labels, panels=panels)
    arms = at_common_budget(ladders)
    setup = {
        "What the arms are": arms_table(runs, named, arms, labels),
        "What all arms share": recipe_table(runs, named, arms),
    }
    shown = {title: rows for title, rows in setup.items() if rows and title not in study.hidden}
    findings = replace(findings, tables={**shown, **findings.tables})
    if study.panel is None:
        return findings
    return with_panel(findings, replace(study.panel, level=level), runs, arms, named)


def decide_arms(
    questions: Sequence[Question], claims: Sequence[Claim], ladders: Ladders, study: Compare, scores: Measures,
    labels: Mapping[str, str], quantities: Sequence[str | None] = tuple(QUANTITIES),
    panels: Mapping[str, str] | None = None,
) -> Findings:  # fmt: skip
    """Decides claims about arms, and shows all differences between them.

    scores      units and labels of the measures
    labels      what people call each arm
    quantities  what tables hold equal, as of `Differences`
    panels      as in `figures`
    """
    measure, level = study.measure, study.level
    results = decide_together(questions, level, study.looks, study.variance)
    each = results[0].level
    pairs, arms = compared_pairs(claims, ladders), at_common_budget(ladders)
    facts = {name: arm.facts for name, arm in arms.items()}
    speeds = {labels.get(name, name): arm.speeds for name, arm in arms.items() if COSTS not in study.hidden}
    differences = Differences(ladders, measure, level, study.variance, quantities)
    multipliers, warnings = multiplier_table(arm_named(claims[0].of), study.sizes, ladders, level)
    tables = {
        "Differences": [row for names in pairs for row in differences.side_by_side(names)],
        "Differences by training tokens": tokens_table(pairs, differences),
        "Trends of differences": trends(pairs, ladders, measure, level),
        "Effective parameter multiplier": multipliers,
        "Arms": [arm.row() for ladder in ladders.values() for arm in ladder],
        COSTS: cost_table(facts, pairs),
    }
    drawn = differences_drawn(results, pairs, replace(differences, level=each))
    charts = figures(claims, arms, tables, measure, scores, drawn, (level, each), labels, panels)
    return Findings(
        answer=" ".join(
            [*(multiplier_sentence(row, scores[measure]) for row in multipliers), answer_text("", results, level)]
        ),
        question=question_of(claims, ladders, labels, pairs),
        claims=results,
        caveats=[*warnings, *arms_without_latency(facts), *uneven_speeds(speeds)],
        tables={
            title: with_intervals_of_claims(rows, results, level)
            for title, rows in tables.items()
            if rows and title not in study.hidden
        },
        figures={name: draw for name, draw in charts.items() if name not in study.hidden},
        methods=methods(study, len(questions), tables),
        measure=measure,
    )


def with_panel(
    findings: Findings, panel: Panel, runs: Sequence[Run], arms: Mapping[str, Arm], arm_of: ArmOf
) -> Findings:
    """Returns the findings with the answer, tables, figures and methods of a panel before their own.

    arms  the panel has the runs of each at its best learning rate and its training tokens
    """

    def is_of_arm(run: Run, stage: Json) -> bool:
        """Whether a stage is that of an arm at its best rate."""
        arm, row = arms.get(str(arm_of(run))), run.stage_row(stage)
        return arm is not None and row["lr"] == arm.best_lr and near(row["tokens"], arm.facts["tokens"])

    view = panel.view(runs, is_of_arm)
    tables, charts = panel.shown(view, findings.claims)
    return replace(
        findings,
        question=panel.question or findings.question,
        answer=" ".join(filter(None, [view.answer(panel.answer, findings.claims), findings.answer])),
        tables={**tables, **findings.tables},
        figures={**charts, **findings.figures},
        methods=" ".join(filter(None, [panel.methods.strip(), findings.methods])),
    )


def configs(runs: Sequence[Run], arm_of: ArmOf) -> list[Config]:
    """The configs of the runs that belong to an arm."""
    return [run.config for run in runs if arm_of(run) is not None]


def compared_pairs(claims: Sequence[Claim], ladders: Ladders) -> Pairs:
    """The pairs of arms of the claims, changed and plain, and of every other arm with the first one."""
    pairs = dict.fromkeys((names[0], names[1]) for names in map(arms_of, claims) if len(names) == 2)
    named = {name for names in pairs for name in names}
    first, *rest = ladders
    pairs |= dict.fromkeys((name, first) for name in rest if name not in named)
    plain = plain_arm(claims, first)
    changed = [(b, a) if a == plain else (a, b) for a, b in pairs]
    return [names for names in changed if ladders.keys() >= set(names)]


def difference_lines(rows: Sequence[Row]) -> list[str]:
    """A line for each row of a table of differences: the difference with its interval, or why there is none."""
    return [
        f"  {row['arm']} - {row['against']} at equal {row['equal']:<18} "
        + "  ".join([*([] if row["value"] is None else [signed(from_row(row))]), *filter(None, [row["note"]])])
        for row in rows
    ]


def figures(
    claims: Sequence[Claim], arms: Mapping[str, Arm], tables: Mapping[str, Sequence[Row]], measure: str,
    scores: Measures, gaps: Mapping[str, Sequence[Row]], levels: tuple[float, float], names: Mapping[str, str],
    panels: Mapping[str, str] | None = None,
) -> Figures:  # fmt: skip
    """The figures: differences, arms, tuning, and those over tokens, sizes and other measures that there are.

    scores  units and labels of the measures
    gaps    differences by the label of their measure
    levels  confidence level of all intervals of the gaps together, and of each
    names   what the figures call each arm
    panels  the panel of each arm, of arms that do not compare between panels
    """
    label, better, (level, each) = axis_label(scores[measure]), scores[measure].better, levels
    arms = {names[name]: arm for name, arm in plain_first(arms, gaps).items()}
    gaps = {name: with_labels(rows, names) for name, rows in gaps.items()}
    apart = {names[name]: panel for name, panel in (panels or {}).items()} or None
    charts: Figures = {}
    if any(math.isfinite(value) for arm in arms.values() for value in arm.best_values.values()):
        charts["arms"] = lambda: _figures().side_by_side(arms, label, apart, better)
    if any(len(arm.values_by_rate) > 1 for arm in arms.values()):
        charts["tuning"] = lambda: _figures().tuning(arms, label, apart, better)
    if any(gaps.values()):
        charts["differences"] = lambda: _figures().differences(gaps, [*arms], level, each != level, apart)
    timed = with_labels([row for row in tables["Differences"] if row["equal"] == QUANTITIES["seconds"].label], names)
    timed = [{**row, "better": better} for row in timed if row["lo"] is not None]
    if len(timed) > 1:
        charts["time"] = lambda: _figures().differences({label: timed}, [*arms], level)
    if trajectory := with_labels(tables["Differences by training tokens"], names):
        charts["tokens"] = lambda: _figures().over_tokens(trajectory, [*arms], label, level, better)
    rows = with_labels([arm.row() for arm in arms.values()], names)
    across = {f"by_{claim.measure.rpartition('/')[2]}": claim.measure for claim in claims if claim.measure != measure}
    sizes = [float(arm.facts["params"]) for arm in arms.values() if arm.facts.get("params")]
    if sizes and (len(sizes) < len(arms) or max(sizes) > DIFFERENT * min(sizes)):
        across["sizes"] = "params"
    for name, column in across.items():
        placed = [row for row in rows if row.get(column) is not None]
        title = "parameters" if column == "params" else axis_label(scores[column])
        if placed:
            charts[name] = lambda placed=placed, x=(column, title): _figures().scatter(
                placed, [*arms], x, (measure, label), better
            )
    return charts


def plain_first(arms: Mapping[str, Arm], gaps: Mapping[str, Sequence[Row]]) -> Mapping[str, Arm]:
    """Returns the arms with that in front which all differences subtract, if there is one: the reference of figures."""
    plain = {row["against"] for rows in gaps.values() for row in rows}
    return {name: arms[name] for name in (*plain, *arms)} if len(plain) == 1 else arms


def _figures() -> ModuleType:
    """The module of figures, which imports altair."""
    from kleiber.studies.compare import figures

    return figures
