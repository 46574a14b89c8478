"""Seconds per optimizer step of our mixture against plain dense, our dense, and Hugging Face's Mixtral of one shape.

Fresh processes in turn, so that a machine that drifts drifts for all; ratios are taken round by round and their median
and quartiles are printed. Top-2 of 8 experts of equal active FLOPs. Mixtral runs in the plain loop below (fused AdamW,
clipping, materialised logits), once with each implementation of its experts; the fastest one enters the rounds. Run it
on an idle machine:

    python benchmarks/moe.py --shape tiny --rounds 5
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from step import SHAPES, bare, ours, quartiles

EXPERTS, ACTIVE = 8, 2
IMPLEMENTATIONS = ("eager", "grouped_mm")  # batched_mm gathers a matrix a token: correct, and too big to time
HERE = Path(__file__).parent


def mixtral(shape: dict[str, int], steps: int, experts: str) -> dict[str, float] | None:
    """Mixtral in a process of its own; None where this implementation does not run here."""
    flags = [f"--{name}={value}" for name, value in shape.items()]
    command = [sys.executable, __file__, "--loop", experts, f"--steps={steps}", *flags]
    out = subprocess.run(command, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1]) if out.returncode == 0 else None


def fastest(shape: dict[str, int], steps: int) -> str:
    """The implementation of Mixtral's experts that takes least time here."""
    times = {}
    for name in IMPLEMENTATIONS:
        found = mixtral(shape, steps, name)
        print(f"mixtral {name}: {'does not run' if found is None else round(1e3 * found['seconds_per_step'], 1)} ms")
        if found is not None:
            times[name] = found["seconds_per_step"]
    return min(times, key=lambda name: times[name])


def loop(shape: dict[str, int], steps: int, experts: str) -> None:
    """Trains Mixtral on random tokens and prints one JSON line."""
    import torch
    import torch.nn.functional as F
    import transformers

    torch.manual_seed(0)
    hidden = -(-shape["hidden"] // (8 * ACTIVE)) * 8
    implementations: dict[str, Any] = {"attn_implementation": "sdpa", "experts_implementation": experts}
    config = transformers.MixtralConfig(
        vocab_size=shape["vocab"], hidden_size=shape["width"], intermediate_size=hidden,
        num_hidden_layers=shape["depth"], num_attention_heads=shape["heads"], num_key_value_heads=shape["heads"],
        num_local_experts=EXPERTS, num_experts_per_tok=ACTIVE, max_position_embeddings=shape["context"],
        tie_word_embeddings=True, output_router_logits=True, router_aux_loss_coef=0.01, sliding_window=None,
        **implementations,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    data = torch.randint(shape["vocab"], (steps, shape["rows"], shape["context"] + 1))
    started = 0.0
    for step in range(steps):
        if step == 1:  # the first step pays for allocation
            started = time.perf_counter()
        out = model(input_ids=data[step][:, :-1], use_cache=False)
        loss = F.cross_entropy(out.logits.flatten(0, 1), data[step][:, 1:].flatten())
        (loss + 0.01 * transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func(
            out.router_logits, EXPERTS, ACTIVE)).backward()  # fmt: skip
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
    seconds = (time.perf_counter() - started) / (steps - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds_per_step": seconds, "peak_memory_bytes": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--loop", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    for name in SHAPES["tiny"]:
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="further overrides for train.py with model=moe")
    a = parser.parse_args()
    if a.loop:
        return loop({name: getattr(a, name) for name in SHAPES["tiny"]}, a.steps, a.loop)
    os.environ["WANDB_MODE"] = "disabled"
    shape = SHAPES[a.shape]
    ours(shape, 2, "moe", a.overrides)  # builds the data cache, so that no measured run does
    chosen = fastest(shape, a.steps)
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(a.rounds):
        peer = mixtral(shape, a.steps, chosen)
        assert peer is not None
        plain, dense = bare(shape, a.steps, "plain"), ours(shape, a.steps, "gpt", [])
        rounds.append({"moe": ours(shape, a.steps, "moe", a.overrides), "bare": plain, "dense": dense, "mixtral": peer})
        told = {name: round(1e3 * found["seconds_per_step"], 1) for name, found in rounds[-1].items()}
        print(f"round {number + 1}: {told} ms", flush=True)
    print(f"{a.shape}, top-{ACTIVE} of {EXPERTS}, {a.rounds} rounds of {a.steps} steps; Mixtral with {chosen} experts")
    for key in ("seconds_per_step", "peak_memory_bytes"):
        for name, goal in (("bare", "1.05"), ("mixtral", f"{1 / 1.15:.2f}"), ("dense", "")):
            wanted = f"  (goal {goal})" if goal and key == "seconds_per_step" else ""
            print(f"  {key:20} moe / {name:8} {quartiles([r['moe'][key] / r[name][key] for r in rounds])}{wanted}")
    extra = [
        (r["moe"]["seconds_per_step"] - r["dense"]["seconds_per_step"]) / r["bare"]["seconds_per_step"] for r in rounds
    ]
    print(f"  extra time over our dense, as a share of the bare dense step: {quartiles(extra)}  (goal .20)")


if __name__ == "__main__":
    main()
