"""The text of `kleiber train --help`: examples, the groups with their choices, the most common keys, and the flags."""

from __future__ import annotations

from kleiber.config.compose import Composer

HEAD = """Trains one language model, or a sweep of them. In the repository, `python train.py` is the same.

    kleiber train [FLAGS] [GROUP=CHOICE | KEY=VALUE]...

Examples
    kleiber train                                       a small dense model on the built-in text
    kleiber train model=moe model.depth=3               a mixture of experts with three layers
    kleiber train model=bert objective=mlm              a bidirectional model that predicts masked tokens
    kleiber train -m name=first model=gpt,moe seed=0,1  a sweep of four runs; kleiber runs multirun/first lists it
    kleiber train trainer=ddp trainer.devices=2         data-parallel training in two processes
    kleiber train dry_run=true                          print what training would cost, and stop
    kleiber train trainer=smoke                         a test run of ten seconds
"""
KEYS = {
    "model.depth=2": "number of layers; the width is model.aspect * model.depth",
    "budget.tokens=20M": "training tokens; or budget.flops=1e15, .ratio=20 (tokens/parameter), .steps=2000, .epochs=3",
    "batch.tokens=4096": "tokens of an optimizer step; batch.micro=auto|INT: sequences that a device processes at once",
    "optimizer.lr=0.01": "the peak learning rate",
    "eval.every_steps=100": "validate every 100 optimizer steps, on eval.tokens=1M tokens",
    "seed=0": "seed of initial weights, data order and dropout",
    "name=runs": "folder of the run, below root=multirun or $KLEIBER_ROOT",
    "resume=auto": "auto: continue a run of the same config; never: train it again; PATH: continue that run",
    "dry_run=false": "true: print parameters, FLOPs, memory and time, and stop; FILE.json: also write them",
}
TAIL = """Flags
    -m, --multirun            sweep over comma-separated values
    --cfg job|hydra|all       print the composed config and stop; --resolve fills in ${...}, -p model prints one node
    --config-dir DIR          a folder with choices of yours, which take precedence
    --config-name NAME        a root config of yours in that folder, in place of train
    --version                 print the version of kleiber
    --info, --hydra-help      information about Hydra

Environment
    KLEIBER_EXTENSIONS=mylab  also the choices and classes of your package mylab
    KLEIBER_ROOT=DIR          the folder of runs, in place of ./multirun
    KLEIBER_DATA=DIR          local copies of data sets, looked up before the hub
    KLEIBER_CACHE=DIR         the folder of encoded data"""


def usage(composer: Composer) -> str:
    """Returns the text of `kleiber train --help`."""
    groups = {group: ", ".join(composer.choices(group)) for group in composer.groups()}
    wide = max(map(len, [*groups, *KEYS])) + 2
    chosen = "\n".join(f"    {group:{wide}}{choices}" for group, choices in groups.items())
    keys = "\n".join(f"    {key:{wide}}{text}" for key, text in KEYS.items())
    return f"{HEAD}\nGroups and their choices\n{chosen}\n\nKeys\n{keys}\n\n{TAIL}"
