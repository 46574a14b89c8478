"""The base of all studies: their findings, options and planned points, and the content of findings.json.

`analyze(runs)` turns finished runs into `Findings`. A study reads only files that its runs wrote. Every estimate has an
interval, or a reason why it has none. Figures are functions, since drawing them needs the extra `report`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pandas as pd
from annotated_types import Gt, Lt

from kleiber.config.cost import add_costs
from kleiber.config.errors import ConfigError, ExitCode
from kleiber.config.model_size import size, vocabulary_of
from kleiber.config.stages import Budget, quantity, stage_configs
from kleiber.config.targets import build, class_attribute
from kleiber.inference.contrasts import VARIANCES
from kleiber.records.catalog import Run, counts, frame
from kleiber.studies.claims import Result, overall
from kleiber.studies.decision import Decision
from kleiber.studies.laws.headline import not_identified
from kleiber.studies.statements import claim_json, with_intervals_of_claims
from kleiber.types import Config, Count, Json, NonNegative, Row

SCHEMA = "kleiber.findings/2"
SCHEMA_FILE = Path(__file__).with_name("findings.schema.json")
EPOCH_TOKENS = 1e6  # placeholder for the tokens of data that is not read
Level = Annotated[float, Gt(0), Lt(1)]
Figures = dict[str, Callable[[], object]]  # functions that draw an altair chart, by the name of its file


@dataclass(frozen=True)
class Findings:
    """The results of a study.

    answer    answers the question of the study with a number and its interval, or says what could not be determined
    question  what the study asks; "" for the title of its kind
    claims    the claims of the study with their decisions, all of one family
    estimates further estimates with intervals, in the columns of `Result.estimate_json`
    verdicts  on fitted laws, each with code, level (refuse, warn, note) and text
    caveats   what limits the results, each with code and text, such as arms that are not tuned
    tables    rows of plain values, by title
    means     titles of tables of means
    figures   functions that draw an altair chart, by file name
    law       the content of laws.json; None if the study fits no law
    text      lines below the figures of the report
    methods   a paragraph on methods for a paper, with sources
    measure   the measure that the study compares; "" for several or none
    """

    answer: str
    question: str = ""
    claims: Sequence[Result] = ()
    estimates: Sequence[Row] = ()
    verdicts: Sequence[Row] = ()
    caveats: Sequence[Row] = ()
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    means: Collection[str] = ()
    figures: Figures = field(default_factory=dict)
    law: Json | None = None
    text: Sequence[str] = ()
    methods: str = ""
    measure: str = ""


@dataclass(frozen=True)
class PlannedPoint:
    """The end of a planned run or branch: folder and config of the run, active parameters N and training tokens D.

    For a model without a size formula, N is a placeholder that differs between models, and D follows from it if the
    budget is given in FLOPs or tokens per parameter. D is not `counted` but a million tokens for each epoch of data.
    """

    folder: Path
    config: Config
    N: float
    D: float
    counted: bool = True


@dataclass(frozen=True, kw_only=True)
class Study:
    """Base class of all studies, the choices of the config group `study`, with the options that every study has.

    level      confidence level of the study's intervals; None for a study without any
    max_cells  runs only the first cells of the plan, at most this many
    seeds      number of seeds; replaces that of the design
    """

    is_study: ClassVar[bool] = True  # read from the source: a config that names another class does not import it
    level: ClassVar[float | None] = None

    max_cells: Count | None = None
    seeds: Count | None = None

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Analyzes the runs. Raises ValueError if they cannot answer the question of the study."""
        raise NotImplementedError

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Returns warnings about what the planned points cannot determine, before anything is trained.

        Raises ValueError if they cannot answer the question of the study at all.
        """
        return []

    def law_inputs(self) -> Sequence[str]:
        """Returns the inputs of the law that the study fits; empty if it fits none."""
        return ()


@dataclass(frozen=True, kw_only=True)
class IntervalStudy(Study):
    """Options of a study with intervals: `level` is their confidence level."""

    level: Level = 0.9  # type: ignore[misc]  (an option here, a fact of the classes that have no intervals)


@dataclass(frozen=True, kw_only=True)
class ClaimStudy(IntervalStudy):
    """Options of a study that decides claims by values over seeds.

    variance  moderated: the variance of seeds is shrunk to that of the other cells of the study, as far as these agree
              (Smyth 2004, doi:10.2202/1544-6115.1027), and claims are decided by joint intervals; separate: each claim
              has Student's t of its own values, and Bonferroni's level
    """

    variance: Literal["moderated", "separate"] = "moderated"

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise ValueError(f"study.variance={self.variance} must be one of {', '.join(VARIANCES)}")


@dataclass(frozen=True, kw_only=True)
class EqualTargetStudy(ClaimStudy):
    """Options of a study that compares methods at the same target loss.

    tolerance  relative margin; a loss up to (1 + tolerance) times the reference loss counts as reaching it
    """

    tolerance: NonNegative = 0.02


def build_study(config: Config) -> Study | None:
    """Instantiates the study of a config; returns None if it has none. Raises ConfigError for invalid options."""
    if config.get("study") is None:
        return None
    try:
        return build(config["study"])
    except ValueError as error:
        raise ConfigError(str(error)) from error


def planned_points(configs: Mapping[Path, Config]) -> list[PlannedPoint]:
    """Returns a point for every branch of a trunk and for the end of every other run, from their configs by folder."""
    unknown: dict[str, float] = {}
    points = []
    for folder, config in configs.items():
        N, flops_per_token = size_of(config, unknown)
        stages = config.get("stages") or {}
        if stages.get("branches"):
            points += [PlannedPoint(folder, config, N, quantity(tokens)) for tokens in stages["branches"]]
        else:
            ends = [tokens_of(stage, N, flops_per_token) for stage in stage_configs(config).values()]
            D, counted = sum(tokens for tokens, _ in ends), all(in_tokens for _, in_tokens in ends)
            points.append(PlannedPoint(folder, config, N, D, counted))
    return points


def tokens_of(stage: Config, N: float, flops_per_token: float) -> tuple[float, bool]:
    """Returns the training tokens of a stage, and whether its budget counts them; if not, it is in epochs."""
    batch, budget = quantity(stage["batch"]["tokens"]), Budget(**stage["budget"])
    epochs = class_attribute(str(stage["objective"]["_target_"]), "default_epochs")
    D = budget.num_tokens(
        batch_tokens=batch, active_params=N, flops_per_token=flops_per_token, epoch_steps=EPOCH_TOKENS / batch,
        default_epochs=epochs,
    )  # fmt: skip
    return D, budget.epochs is None if budget.limits() else epochs is None


def size_of(config: Config, unknown: dict[str, float]) -> tuple[float, float]:
    """Returns the active parameters and the FLOPs per token.

    For a model without a formula, the parameters are a placeholder that no other model has; `unknown` records them.
    """
    try:
        model_size = size(config["model"], vocabulary_of(config["data"]))
        return float(model_size.active), model_size.flops_per_token
    except (ValueError, KeyError):
        N = unknown.setdefault(str(config["model"]), 1e5 * 1.7 ** len(unknown))
        return N, 6 * N


def fine_tunes(points: Sequence[PlannedPoint]) -> list[dict[str, float]]:
    """Returns a row for each run that starts from another planned run.

    N is the number of parameters, M the pre-training tokens per parameter, D the new tokens, "steps" all tokens of the
    run including replayed ones, and p the replayed fraction. Raises ValueError if no run starts from another.
    """
    bases = {point.folder: point for point in points}
    rows = []
    for point in points:
        path = Path(str((point.config.get("init") or {}).get("path")))
        base = bases.get(path) or bases.get(path.parent)
        if base is not None:
            p = float(((point.config.get("retention") or {}).get("replay") or {}).get("fraction", 0.0))
            M = round(base.D / base.N, 1)
            rows.append({"N": point.N, "M": M, "D": point.D * (1 - p), "steps": point.D, "p": p})
    if not rows:
        raise ValueError(
            "no planned run fine-tunes another planned run, so there is nothing to fit a law of forgetting to"
        )
    return rows


def finished_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns a row for the end of every finished run and branch, sorted by active parameters, seed and tokens.

    Raises ValueError if no run has finished, or if a run has no validation loss or more than one.
    """
    finished = [run for run in runs if run.finished]
    if not finished:
        raise ValueError("none of these runs has finished, so there is no loss to fit; finish or restart the sweep")
    rows = frame(finished)
    if bool(rows["loss"].isna().any()):
        raise ValueError("every run must have exactly one validation loss: this study fits the loss on one data set")
    return rows.sort_values(["active", "seed", "tokens"], ignore_index=True)


