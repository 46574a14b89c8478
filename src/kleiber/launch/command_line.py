"""The command line of `kleiber train`: flags, overrides, and errors for other arguments. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from kleiber import __version__
from kleiber.config.check import PLAIN, TOP_LEVEL
from kleiber.config.errors import ConfigError
from kleiber.config.words import in_our_words

HELP = "see `kleiber train --help`"
# Flags of Hydra that cannot work here, and what to do in their place.
UNSUPPORTED = {
    "config_path": "use --config-dir to add a folder with your own config files",
    "experimental_rerun": "`kleiber reproduce RUN` trains a recorded run again",
    "shell_completion": "`kleiber --install-completion` completes commands, groups and choices in your shell",
}


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Splits a command line into flags and overrides. Raises ConfigError for an unknown or unsupported flag."""
    parser = flag_parser()
    options = [option for action in parser._actions for option in action.option_strings]
    for argument, following in zip(argv, [*argv[1:], ""], strict=False):
        refuse_dashes(argument, following, options)
    args = parser.parse_intermixed_args(argv)
    for flag, advice in UNSUPPORTED.items():
        if vars(args)[flag]:
            raise ConfigError(f"--{flag.replace('_', '-')} is not supported: {advice}")
    for flag, is_set in {"--package (-p)": args.package, "--resolve": args.resolve}.items():
        if is_set and not args.cfg:
            raise ConfigError(f"{flag} belongs to --cfg: write --cfg job {' '.join(argv)}")
    return args


def flag_parser() -> argparse.ArgumentParser:
    """Returns Hydra's parser, whose errors are ConfigErrors, and whose `--version` prints that of kleiber."""
    from hydra._internal.utils import get_args_parser

    def error(message: str) -> NoReturn:
        raise ConfigError(f"{message}; {HELP}")

    parser = get_args_parser()
    parser.error = error  # type: ignore[method-assign]
    for action in parser._actions:
        if isinstance(action, argparse._VersionAction):
            action.version = f"kleiber {__version__}"
    return parser


def refuse_dashes(argument: str, following: str, options: Sequence[str]) -> None:
    """Raises ConfigError, with the override to write, for an argument such as `--dry-run` or `-model=moe`.

    following  the next argument, which may be the value
    options    the names of all options; those with two dashes may be shortened
    """
    name, equals, value = argument.partition("=")
    if not name.startswith("-") or name in options or not name.strip("-"):
        return
    key = name.lstrip("-").replace("-", "_")
    is_key = key.split(".")[0].split("/")[0] in TOP_LEVEL
    if not name.startswith("--"):
        if equals and is_key:
            raise ConfigError(f"{argument} is not an option: write {key}={value} without the dash")
        return
    if any(option.startswith(name) for option in options):
        return
    if not equals:
        alone = "=" in following or following.startswith("-") or not following
        value = ("true" if PLAIN.get(key) == PLAIN["dry_run"] else "VALUE") if alone else following
    if not is_key and (ours := in_our_words(key, value=value if value != "VALUE" else None)):
        raise ConfigError(f"{argument} is not an option.{ours}")
    raise ConfigError(f"{argument} is not an option: {f'write {key}={value}' if is_key else HELP}")


def refuse_replaced_keys(argv: Sequence[str]) -> None:
    """Raises ConfigError for a key of a command line that has no effect, since a later one replaces what it is in.

    So does `model.mlp=null` after `model.mlp.hidden=8`, while a mapping would be merged. A group such as `model=moe` is
    chosen before all keys are set.
    """
    lines = {argument.lstrip("+~").partition("=")[0]: argument for argument in argv if not argument.startswith("-")}
    for number, (key, line) in enumerate(lines.items()):
        for later, replacing in list(lines.items())[number + 1 :]:
            merges = replacing.partition("=")[2].startswith("{")
            if "." in later and key.startswith(f"{later}.") and not merges:
                raise ConfigError(f"{line} has no effect, since {replacing} replaces what it is in: remove one of them")


def refuse_repeated_keys(argv: Sequence[str]) -> None:
    """Raises ConfigError for a key or group that a command line sets to two values, of which Hydra takes the last."""
    refuse_replaced_keys(argv)
    values: dict[str, list[str]] = {}
    for argument in argv:
        key, equals, value = argument.lstrip("+").partition("=")
        if equals and not key.startswith(("-", "~")):
            values.setdefault(key, []).append(value)
    for key, settings in values.items():
        if len(set(settings)) > 1:
            times = "twice" if len(settings) == 2 else f"{len(settings)} times"
            raise ConfigError(
                f"{key} is set {times} ({', '.join(settings)}): remove one, or sweep with -m {key}={','.join(settings)}"
            )
