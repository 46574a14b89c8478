"""`python train.py`: turns a command line into a checked config and a folder, and starts a run or a sweep.

Flags may stand anywhere on the command line. `--help` prints kleiber's own help; `--cfg`, `--info` and the other flags
are Hydra's. This module imports no torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from hydra.types import RunMode

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError, ExitCode, Preempted, Status, exit_on_interrupt, exit_with
from kleiber.config.model_size import check_memory
from kleiber.launch import process, ranks
from kleiber.records import folder
from kleiber.records.folder import cell_folder
from kleiber.records.lock import holder, is_locked
from kleiber.records.scratch import sweep_scratch
from kleiber.runs.inherit import complete_config
from kleiber.types import Json


def main(argv: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code (`ExitCode`); prints a ConfigError in one line."""
    try:
        return run_command(sys.argv[1:] if argv is None else argv)
    except Preempted as reason:
        return reason.status.exit_code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except ConfigError as error:
        if ranks.rank() == 0 or not any(name in os.environ for name in ranks.LAUNCHERS):
            return process.print_error(error)
        return ExitCode.BAD_INPUT


def run_command(argv: list[str]) -> int:
    """Runs a command line and returns its exit code. Raises ConfigError when the command line is wrong."""
    args = parse_flags(argv)
    composer = Composer(args.config_name or "train", args.config_dir)
    if args.help:
        from kleiber.config.compose import usage

        print(usage(composer))
        return ExitCode.DONE
    if args.cfg or args.info or args.hydra_help or args.shell_completion:
        return print_by_hydra(composer, args)
    ranks.started_as_rank()
    sweep_scratch(Path(tempfile.gettempdir()), "kleiber-")
    if args.multirun:
        return run_sweep(composer, args.overrides)
    return run_single(composer, args.overrides)


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Splits a command line into flags and overrides. Raises ConfigError for an unknown or unsupported flag."""
    from hydra._internal.utils import get_args_parser

    def error(message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")

    parser = get_args_parser()
    parser.error = error  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(argv)
    for flag in ("config_path", "experimental_rerun"):
        if vars(args)[flag]:
            name = flag.replace("_", "-")
            raise ConfigError(f"--{name} is not supported: use --config-dir to add a folder with your own config files")
    return args


def print_by_hydra(composer: Composer, args: argparse.Namespace) -> int:
    """Prints the output of Hydra's flags --cfg, --info, --hydra-help and --shell-completion."""
    composer.compose(args.overrides, validate_sweeps=False)
    overrides = composer.prepare(args.overrides)
    name, hydra = composer.config_name, composer.hydra
    if args.cfg:
        hydra.show_cfg(name, overrides, args.cfg, args.package, args.resolve)
    elif args.info:
        hydra.show_info(args.info, name, overrides)
    elif args.hydra_help:
        hydra.hydra_help(name, argparse.ArgumentParser(), args)
    else:
        hydra.shell_completion(name, overrides)
    return ExitCode.DONE


def run_single(composer: Composer, overrides: list[str]) -> int:
    """Trains one run, or estimates its cost in a dry run; returns the exit code.

    Starts a sweep instead when the config has hydra.mode=MULTIRUN.
    """
    try:
        cfg = composer.compose(overrides)
    except ConfigError:
        if composer.is_sweep(overrides):
            return run_sweep(composer, overrides)
        raise
    if cfg.hydra.mode == RunMode.MULTIRUN:
        return run_sweep(composer, overrides)
    composed, model = resolve_config(cfg)
    config = complete_config(composed, overrides)
    if config["optimizer"] != composed["optimizer"] and ranks.rank() == 0:
        rate = config["optimizer"]["lr"]
        print(f"optimizer.lr={rate:g}, the default for this model and objective", file=sys.stderr)
    is_rank = ranks.started_as_rank()
    if is_rank:
        set_devices(config, overrides)
    check(config)
    check_memory(config)
    where = prepare_folder(config, overrides, model)
    if where is None:
        return ExitCode.DONE
    if config["dry_run"]:
        if ranks.rank() == 0:
            from kleiber.launch.price import print_price

            print_price({where: config})
        return ExitCode.DONE
    if is_rank:
        ranks.redirect_rank_output(where)
        return process.run(config, where, overrides)
    devices = config["trainer"].get("devices", 1)
    code = ranks.run_fresh(where, devices) if devices > 1 else process.run(config, where, overrides)
    if code == ExitCode.BAD_INPUT and config["resume"] in ("auto", "never"):
        folder.discard_unstarted(where)
    return code


def set_devices(config: Json, overrides: list[str]) -> None:
    """Sets trainer.devices to the number of processes that torchrun started.

    Raises ConfigError when the command line sets another number.
    """
    world = int(os.environ["WORLD_SIZE"])
    devices = config["trainer"].get("devices", 1)
    if devices != world and any(text.lstrip("+").startswith("trainer.devices=") for text in overrides):
        raise ConfigError(
            f"trainer.devices={devices} must be {world}, the number of processes of torchrun: remove trainer.devices"
        )
    config["trainer"]["devices"] = world


def prepare_folder(config: Json, overrides: list[str], model: str) -> Path | None:
    """Writes the config into the folder of the run and returns the folder; a dry run writes nothing.

    Returns None, and prints the table of the run, when the folder contains a finished run. Raises ConfigError when the
    folder is in use, or when `resume` names a folder that this config cannot resume.

    model  name of the model choice, part of the folder's name
    """
    where = cell_folder(config, overrides, model)
    resume = config["resume"]
    if resume not in ("auto", "never"):
        where = Path(resume)
        if not (where / "config.yaml").is_file():
            raise ConfigError(f"resume={resume} must be auto, never or the folder of a run, which has a config.yaml")
        folder.check_same_config(where, config)
    if config["dry_run"]:
        return where
    if ranks.rank() == 0 and is_locked(where):
        raise ConfigError(f"{where} is in use by process {holder(where)}: wait for that process, or end it")
    if resume == "never" and ranks.rank() == 0:
        folder.set_aside(where)
    elif folder.status(where) == Status.FINISHED:
        if ranks.rank() == 0:
            from kleiber.launch.finished import print_finished

            print_finished(where, config)
        return None
    if ranks.rank() == 0:
        folder.write_config(where, config, overrides)
    return where


def run_sweep(composer: Composer, overrides: list[str]) -> int:
    """Runs a sweep and returns its exit code."""
    from kleiber.launch.sweep import Sweep

    return Sweep(composer).start(overrides)


if __name__ == "__main__":
    exit_on_interrupt()
    exit_with(main())