def missing(runs: Sequence[Run]) -> list[str]:
    """Returns the name and status of each run that has not finished."""
    return [f"{run.name} ({run.status})" for run in runs if not run.finished]


def content(findings: Findings, study: str, runs: Sequence[Run], level: float | None = None) -> Json:
    """Returns the content of findings.json.

    level           confidence level at which the intervals of all claims hold together; None without intervals
    missing         runs that have not finished
    cost            see `kleiber.config.cost.add_costs`; left out where no run has noted any
    refused         whether some verdict has the level refuse
    not_identified  parameters of the law that the runs do not determine
    """
    costs = add_costs([stage.get("cost") for run in runs for stage in run.stages])
    decision = overall(findings.claims)
    refused = any(verdict["level"] == "refuse" for verdict in findings.verdicts)
    further = with_intervals_of_claims(findings.estimates, findings.claims, level)
    unidentified = [] if findings.law is None else not_identified(findings.law)
    return {
        "schema": SCHEMA,
        "study": study,
        "question": findings.question,
        "answer": findings.answer,
        "level": level,
        "measure": findings.measure or None,
        "decision": decision and str(decision),
        "exit_code": int(exit_code(decision, refused or bool(unidentified))),
        "claims": [claim_json(result) for result in findings.claims],
        "estimates": [*(result.estimate_json() for result in findings.claims), *further],
        "verdicts": [dict(verdict) for verdict in findings.verdicts],
        "caveats": [dict(caveat) for caveat in findings.caveats],
        "tables": {
            title: with_intervals_of_claims(rows, findings.claims, level, means=title in findings.means)
            for title, rows in findings.tables.items()
        },
        "figures": [*findings.figures],
        "runs": counts(runs),
        "missing": missing(runs),
        "seconds": fsum(run.summary.get("seconds") or 0 for run in runs),
        **({"cost": costs} if costs else {}),
        "laws": "laws.json" if findings.law is not None else None,
        "refused": refused,
        "not_identified": unidentified,
    }


def exit_code(decision: Decision | None, law_undetermined: bool) -> ExitCode:
    """Returns the exit code of a study: that of its worst claim, and 3 for a law that is refused or not identified."""
    if decision == Decision.CONTRADICTED:
        return ExitCode.CONTRADICTED
    if law_undetermined or decision not in (None, Decision.SUPPORTED):
        return ExitCode.UNDECIDED
    return ExitCode.DONE
