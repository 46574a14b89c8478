"""The page of the commands: each with its arguments and options, as `--help` prints them."""

from __future__ import annotations

from typing import Any

import typer

from kleiber.launch.cli import add_offered_commands, app
from pages.tables import cell, table


def page() -> str:
    """Returns the Markdown of the page of commands."""
    add_offered_commands([])
    group: Any = typer.main.get_command(app)
    parts = [
        "# Commands",
        "`kleiber COMMAND --help` prints the same. `python -P -m kleiber` is the same program, and "
        "`python train.py` is `kleiber train`. [Exit codes](../exit_codes.md) are those of every command.",
        table(["command", "what it does"], [[f"[`{n}`](#{n})", first_line(c)] for n, c in group.commands.items()]),
    ]
    return "\n\n".join([*parts, *(section(name, command) for name, command in group.commands.items())]) + "\n"


def first_line(command: Any) -> str:
    return cell((command.help or "").split("\n")[0])


def section(name: str, command: Any) -> str:
    """Returns the section of a command: usage, description, parameters."""
    usage = [argument_name(p) for p in command.params if p.param_type_name == "argument"]
    options = "[OPTIONS]" if len(usage) < len(command.params) else ""
    if command.context_settings.get("ignore_unknown_options"):
        usage = [command.options_metavar]  # what it takes are overrides
    line = " ".join(filter(None, ["kleiber", name, *usage, options]))
    text = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    rows = [[names(p), cell(p.help), default(p)] for p in command.params]
    return "\n\n".join([f"## `{name}` {{#{name}}}", f"```text\n{line}\n```", text, *parameters(rows)])


def parameters(rows: list[list[str]]) -> list[str]:
    return [table(["argument or option", "meaning", "default"], rows)] if rows else []


def argument_name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{cell(argument_name(parameter))}`"
    metavar = f" {parameter.metavar}" if parameter.metavar else ""
    return f"`{', '.join(parameter.opts)}{metavar}`"


def default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    return "" if parameter.default in (None, False, []) else f"`{parameter.default}`"
