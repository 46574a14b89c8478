"""The command `kleiber compare`: arms of finished runs, of anybody's table of runs, or models by the items of a task.

Numerical packages are imported when the command runs, so that `kleiber --help` is fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kleiber.config.errors import did_you_mean
from kleiber.records.terminal import print_line
from kleiber.studies.fit_command import html_path, import_page_module

if TYPE_CHECKING:
    from kleiber.records.catalog import Run
    from kleiber.studies.study import Findings
    from kleiber.types import Json

LEARNING_RATE_NOTE = (
    "note: an arm is tuned over learning rates, so an arm that is a rate never is: to choose one, see kleiber runs "
    "{folder} --columns run,{arm},seed,loss --sort loss"
)
TASK = "Compare by item: runs by EVALUATION/DATA, or folders of lm-eval or lighteval."
PLACES = "Folders of runs, runs.jsonl.gz files; with --map a table; with --task runs or folders of results."
MAP = "arm=COL,value=COL,seed=COL[,lr=COL,size=COL,tokens=COL,flops=COL,seconds=COL]: the columns of a table of runs."
Places = Annotated[list[Path], typer.Argument(metavar="DIR|TABLE...", help=PLACES)]
Map = Annotated[str | None, typer.Option(metavar="ROLE=COL,...", help=MAP)]
Claims = Annotated[
    Path | None, typer.Option(metavar="FILE.yaml", help="Claims about the arms. Default: each beats the baseline.")
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=TASK,
    ),
]
Page = Annotated[
    Path | None, typer.Option(metavar="OUT.html", callback=html_path, help="Write a page with figures to this file.")
]
ArmKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", help="Key or group whose values are the arms, such as model. Default: that of study=compare."
    ),
]
Measure = Annotated[
    str | None,
    typer.Option(metavar="METRIC", help="What is compared, such as val/sst2/accuracy. Default of runs: loss."),
]
Equal = Annotated[
    str | None,
    typer.Option(help="Held equal: tokens, flops, params, memory or seconds. Default: tokens, if they are known."),
]
Baseline = Annotated[
    str | None, typer.Option(metavar="ARM", help="Arm that the others are compared with. Default: the first.")
]
Better = Annotated[
    str | None, typer.Option(help="lower or higher: which value is better. Default: as runs recorded it, or lower.")
]
Level = Annotated[float, typer.Option(help="Confidence level of all intervals together.")]
Variance = Annotated[
    str, typer.Option(help="moderated or separate: Student's t and Bonferroni's level for each claim.")
]
JsonFile = Annotated[Path | None, typer.Option(metavar="OUT.json", help="Write the findings to this file.")]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="Exit with 0 whatever the decision is.")]


def compare(
    folders: Places, arm: ArmKey = None, map: Map = None, task: Task = None, measure: Measure = None,
    equal: Equal = None, baseline: Baseline = None, claims: Claims = None, better: Better = None, level: Level = 0.9,
    variance: Variance = "moderated", json: JsonFile = None, out: Page = None, exit_zero: ExitZero = False,
) -> None:  # fmt: skip
    """Compare arms: is one better than another, at equal what, and how sure?

    Without --map and --task, DIR are folders of runs, and the second arm is compared with the first.

    Exit code 0 if all claims are supported, 5 if one is contradicted, 3 if one is undecided or was not tested.
    """
    from kleiber.inference.contrasts import VARIANCES
    from kleiber.studies.decision import QUANTITIES

    if not 0 < level < 1:
        raise ValueError(f"--level {level} must be between 0 and 1, such as 0.9")
    if variance not in VARIANCES:
        raise ValueError(f"--variance {variance} must be one of {', '.join(VARIANCES)}")
    if equal not in (None, *QUANTITIES):
        near = did_you_mean(equal, QUANTITIES)
        raise ValueError(f"--equal {equal} must be one of {', '.join(QUANTITIES)}.{near}")
    pages = None if out is None else import_page_module("report")
    settings = {"level": level, "variance": variance}
    runs: Sequence[Run] = ()
    if map is None and task is None:
        refuse_options({"--baseline": baseline, "--claims": claims}, "is for --map or --task; runs have --arm KEY")
        runs, findings, notes = compare_runs(folders, arm or "study.arm", measure or "loss", equal, better, settings)
    else:
        refuse_options({"--arm": arm}, "is for folders of runs; a table has --map arm=COL")
        refuse_options({"--map": map} if task else {"--measure": measure}, "is not for --task" if task else
                       "is for folders of runs; a table has --map value=COL")  # fmt: skip
        asked = {**settings, "claims": read_claims_file(claims), "baseline": baseline, "better": better or "lower"}
        if task is not None:
            refuse_options({"--equal": equal}, "is not for --task, whose models are compared by items")
            findings, notes = compare_results(folders, task, measure, asked, better), []
        else:
            findings, notes = compare_rows(folders, map or "", {**asked, "equal": equal})
    print_line("\n".join([findings.answer, *difference_lines(findings), *notes]))
    write_findings(findings, folders[0], runs, level, json, out, pages, exit_zero)


def refuse_options(options: Mapping[str, object], why: str) -> None:
    """Raises ValueError for an option that was set and does not go with the others."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} {value} {why}: remove it")


