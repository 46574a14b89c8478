"""The command `kleiber gate`: begins a stream, decides proposals, and shows what was decided."""

from __future__ import annotations

import secrets
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from kleiber.config import ExitCode, Preempted
from kleiber.records import make_folder, print_line, wait_for_lock
from kleiber.types import Json
from kleiber_topics.gate import chain
from kleiber_topics.gate.engine import Gate
from kleiber_topics.gate.recipes import Recipe, check_command, commit_of, sources
from kleiber_topics.gate.report import decision_json, decision_lines, status_json, status_lines, write_report
from kleiber_topics.gate.runner import RunFailed
from kleiber_topics.gate.settings import Settings, pairs_of, require_own, with_hashes

ACTIONS = ("init", "propose", "report", "status")
OF_INIT = (
    "measure", "metric", "better", "cwd", "level", "error", "horizon", "seeds", "max_seeds", "budget_runs", "take",
    "timeout", "reserve", "set", "confirm_at", "protect",
)  # fmt: skip
CODES = {"keep": ExitCode.DONE, "discard": ExitCode.CONTRADICTED, "undecided": ExitCode.UNDECIDED}

Action = Annotated[str, typer.Argument(metavar="init|propose|report|status", help="What to do.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the stream.")]
Name = Annotated[str | None, typer.Option(help="propose: a name for the change.")]
Command = Annotated[
    str | None, typer.Option(help="init, propose: a command line with {seed} that trains and prints the metric.")
]
Overrides = Annotated[
    str | None, typer.Option(help="init: the plain recipe, as of kleiber train; propose: the change.")
]
Ref = Annotated[str | None, typer.Option(metavar="GIT_REF", help="propose: a commit with the change.")]
Metric = Annotated[
    str | None, typer.Option(metavar="REGEX", help="init: how the metric is printed; one group is the number.")
]
Measure = Annotated[str | None, typer.Option(metavar="METRIC", help="init: metric of a run of kleiber. Default: loss.")]
Better = Annotated[str | None, typer.Option(help="init: lower (default) or higher: which value is better.")]
Place = Annotated[Path | None, typer.Option(metavar="FOLDER", help="init: where commands run. Default: here.")]
Level = Annotated[float | None, typer.Option(help="init: 1 - the error of the stream. Default: 0.9.")]
Error = Annotated[
    str | None, typer.Option(help="init: keep bounds the share of false keeps (default), stream the chance of any.")
]
Horizon = Annotated[int | None, typer.Option(min=1, help="init: planned proposals. Default: 200.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="init: runs of the first look. Default: 1.")]
MaxSeeds = Annotated[int | None, typer.Option(min=1, help="init: most runs of a changed recipe. Default: 12.")]
BudgetRuns = Annotated[int | None, typer.Option(min=1, help="init: most runs of the stream.")]
TakeOption = Annotated[
    str | None, typer.Option(help="init: once (default) or last: which metric of several that are printed.")
]
Timeout = Annotated[float | None, typer.Option(help="init: seconds after which a run has failed.")]
Reserve = Annotated[
    str | None,
    typer.Option(metavar="TEXT|DATA", help="init: what fills {reserve} in a confirmation; of kleiber, data."),
]
Values = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="init: what fills {KEY}; may be repeated.")]
ConfirmAt = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="init: what fills {KEY} in a confirmation.")
]
Protect = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="init: files that no proposal may change.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")]


def gate(
    action: Action, folder: Folder, name: Name = None, command: Command = None, overrides: Overrides = None,
    ref: Ref = None, metric: Metric = None, measure: Measure = None, better: Better = None, cwd: Place = None,
    level: Level = None, error: Error = None, horizon: Horizon = None, seeds: Seeds = None,
    max_seeds: MaxSeeds = None, budget_runs: BudgetRuns = None, take: TakeOption = None, timeout: Timeout = None,
    reserve: Reserve = None, set: Values = None, confirm_at: ConfirmAt = None, protect: Protect = None,
    json: AsJson = False,
) -> None:  # fmt: skip
    """Keep only changes to a training recipe that are better than its noise, over a whole stream of proposals.

    init begins a stream with the plain recipe; propose runs a change beside it and decides; report writes a page.

    Exit code of propose: 0 if the change is kept, 5 if it is discarded, 3 if it is undecided, 1 if a run failed.
    """
    options = {key: value for key, value in locals().items() if key in OF_INIT and value not in (None, [])}
    if action not in ACTIONS:
        raise ValueError(f"kleiber gate {action}: must be one of {', '.join(ACTIONS)}")
    proposed = {"name": name, "command": command, "overrides": overrides, "ref": ref}
    allowed = {"init": ("command", "overrides"), "propose": (*proposed,)}.get(action, ())
    for option, value in proposed.items():
        if value is not None and option not in allowed:
            raise ValueError(f"--{option} {value} is not for kleiber gate {action}: remove it")
    if action != "init" and options:
        option = next(iter(options))
        raise ValueError(
            f"--{option.replace('_', '-')} is fixed by kleiber gate init: remove it, or begin a new stream"
        )
    if action == "init":
        begin(folder, command, overrides, options)
        return
    if not (folder / chain.FILE).is_file():
        raise ValueError(f"{folder} has no {chain.FILE}: begin a stream with kleiber gate init {folder} --command ...")
    require_own(folder / chain.FILE)
    if action == "propose":
        raise typer.Exit(decide(folder, name, command, overrides, ref, json))
    stream = Gate.load(folder)
    if action == "report":
        print_line(f"report: {write_report(stream)}", err=json)
    print_line(as_text(status_json(stream)) if json else "\n".join(status_lines(stream)))


