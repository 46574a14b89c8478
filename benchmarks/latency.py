"""Prefill and decode speed, dense and mixture, against Hugging Face's own model with the same weights.

    python benchmarks/latency.py [--width 128] [--depth 4] [--batches 1 8 64] [--json FILE]

One process, ours and theirs in turn, `--rounds` times for every batch size; of each number the best round, since what
else the machine does only ever slows a round. The twins run with their own DynamicCache and compute the logits of the
last position alone, as ours do. Ratios are ours over theirs: above 1 we are faster.
"""

from __future__ import annotations

import argparse
import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kleiber.evals.latency import Step, latency, measure
from kleiber.models.hf_twin import to_hf
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import interleaved_moe


def twin_speed(twin: Any, rows: int, prompt: int, new: int, device: torch.device) -> dict[str, float]:
    from transformers import DynamicCache

    takes = inspect.signature(twin.forward).parameters
    name = "cache" if "cache" in takes else "past_key_values"  # renamed in the course of version 5

    def start() -> Step:
        options = {name: DynamicCache(config=twin.config), "use_cache": True, "logits_to_keep": 1}
        return lambda ids: twin(ids, **options).logits[:, -1]

    return measure(start, twin.config.vocab_size, rows, prompt, new, 1, device)


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The highest speeds and the lowest times."""
    return {name: (min if "_ms" in name else max)(one[name] for one in rounds) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"width": 128, "depth": 4, "vocab": 4096, "prompt": 128, "new": 64, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    told = parser.parse_args()
    if told.threads:
        torch.set_num_threads(told.threads)
    device, context = torch.device(told.device), told.prompt + told.new
    shape: dict[str, Any] = {"depth": told.depth, "width": told.width, "context": context, "qk_norm": False}
    rows = []
    for kind, mlp in {"dense": {}, "moe": {"mlp": partial(interleaved_moe, num_experts=8, k=2)}}.items():
        model = Transformer(told.vocab, **shape, **mlp).eval().to(device)
        twin = to_hf(model).to(device)
        for batch in told.batches:
            rounds = []
            for _ in range(told.rounds):
                found = latency(model, [batch], told.prompt, told.new, 1)
                own = {name.split("/")[0]: value for name, value in found.items()}
                rounds.append((own, twin_speed(twin, batch, told.prompt, told.new, device)))
            ours, theirs = (best(list(side)) for side in zip(*rounds, strict=True))
            rows.append({"model": kind, "batch": batch, "ours": ours, "hugging_face": theirs})
            line = "  ".join(
                f"{name} {ours[f'{name}_tokens_per_s']:>9,.0f} / {theirs[f'{name}_tokens_per_s']:>9,.0f} tok/s "
                f"({ours[f'{name}_tokens_per_s'] / theirs[f'{name}_tokens_per_s']:.2f}x)"
                for name in ("prefill", "decode")
            )
            steps = f"p50/p95 {ours['decode_p50_ms']:.2f}/{ours['decode_p95_ms']:.2f} ms"
            steps += f" against {theirs['decode_p50_ms']:.2f}/{theirs['decode_p95_ms']:.2f}"
            print(f"{kind:5} batch {batch:3}  {line}  {steps}  {ours['memory_bytes'] / 2**20:.1f} MiB", flush=True)
    if told.json:
        told.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
