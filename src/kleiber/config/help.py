"""The text of `kleiber train --help`: examples, the groups with their choices, the most common keys, and the flags."""

from __future__ import annotations

from kleiber.config.compose import Composer

HEAD = """Trains one language model, or a sweep of them.

    python train.py [FLAGS] [GROUP=CHOICE | KEY=VALUE]...

Examples
    python train.py                                      a small dense model on the built-in text
    python train.py model=moe model.depth=3              a mixture of experts with three layers
    python train.py model=bert objective=mlm             a bidirectional model that predicts masked tokens
    python train.py -m name=first model=gpt,moe seed=0,1  a sweep of four runs; kleiber runs multirun/first lists it
    python train.py trainer=ddp trainer.devices=2        data-parallel training in two processes
    python train.py dry_run=true                         print what training would cost, and stop
    python train.py trainer=smoke                        a test run of ten seconds
"""
KEYS = {
    "model.depth=2": "number of layers; the width is model.aspect * model.depth",
    "budget.tokens=20M": "training tokens; or budget.flops=1e15, budget.ratio=20 (tokens/parameter), budget.steps=2000",
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
    --cfg job|hydra|all       print the composed config and stop
    --config-dir DIR          a folder with choices of yours, which take precedence
    --info, --hydra-help      information about Hydra"""


def usage(composer: Composer) -> str:
    """Returns the text of `python train.py --help`."""
    groups = {group: ", ".join(composer.choices(group)) for group in composer.groups()}
    wide = max(map(len, [*groups, *KEYS])) + 2
    chosen = "\n".join(f"    {group:{wide}}{choices}" for group, choices in groups.items())
    keys = "\n".join(f"    {key:{wide}}{text}" for key, text in KEYS.items())
    return f"{HEAD}\nGroups and their choices\n{chosen}\n\nKeys\n{keys}\n\n{TAIL}"
