"""`python train.py`: turns a command line into a checked config and a folder, and starts a run or a sweep.

Flags may stand anywhere on the command line. `--help` prints kleiber's own help; `--cfg`, `--info` and the other flags
are Hydra's. This module imports no torch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from hydra.types import RunMode
from omegaconf import OmegaConf

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError, ExitCode, Preempted, exit_on_signals, exit_with
from kleiber.config.foreign import permit_config
from kleiber.config.model_size import check_memory, gpu_ids
from kleiber.config.permissions import reader_permissions
from kleiber.config.targets import class_attribute
from kleiber.config.url_secrets import hidden_arguments
from kleiber.launch import process, ranks
from kleiber.launch.command_line import flag_parser, parse_flags, refuse_repeated_keys
from kleiber.records import continuation, folder
from kleiber.records.closing_table import closing_table, next_commands
from kleiber.records.continuation import continues_folder
from kleiber.records.evaluations import is_complete
from kleiber.records.folder import cell_folder
from kleiber.records.locks import holder, is_locked, sweep_scratch
from kleiber.records.summary_file import read_summary
from kleiber.records.terminal import print_line
from kleiber.runs.defaults import changed_defaults
from kleiber.runs.equal_ranks import check_equal_configs
from kleiber.runs.inherit import complete_config
from kleiber.types import Config, Json


def main(argv: list[str] | None = None, typed: bool = False) -> int:
    """Runs a command line and returns its exit code (`ExitCode`); prints a ConfigError in one line.

    argv   None for the command line of this process
    typed  whether a person typed `argv`, so that a key that is set twice is a mistake
    """
    with process.output_through(process.LastingStream), reader_permissions():
        return exit_code(hidden_arguments(argv), typed or argv is None)


def exit_code(argv: list[str], typed: bool) -> int:
    """Runs a command line and returns its exit code, also where it ends with an error that the user can correct."""
    try:
        if typed:
            refuse_repeated_keys(argv)
        return train(argv).code
    except Preempted as reason:
        return reason.status.exit_code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except (ConfigError, OSError) as error:
        if ranks.rank() == 0 or not any(name in os.environ for name in ranks.LAUNCHERS):
            return process.print_error(error)
        return ExitCode.BAD_INPUT if isinstance(error, ConfigError) else ExitCode.FAILED


class TrainResult(NamedTuple):
    """Exit code of a command line, and the folder of its run or sweep; None where it trained nothing."""

    code: int
    folder: Path | None


def train(argv: Sequence[str] = ()) -> TrainResult:
    """Trains a run, or a sweep with "-m" among the overrides, as `kleiber train` does.

    Returns (exit code, folder of the run or the sweep). Raises ConfigError, a ValueError, for a wrong override.
    """
    args = parse_flags(hidden_arguments(argv))
    composer = Composer(args.config_name or "train", args.config_dir)
    if args.help:
        from kleiber.config.help import usage

        composer.prepare([line for line in args.overrides if line.startswith("hydra.searchpath=")])
        print_line(usage(composer))
        return TrainResult(ExitCode.DONE, None)
    if args.cfg or args.info or args.hydra_help:
        return TrainResult(print_by_hydra(composer, args), None)
    ranks.started_as_rank()
    sweep_scratch(Path(tempfile.gettempdir()), "kleiber-")
    if args.multirun:
        return run_sweep(composer, args.overrides)
    return run_single(composer, args.overrides)


def print_by_hydra(composer: Composer, args: argparse.Namespace) -> int:
    """Prints the output of Hydra's flags --cfg, --info and --hydra-help.

    Raises ConfigError for a wrong --package, and for --cfg with the values of a sweep.
    """
    if args.cfg and args.multirun and any(line.is_sweep_override() for line in composer.parse(args.overrides)):
        raise ConfigError("--cfg prints one config: set each key to one value; dry_run=true lists the cells of a sweep")
    composed = composer.compose(args.overrides, validate_sweeps=bool(args.cfg))
    overrides = composer.prepare(args.overrides)
    name, hydra = composer.config_name, composer.hydra
    if args.cfg:
        if args.package not in (None, "_global_") and OmegaConf.select(composed, args.package) is None:
            raise ConfigError(
                f"--package {args.package} must be a node of the config with a value, such as model or model.mlp"
            )
        hydra.show_cfg(name, overrides, args.cfg, args.package, args.resolve)
    elif args.info:
        hydra.show_info(args.info, name, overrides)
    else:
        hydra.hydra_help(None, flag_parser(), argparse.Namespace(overrides=[]))
    return ExitCode.DONE


def run_single(composer: Composer, overrides: list[str]) -> TrainResult:
    """Trains one run, or estimates its cost in a dry run; starts a sweep where the config has hydra.mode=MULTIRUN."""
    try:
        cfg = composer.compose(overrides)
    except ConfigError:
        if not composer.is_sweep(overrides):
            raise
        return run_sweep(composer, overrides)
    if cfg.hydra.mode == RunMode.MULTIRUN:
        return run_sweep(composer, overrides)
    composed, model = resolve_config(cfg)
    permit_config(composed)
    config = complete_config(composed, overrides, composer=composer)
    if ranks.rank() == 0 and (changed := changed_defaults(composed, config)):
        print_line(f"{' '.join(changed)}, the default for this model and objective", err=True)
    gpus = use_visible_gpus(config, overrides)
    if ranks.started_as_rank():
        set_devices(config, overrides)
    if gpus and ranks.rank() == 0:
        print_line(
            f"{' '.join(gpus)}, for the GPUs of this machine; trainer.accelerator=cpu leaves them unused", err=True
        )
    check(config)
    check_memory(config)
    if ranks.started_as_rank():  # each of them has composed a config
        check_equal_configs(config)
    with continuation.config_kept_until_trained(config) if ranks.rank() == 0 else nullcontext():
        return train_checked(config, overrides, model)


def train_checked(config: Json, overrides: list[str], model: str) -> TrainResult:
    """Trains the run of a complete config, or estimates its cost in a dry run; arguments as in `prepare_folder`."""
    where, finished = prepare_folder(config, overrides, model)
    if finished:
        return TrainResult(ExitCode.DONE, where)
    if config["dry_run"]:
        if ranks.rank() == 0:
            from kleiber.launch.price import print_price

            print_price({where: config})
        return TrainResult(ExitCode.DONE, None)
    if ranks.started_as_rank():
        ranks.redirect_rank_output(where)
        return TrainResult(process.run(config, where, overrides), where)
    devices = config["trainer"].get("devices", 1)
    code = ranks.run_fresh(where, devices) if devices > 1 else process.run(config, where, overrides)
    if code == ExitCode.BAD_INPUT and not continues_folder(config):
        folder.discard_unstarted(where)
    if code == ExitCode.DONE:
        print_line("\n".join(next_commands(where, config, overrides)), err=True)
    return TrainResult(code, where)


def use_visible_gpus(config: Json, overrides: list[str]) -> list[str]:
    """Lets a distributed trainer of the command line use all visible GPUs in bf16; returns the keys that it sets.

    Keys of the command line stay, and CPUs are used where it sets trainer.accelerator=cpu, and for trainer=fsdp on a
    machine with a single GPU.
    """
    trainer, gpus = config["trainer"], gpu_ids()
    typed = {text.lstrip("+").partition("=")[0] for text in overrides}
    needed = 2 if class_attribute(trainer["_target_"], "shards_weights") else 1
    if "trainer" not in typed or not class_attribute(trainer["_target_"], "is_distributed") or len(gpus) < needed:
        return []
    if "trainer.accelerator" in typed and trainer["accelerator"] != "gpu":
        return []
    settings = {"accelerator": "gpu", "precision": "bf16", "devices": len(gpus)}
    missing = {key: value for key, value in settings.items() if f"trainer.{key}" not in typed}
    trainer.update(missing)
    return [f"trainer.{key}={value}" for key, value in missing.items()]


def set_devices(config: Json, overrides: list[str]) -> None:
    """Sets trainer.devices to the number of processes that torchrun or srun started, on all nodes together.

    Raises ConfigError when the command line sets another number, and for nodes with different numbers of processes.
    """
    world = int(os.environ["WORLD_SIZE"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world % here:
        raise ConfigError(f"{here} of {world} processes run on this node: every node must have the same number of them")
    devices = config["trainer"].get("devices", 1)
    if devices != world and any(text.lstrip("+").startswith("trainer.devices=") for text in overrides):
        raise ConfigError(
            f"trainer.devices={devices} must be {world}, the number of processes that torchrun or srun started: remove "
            "trainer.devices"
        )
    config["trainer"]["devices"] = world


def prepare_folder(config: Json, overrides: list[str], model: str) -> tuple[Path, bool]:
    """Writes the config into the folder of the run; a dry run writes nothing.

    Returns the folder, and whether it contains a finished run, whose table is printed then. Raises ConfigError when the
    folder is in use or has another run, or when `resume` names a folder that this config cannot resume.

    model  name of the model choice, part of the folder's name
    """
    where, resume = cell_folder(config, overrides, model), config["resume"]
    if continues_folder(config):
        where = Path(resume)
        if not (where / "config.yaml").is_file():
            raise ConfigError(f"resume={resume} must be auto, never or the folder of a run, which has a config.yaml")
        continuation.check_same_config(where, config)
    elif resume == "auto":
        continuation.check_never_continued(where, config)
    if config["dry_run"]:
        return where, False
    if ranks.rank() == 0 and is_locked(where):
        raise ConfigError(f"{where} is in use by {holder(where)}: wait for that process, or end it")
    if ranks.rank() == 0:
        continuation.warn_without_effect({where: config})
    if resume == "never" and ranks.rank() == 0:
        folder.set_aside(where)
    elif is_complete(where, config) and (resume == "auto" or continuation.has_trained_under(where, config)):
        if ranks.rank() == 0:
            print_finished(where, config, overrides)
        return where, True
    if ranks.rank() == 0:
        folder.write_config(where, config, overrides)
    return where, False


def print_finished(where: Path, config: Config, overrides: list[str]) -> None:
    """Prints the table of a finished run, and a line about inputs whose content is no longer that of its training."""
    from kleiber.runs.input_changes import describe_changes

    print_line(f"{where} is finished already; set resume=never to train it again")
    if changes := describe_changes(config, read_summary(where) or {}):
        print_line(f"warning: the inputs of {where} have changed since it started: {changes}", err=True)
    closing_table(where)
    print_line("\n".join(next_commands(where, config, overrides)), err=True)


def run_sweep(composer: Composer, overrides: list[str]) -> TrainResult:
    """Runs a sweep."""
    from kleiber.launch.sweep import Sweep

    sweep = Sweep(composer)
    return TrainResult(sweep.start(overrides), sweep.folder)


def compose_config(overrides: Sequence[str] = ()) -> Json:
    """Returns the checked config of a run as plain data: `compose(["model=moe"])["model"]["depth"]`.

    Raises ConfigError, a ValueError, for wrong overrides, also for those of a sweep.
    """
    composer, overrides = Composer("train"), hidden_arguments(overrides)
    config = complete_config(resolve_config(composer.compose(overrides))[0], overrides, composer=composer)
    check(config)
    return config


if __name__ == "__main__":
    exit_on_signals()
    exit_with(main())
