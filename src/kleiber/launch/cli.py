"""The command `kleiber`: trains, lists and evaluates runs, fits laws to them, and converts models.

Each command imports what it needs only when it is called.
"""

from __future__ import annotations

import copy
import inspect
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from kleiber import __version__
from kleiber.config.errors import ExitCode
from kleiber.config.extensions import import_offer, offers
from kleiber.config.permissions import reader_permissions
from kleiber.config.system_errors import describe
from kleiber.config.url_secrets import hidden_arguments, hide_secrets
from kleiber.launch import compare_command, data_command, model_commands, plan_command, run_commands
from kleiber.records.terminal import print_line, print_logs
from kleiber.studies import fit_command


class PlainHelp:
    """Prints flags without a type, and the paragraphs of a docstring without its line breaks."""

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:
        paragraphs = inspect.cleandoc(help or "").split("\n\n")
        options["help"] = "\n\n".join(text.replace("\n", " ") for text in paragraphs)
        super().__init__(*args, **options)

    def get_params(self, ctx: Any) -> list[Any]:
        """Returns the parameters, `--help` among them."""
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Group(PlainHelp, TyperGroup):
    """The command `kleiber`."""


class Command(PlainHelp, TyperCommand):
    """A command of it."""


app = typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_enable=False)


def print_version(asked: bool) -> None:
    """Prints the version of kleiber and ends the command, if it was asked for."""
    if asked:
        print_line(f"kleiber {__version__}")
        raise typer.Exit


@app.callback()
def commands(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, list, evaluate, export and import runs, fit scaling laws to them, and check muP."""


def complete_override(context: typer.Context, incomplete: str) -> list[str]:
    """Returns the groups of the config, such as `model=`, or the choices of a group that begin with what was typed.

    Bash gives the text in front of `=` and the `=` as words of their own, other shells give `model=mo` as one word.
    """
    from kleiber.config.compose import config_files

    words: list[str] = context.params.get("overrides") or []
    files = config_files()
    folders = {Path(place).parent for place in files}
    groups = sorted(str(folder) for folder in folders if len(folder.parts) == 1 or folder.parts[0] == "model")
    group, value, before = "", incomplete, ""
    if words[1:] and words[-1] == "=":
        group = words[-2]
    elif "=" in incomplete:
        group, _, value = incomplete.partition("=")
        before = f"{group}="
    elif words and not incomplete and words[-1] in groups:  # bash, right behind the `=`
        group = words[-1]
    if group not in groups:
        return [f"{name}=" for name in groups if name.startswith(incomplete) and not group]
    names = sorted(place.removeprefix(f"{group}/") for place in files if place.startswith(f"{group}/"))
    names = [name for name in names if not name.rpartition("/")[2].startswith("_")]
    choices = [name for name in names if group != "model" or "/" not in name]
    return [before + choice for choice in choices if choice.startswith(value)]


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="OVERRIDES", autocompletion=complete_override, show_default=False)
]


# All arguments are overrides and Hydra's flags, --help among them, which the command line of training reads itself.
AS_THEY_ARE = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command("train", cls=Command, context_settings=AS_THEY_ARE, options_metavar="[-m]")
def train(overrides: Overrides = None) -> None:
    """Train a run, or a sweep with -m: the same as `python train.py`. `kleiber train --help` lists the choices."""
    from kleiber.launch.main import main

    raise typer.Exit(main(overrides or [], typed=True))


@app.command("config", cls=Command, context_settings={**AS_THEY_ARE, "help_option_names": ["--help"]})
def config(
    overrides: Overrides = None,
    config_dir: Annotated[str | None, typer.Option(metavar="DIR", help="A folder with choices of yours.")] = None,
) -> None:
    """Print the config of a run as YAML, each value with the file or override that it comes from.

    The overrides are those of `kleiber train`. Nothing is trained.
    """
    from kleiber.config.annotated import annotated_yaml
    from kleiber.config.check import check
    from kleiber.config.compose import Composer, resolve_config
    from kleiber.config.provenance import find_sources
    from kleiber.launch.command_line import parse_flags, refuse_repeated_keys
    from kleiber.runs.inherit import complete_config

    refuse_repeated_keys(overrides or [])
    args = parse_flags(overrides or [])
    composer = Composer(args.config_name or "train", config_dir or args.config_dir)
    sources = find_sources(composer, args.overrides)
    composed, _ = resolve_config(composer.compose(args.overrides))
    completed = complete_config(composed, args.overrides, composer=composer)
    check(completed)
    sources.set_changes(composed, completed, "follows from the model, the objective or the start point")
    print_line("\n".join(annotated_yaml(completed, sources)))


@app.command("check", cls=Command)
def check(
    name: Annotated[str, typer.Argument(metavar="mup", help="Name of the check; mup is the only one.")],
    widths: Annotated[str, typer.Option(help="Widths of the models in channels, multiples of 16.")] = "64,128,256",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps before the activations are compared.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Models per width, over which activation sizes are averaged.")] = 3,
    optimizer: Annotated[str, typer.Option(help="Optimizer of the models: adamw, muon, lion or sgd.")] = "adamw",
    lr: Annotated[float, typer.Option(help="Learning rate of the models.")] = 0.02,
    out: Annotated[Path | None, typer.Option(help="Folder for the figure. Default: multirun/check-mup.")] = None,
) -> None:
    """Check muP: train small models of several widths and compare the sizes of their activations.

    Exits with 0 when the sizes do not depend on the width, and with 1 otherwise.
    """
    if name != "mup":
        raise ValueError(f"kleiber check {name}: the name of the check must be mup")
    from kleiber.runs.coordinate_check import check_mup

    folder = out or Path(os.environ.get("KLEIBER_ROOT", "multirun")) / "check-mup"
    if not check_mup(parse_widths(widths), steps, seeds, optimizer, lr, folder):
        raise typer.Exit(ExitCode.FAILED)


def parse_widths(text: str) -> list[int]:
    """Splits the value of --widths, such as `64,128`. Raises ValueError for what is not a whole number."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--widths {text} must be whole numbers separated by commas, such as 64,128,256") from None


