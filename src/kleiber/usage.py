"""What `--help` prints: the groups with their choices, the common keys, a few examples. It composes nothing."""

from __future__ import annotations

from kleiber.compose import Composer

HEAD = """Trains one language model, or a sweep of them.

    python train.py [FLAGS] [GROUP=CHOICE | KEY=VALUE]...

Examples
    python train.py                                      a small dense model on text that every machine has
    python train.py model=moe model.depth=3              a mixture of experts, one layer deeper
    python train.py model=bert objective=mlm             both directions, masked tokens
    python train.py -m name=first model=gpt,moe seed=0,1  a sweep of four; kleiber runs multirun/first lists it
    python train.py trainer=ddp trainer.devices=2        two processes, the same losses
    python train.py dry_run=true                         what it would cost; nothing is trained
    python train.py trainer=smoke                        ten seconds, to see that it works
"""
KEYS = {
    "model.depth=2": "the one dial of size: width = model.aspect * depth",
    "budget.tokens=20M": "how long; or budget.flops=1e15, budget.ratio=20 (tokens per parameter), budget.steps=2000",
    "batch.tokens=4096": "tokens of one optimizer step; batch.micro=auto|INT sequences at once",
    "optimizer.lr=0.01": "the peak learning rate",
    "eval.every_steps=100": "validate on the way, on eval.tokens=1M",
    "seed=0": "of weights, order of data and dropout",
    "name=runs": "the folder under root=multirun, or under KLEIBER_ROOT",
    "resume=auto": "go on where a run of the same config stopped; never trains it anew; PATH goes on in that folder",
    "dry_run=false": "true prints parameters, FLOPs, memory and time, and trains nothing; FILE.json writes them too",
}
TAIL = """Flags
    -m, --multirun            sweep over comma-separated values
    --cfg job|hydra|all       print the composed config and stop
    --config-dir DIR          a folder of your own choices, in front of ours
    --info, --hydra-help      Hydra's own"""


def usage(composer: Composer) -> str:
    groups = {group: ", ".join(composer.choices(group)) for group in composer.groups()}
    wide = max(map(len, [*groups, *KEYS])) + 2
    chosen = "\n".join(f"    {group:{wide}}{choices}" for group, choices in groups.items())
    keys = "\n".join(f"    {key:{wide}}{text}" for key, text in KEYS.items())
    return f"{HEAD}\nGroups and their choices\n{chosen}\n\nKeys\n{keys}\n\n{TAIL}"
