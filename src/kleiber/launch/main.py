"""`main()`: a command line becomes a checked config, a folder and one run, or a sweep. Imports no torch, no lightning.

Flags may stand anywhere. `--help` is ours; `--cfg`, `--info` and the like are Hydra's. `outputs/` is never made.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from hydra.types import RunMode

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolved
from kleiber.config.errors import ConfigError
from kleiber.launch import process, ranks
from kleiber.records import folder
from kleiber.records.folder import cell_folder
from kleiber.runs.inherit import adopt


def main(argv: list[str] | None = None) -> int:
    """Does what the command line asks and returns the exit code (FORMS: 0 1 2 4 75 130)."""
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return process.INTERRUPTED
    except ConfigError as error:
        if ranks.rank() == 0 or not any(name in os.environ for name in ranks.LAUNCHERS):
            return process.report(error)
        return process.BAD_INPUT


def command(argv: list[str]) -> int:
    args = parse(argv)
    composer = Composer(args.config_name or "train", args.config_dir)
    if args.help:
        from kleiber.config.compose import usage

        print(usage(composer))
        return 0
    if args.cfg or args.info or args.hydra_help or args.shell_completion:
        return hydras_own(composer, args)
    ranks.launched()
    if args.multirun:
        return sweep(composer, args.overrides)
    return single(composer, args.overrides)


def parse(argv: list[str]) -> argparse.Namespace:
    """Hydra's flags, wherever they stand between overrides."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = lambda message: (_ for _ in ()).throw(ConfigError(f"{message}; see --help"))  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(argv)
    for flag in ("config_path", "experimental_rerun"):
        if getattr(args, flag):
            raise ConfigError(
                f"--{flag.replace('_', '-')}: not offered; use --config-dir for a folder of your own choices"
            )
    return args


def hydras_own(composer: Composer, args: argparse.Namespace) -> int:
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
    return 0


def single(composer: Composer, overrides: list[str]) -> int:
    try:
        cfg = composer.compose(overrides)
    except ConfigError:
        if composer.is_sweep(overrides):
            return sweep(composer, overrides)
        raise
    if cfg.hydra.mode == RunMode.MULTIRUN:
        return sweep(composer, overrides)
    config, model = resolved(cfg)
    config = adopt(written := config, overrides)
    if config["optimizer"] != written["optimizer"] and ranks.rank() == 0:
        rate = config["optimizer"]["lr"]
        print(f"optimizer.lr={rate:g}, by the width of a model in the standard parametrisation", file=sys.stderr)
    is_rank = ranks.launched()
    if is_rank:
        take_devices(config, overrides)
    check(config)
    where = prepare_folder(config, overrides, model)
    if where is None:
        return 0
    if config["dry_run"]:
        if ranks.rank() == 0:
            from kleiber.launch.price import price

            price({where: config})
        return 0
    if is_rank:
        ranks.silence(where)
    elif config["trainer"].get("devices", 1) > 1:
        return ranks.run_fresh(where, config["trainer"]["devices"])
    return process.run(config, where, overrides)


def take_devices(config: dict[str, Any], overrides: list[str]) -> None:
    """Under torchrun its number of processes is the number of devices."""
    world = int(os.environ["WORLD_SIZE"])
    told = config["trainer"].get("devices", 1)
    if told != world and any(text.lstrip("+").startswith("trainer.devices=") for text in overrides):
        raise ConfigError(f"trainer.devices={told}, but the launcher started {world} processes: leave one of them out")
    config["trainer"]["devices"] = world


def prepare_folder(config: dict[str, Any], overrides: list[str], model: str) -> Path | None:
    """The folder to run in, its config written; None when it holds a finished run, whose table is printed."""
    where = cell_folder(config, overrides, model)
    resume = config["resume"]
    if resume not in ("auto", "never"):
        where = Path(resume)
        if not (where / "config.yaml").is_file():
            raise ConfigError(f"resume={resume}: write auto, never or the folder of a run; this holds no config.yaml")
        folder.check_same(where, config)
    if config["dry_run"]:
        return where
    if ranks.rank() == 0 and folder.is_locked(where):
        raise ConfigError(f"{where} is in use by process {folder.holder(where)}: wait for it, or end it")
    if resume == "never" and ranks.rank() == 0:
        folder.set_aside(where)
    elif folder.status(where) == "finished":
        if ranks.rank() == 0:
            from kleiber.records.closing_table import closing_table

            print(f"{where} is finished already; resume=never trains it anew")
            closing_table(where)
        return None
    if ranks.rank() == 0:
        folder.write_config(where, config, overrides)
    return where


def sweep(composer: Composer, overrides: list[str]) -> int:
    from kleiber.launch.sweep import Sweep

    return Sweep(composer).start(overrides)
