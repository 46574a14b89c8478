"""`main()`: a command line becomes a checked config, a folder and one run, or a sweep of them. Imports neither torch nor lightning.

Flags may stand anywhere. `--help` is ours; `--cfg`, `--info` and the like are Hydra's. `outputs/` is never made.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kleiber import cell, folder
from kleiber.compose import Composer, readable
from kleiber.errors import ConfigError
from kleiber.identity import cell_folder


def main(argv: list[str] | None = None) -> int:
    """Does what the command line asks and returns the exit code (FORMS: 0 1 2 4 75 130)."""
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return cell.INTERRUPTED
    except ConfigError as error:
        return cell.report(error)


def command(argv: list[str]) -> int:
    args = parse(argv)
    composer = Composer(args.config_name or "train", args.config_dir)
    if args.help:
        from kleiber.usage import usage

        print(usage(composer))
        return 0
    if args.cfg or args.info or args.hydra_help or args.shell_completion:
        return hydras_own(composer, args)
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
    cfg = composer.compose(overrides)
    if cfg.hydra.mode == RunMode.MULTIRUN:
        return sweep(composer, overrides)
    config, model = resolved(cfg)
    where = prepare_folder(config, overrides, model)
    if where is None:
        return 0
    return cell.run(config, where, overrides)


def resolved(cfg: DictConfig) -> tuple[dict[str, Any], str]:
    """The config as plain data, less `hydra`, and the name of the chosen model."""
    model = str(cfg.hydra.runtime.choices.get("model", "run")).split("/")[-1]
    with open_dict(cfg):
        job = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        config = OmegaConf.to_container(job, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(readable(error)) from error
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}, model


def prepare_folder(config: dict[str, Any], overrides: list[str], model: str) -> Path | None:
    """The folder to run in, its config written; None when it holds a finished run."""
    where = cell_folder(config, overrides, model)
    resume = config["resume"]
    if resume == "never":
        folder.set_aside(where)
    elif resume != "auto":
        where = Path(resume)
        folder.check_same(where, config)
    if folder.status(where) == "finished" and not config["dry_run"]:
        print(f"{where} is finished; resume=never trains it anew")
        return None
    if not config["dry_run"] and int(os.environ.get("RANK", "0")) == 0:
        folder.write_config(where, config, overrides)
    return where


def sweep(composer: Composer, overrides: list[str]) -> int:
    from kleiber.sweep import Sweep

    return Sweep(composer).start(overrides)
