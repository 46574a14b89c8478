"""Tokens per second of kleiber's models against the published architectures of study=baselines, trained in turn.

    python benchmarks/architectures.py OUT.json [--tokens 300000] [--rounds 4]

Each round trains models of study=baselines once, on one core and in a process of its own, and kleiber's
models without QK-norm as well, which the published architectures lack. Ratios are taken round by round, so that a
machine that drifts drifts for both sides; OUT.json has their medians and quartiles and the speed of every run. Run it
on an idle machine; WikiText-2 has to be at hand.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from kleiber.config.compose import read_choice

PROJECT = Path(__file__).parents[1]
RIVALS = {  # dropout alone makes those "as published" slower; the others have none
    "dense": ["llama", "gpt2", "gpt2_published"], "moe": ["mixtral"],
    "bidirectional": ["modernbert", "bert", "bert_published"],
}  # fmt: skip


def overrides_of_models() -> dict[str, list[str]]:
    design = read_choice("study", "baselines")["design"]
    shared = ["model.context=128", *design["sources"]["encyclopedic"], *design["pretrain"]]
    timed = {*RIVALS, *(rival for rivals in RIVALS.values() for rival in rivals)}
    kinds = {name: kind for name, kind in design["kinds"].items() if name in timed}
    models = {name: [*shared, *kind["model"], *kind["pretrain"]] for name, kind in kinds.items()}
    return models | {plain(name): [*models[name], "model.attention.qk_norm=false"] for name in RIVALS}


def plain(name: str) -> str:
    return f"{name}_without_qk_norm"


def tokens_per_s(overrides: list[str], tokens: int) -> float:
    """The speed of a run's steps by its own summary."""
    words = [word for word in overrides if not word.startswith("budget.")]
    quiet = ["logger=csv", "eval.tokens=4096", "callbacks.checkpoints.every=0", "callbacks.samples=null"]
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, PROJECT / "train.py", f"root={root}", *words, f"budget.tokens={tokens}", *quiet]
        subprocess.run([*command, "trainer.threads=1"], check=True, capture_output=True, text=True)
        (summary,) = Path(root).glob("*/*/summary.json")
        return json.loads(summary.read_text())["stages"][0]["tokens_per_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=4)
    a = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    models = overrides_of_models()
    tokens_per_s(models["dense"], 4096)  # prepares the data, so that no measured run does
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(a.rounds):
        order = list(models) if number % 2 == 0 else list(reversed(models))
        for name in order:
            speeds[name].append(tokens_per_s(models[name], a.tokens))
            print(f"round {number + 1}: {name} {speeds[name][-1]:,.0f} tokens a second", flush=True)
    rows = []
    pairs = [(own, rival) for name, rivals in RIVALS.items() for rival in rivals for own in (name, plain(name))]
    for arm, against in pairs:
        ratios = [one / two for one, two in zip(speeds[arm], speeds[against], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows.append({"arm": arm, "against": against, "ratio": middle, "quartiles": [low, high]})
        print(f"{arm} / {against}: {middle:.3f} [{low:.3f}, {high:.3f}] of its tokens a second")
    result = {"tokens": a.tokens, "rounds": a.rounds, "ratios": rows, "tokens_per_s": speeds}
    a.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