def compare_runs(
    folders: Sequence[Path], arm: str, measure: str, equal: str | None, better: str | None, settings: Json
) -> tuple[list[Run], Findings, list[str]]:
    """Compares the arms of finished runs. Returns the runs, the findings, and notes on the arms."""
    from kleiber.launch.arms_by_key import LEARNING_RATE, arms_by_key, claims_of_direction, further_differences
    from kleiber.records.catalog import read_runs
    from kleiber.records.completeness import incomplete_runs_named
    from kleiber.studies.compare import study
    from kleiber.studies.compare.arms import arms_in_order, planned_looks

    selected = [run for folder in folders for run in read_runs(folder)]
    with incomplete_runs_named(selected):
        arm_of, further = arms_by_key(arm, selected), further_differences(arm, selected)
        claims = claims_of_direction(better, measure, arms_in_order(selected, arm_of), selected)
        looks = planned_looks(selected, arm_of)
        options = study.Compare(measure=measure, equal=equal or "tokens", claims=claims, looks=looks, **settings)
        findings = study.compare_arms(selected, options, arm_of)
    notes = [LEARNING_RATE_NOTE.format(folder=folders[0], arm=arm)] if arm == LEARNING_RATE else []
    notes += [f"note: the arms also differ in {', '.join(further)}, which may be why"] if further else []
    return selected, findings, notes


def compare_rows(tables: Sequence[Path], map: str, asked: Json) -> tuple[Findings, list[str]]:
    """Compares the arms of a table. Returns the findings, and what the table cannot be checked for."""
    from kleiber.studies.compare.foreign_table import Options, compare_table, read_foreign
    from kleiber.studies.laws.filters import parse_map

    if len(tables) > 1:
        raise ValueError(f"--map reads one table, not {len(tables)}: {' '.join(str(table) for table in tables)}")
    options = Options(**asked)
    findings = compare_table(read_foreign(tables[0], parse_map(map)), options)
    return findings, [f"note: {caveat['text']}" for caveat in findings.caveats]


def compare_results(
    folders: Sequence[Path], task: str, measure: str | None, asked: Json, better: str | None
) -> Findings:
    """Compares models by the items of a task, in runs or folders of results."""
    from kleiber.studies.compare.foreign_table import Options
    from kleiber.studies.compare.item_scores import compare_items, read_item_scores

    models = [read_item_scores(folder, task) for folder in folders]
    return compare_items(models, task, measure, Options(**asked), better)


def read_claims_file(path: Path | None) -> list[Json]:
    """Returns the claims of a YAML file: a list, or the list `claims` of a mapping. Raises ValueError for another."""
    from kleiber.records.files import read_yaml

    if path is None:
        return []
    content = read_yaml(path)
    claims = content.get("claims") if isinstance(content, dict) else content
    if not isinstance(claims, list) or not claims or not all(isinstance(claim, dict) for claim in claims):
        raise ValueError(f"--claims {path} must be a list of claims, such as - {{arm: muon, against: adamw}}")
    return claims


def difference_lines(findings: Findings) -> list[str]:
    """Returns a line for each row of the table of differences."""
    from kleiber.studies.compare.study import difference_lines

    return difference_lines(findings.tables.get("Differences", ()))


def write_findings(
    findings: Findings, source: Path, runs: Sequence[Run], level: float, json: Path | None, out: Path | None,
    pages: object, exit_zero: bool,
) -> None:  # fmt: skip
    """Writes findings.json and the page where they are wanted, and ends with the exit code of the claims."""
    from kleiber.records.files import write_json, write_text
    from kleiber.studies.report import page, run_rows, title_of
    from kleiber.studies.study import content

    compared = content(findings, title_of(source), runs, level)
    if json is not None:
        write_json(json, compared)
    if out is not None and pages is not None:
        charts = {name: make() for name, make in findings.figures.items()}
        write_text(out, page(compared, findings, charts, run_rows(runs) if runs else []))
        print_line(f"report: {out}")
    raise typer.Exit(0 if exit_zero else compared["exit_code"])