def as_text(value: Json) -> str:
    """Returns an object as JSON."""
    return dumps(value, indent=1)


def begin(folder: Path, command: str | None, overrides: str | None, options: Json) -> None:
    """Begins a stream. Raises ValueError for settings that do not fit, and for a folder that has one."""
    if (command is None) == (overrides is None):
        raise ValueError("kleiber gate init needs either --command with --metric, or --overrides with --measure")
    if (command is None) != ("metric" not in options) or ("measure" in options and command is not None):
        raise ValueError("--metric goes with --command, and --measure with --overrides")
    place = Path(options.pop("cwd", ".")).absolute()
    if not place.is_dir():
        raise ValueError(f"--cwd {place} must be a folder")
    recipe = Recipe(command) if command else Recipe.of_overrides(overrides or "")
    measure, metric = options.pop("measure", "loss"), options.pop("metric", "")
    filled = pairs_of(options.pop("set", []), "--set")
    at = pairs_of(options.pop("confirm_at", []), "--confirm-at")
    patterns, budget = options.pop("protect", []), options.pop("budget_runs", None)
    fixed = {"recipe": recipe, "metric": metric or measure, "folder": str(place), "values": filled, "confirm_at": at}
    settings = Settings(**with_hashes({**options, **fixed, "budget": budget}, patterns))
    make_folder(folder)
    with wait_for_lock(folder / ".gate.lock", lambda: None):
        if (folder / chain.FILE).exists():
            raise ValueError(f"{folder} has a stream already: a new stream needs another folder")
        chain.append(folder / chain.FILE, [], "init", settings=settings.to_json(), nonce=secrets.token_hex(16))
    bound = "share of false keeps" if settings.error == "keep" else "chance of any false keep"
    print_line(f"began {folder}: the {bound} is at most {1 - settings.level:.2g} over the stream")
    print_line(f"plain recipe: {recipe.text}")


def decide(
    folder: Path, name: str | None, command: str | None, overrides: str | None, ref: str | None, json: bool
) -> ExitCode:
    """Decides a proposal, after those that run now; returns the exit code."""
    if not name:
        raise ValueError("kleiber gate propose needs --name NAME")
    if sum(value is not None for value in (command, overrides, ref)) != 1:
        raise ValueError("kleiber gate propose needs one of --overrides, --command and --ref")

    def say() -> None:
        print_line(f"another proposal runs in {folder}: this one waits for it", err=True)

    with wait_for_lock(folder / ".gate.lock", say):
        stream = Gate.load(folder)
        recipe = changed_recipe(stream, command, overrides, ref)
        stream.check_sources(stream.state.recipe, stream.state.files, "the plain recipe")
        opened = stream.state.open
        if opened is not None and opened.name == name and opened.recipe == recipe:
            stream.check_sources(recipe, opened.row["files"], name)
        stream.check_protected(recipe, name)
        try:
            row = stream.propose(name, recipe, sources(recipe.command, stream.folder_of(recipe)))
        except RunFailed as error:
            print_line(f"kleiber: {error}", err=True)
            return ExitCode.FAILED
        except Preempted as reason:
            print_line(f"{reason.status} by {reason}", err=True)
            return reason.status.exit_code
        write_report(stream)
        print_line(as_text(decision_json(stream, row)) if json else "\n".join(decision_lines(stream, row)))
    return CODES[row["decision"]]


def changed_recipe(stream: Gate, command: str | None, overrides: str | None, ref: str | None) -> Recipe:
    """Returns the recipe of a proposal. Raises ValueError for a change that does not fit the stream."""
    state = stream.state
    settings, plain = state.settings, state.recipe
    if (overrides is None) == (not plain.command) and ref is None:
        wanted = "--command or --ref" if plain.command else "--overrides or --ref"
        raise ValueError(f"the plain recipe of this stream is {plain.text}: propose a change with {wanted}")
    if overrides is not None:
        return plain.with_overrides(overrides)
    if ref is not None:
        return replace(plain, commit=commit_of(ref, Path(settings.folder)))
    check_command(command or "", settings.reserve, [*settings.values])
    return replace(plain, command=command or "")