for name, command in {
    "runs": run_commands.runs,
    "plot": run_commands.plot,
    "publish": run_commands.publish,
    "diff": run_commands.diff,
    "reproduce": run_commands.reproduce,
    "compare": compare_command.compare,
    "data": data_command.describe,
    "plan": plan_command.plan,
    "report": fit_command.report,
    "clean": run_commands.clean,
    "fit": fit_command.fit,
    "predict": fit_command.predict,
    "eval": model_commands.evaluate,
    "generate": model_commands.generate,
    "chat": model_commands.chat,
    "export": model_commands.export_run,
    "push": model_commands.push,
    "import": model_commands.import_folder,
}.items():
    app.command(name, cls=Command)(command)


def add_offered_commands(arguments: list[str]) -> typer.Typer:
    """Adds the commands that extensions offer under COMMANDS, unless the arguments call another one.

    An offered command is imported for its options, also where only the help lists it. Returns the command line with the
    command that is called, or with all where none is: typer reads the options of each, which takes 2 ms.
    """
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    present = {command.name: command for command in app.registered_commands}
    if called not in present:
        for name in offers("COMMANDS"):
            if name not in present:
                app.command(name, cls=Command)(import_offer("COMMANDS", name, f"kleiber {name}"))
        return app
    command_line = copy.copy(app)
    command_line.registered_commands = [present[called]]
    return command_line


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code (`ExitCode`)."""
    print_logs()
    arguments = hidden_arguments(argv)
    try:
        with reader_permissions():
            command_line = add_offered_commands(arguments)
            code = command_line(arguments, prog_name="kleiber", standalone_mode=False)
    except (ValueError, FileNotFoundError) as error:
        print_line(f"kleiber: {hide_secrets(str(error))}", err=True)
        return ExitCode.BAD_INPUT
    except Exception as error:
        if text := describe(error):
            print_line(f"kleiber: {text}", err=True)
            return ExitCode.FAILED
        show = getattr(error, "show", None)  # of a click exception, which typer imports from a private copy of click
        if show is None:
            raise
        show()
        return ExitCode.BAD_INPUT
    return code if isinstance(code, int) else ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
