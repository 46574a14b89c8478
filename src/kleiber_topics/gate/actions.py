"""What `kleiber gate` does: begins a stream, decides a proposal, and shows what was decided."""

from __future__ import annotations

import secrets
from dataclasses import replace
from json import dumps
from pathlib import Path

from kleiber.config import ExitCode, Preempted
from kleiber.records import make_folder, print_line, wait_for_lock
from kleiber.types import Json
from kleiber_topics.gate import chain
from kleiber_topics.gate.engine import Gate
from kleiber_topics.gate.recipes import Recipe, check_command, commit_of, sources
from kleiber_topics.gate.report import decision_json, decision_lines, status_json, status_lines, write_report
from kleiber_topics.gate.runner import RunFailed
from kleiber_topics.gate.settings import Settings, pairs_of, require_own, with_hashes

CODES = {"keep": ExitCode.DONE, "discard": ExitCode.CONTRADICTED, "undecided": ExitCode.UNDECIDED}


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
    require_own(folder / chain.FILE)
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


def show(folder: Path, json: bool, *, report: bool) -> None:
    """Prints where a stream stands, as JSON or text, and writes its page if `report` says so."""
    require_own(folder / chain.FILE)
    stream = Gate.load(folder)
    if report:
        print_line(f"report: {write_report(stream)}", err=json)
    print_line(as_text(status_json(stream)) if json else "\n".join(status_lines(stream)))


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
