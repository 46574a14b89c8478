"""The loop that one would write by hand: the yardstick of `benchmarks/step.py`. One file, no framework.

The same architecture as `model=gpt` (pre-norm, rotary positions, gated MLP, tied head), fused AdamW, clipping,
materialised logits; `--chunked` swaps the loss for kleiber's chunked one. `--precision bf16` is autocast with fp32
weights. Prints one JSON line.
"""

import argparse
import json
import resource
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, 1e-5), nn.RMSNorm(width, 1e-5)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.qnorm, self.knorm = nn.RMSNorm(width // heads, 1e-5), nn.RMSNorm(width // heads, 1e-5)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.qnorm(q), cos, sin), rotate(self.knorm(k), cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Bare(nn.Module):
    def __init__(self, vocab: int, width: int, depth: int, heads: int, hidden: int, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, context) for _ in range(depth))
        self.norm = nn.RMSNorm(width, 1e-5)
        half = width // heads // 2
        angle = torch.arange(context)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.norm(x)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (("width", 128), ("depth", 4), ("heads", 4), ("hidden", 352), ("context", 256), ("vocab", 4096)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=1, help="steps that are not timed: they allocate and compile")
    parser.add_argument("--chunked", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    a = parser.parse_args()
    torch.manual_seed(0)
    if a.device == "cuda":
        torch.set_float32_matmul_precision("high")  # as kleiber sets it
    model = Bare(a.vocab, a.width, a.depth, a.heads, a.hidden, a.context).to(a.device)
    if a.compile:
        model.compile(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    data = torch.randint(a.vocab, (a.steps, a.rows, a.context + 1))
    started = 0.0
    for step in range(a.steps):
        if step == a.warmup:
            started = time.perf_counter()
        tokens = data[step].to(a.device, non_blocking=True)
        with torch.autocast(a.device, torch.bfloat16, enabled=a.precision == "bf16"):
            hidden, targets = model(tokens[:, :-1]), tokens[:, 1:]
            if a.chunked:
                from kleiber.nn.heads import LMHead
                from kleiber.nn.loss import cross_entropy

                head = LMHead(model.embed.weight)  # type: ignore[arg-type]
                loss = cross_entropy(hidden, head, targets).total / targets.numel()
            else:
                loss = F.cross_entropy((hidden @ model.embed.weight.T).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
    seconds = (time.perf_counter() - started) / (a.steps - a.warmup)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if a.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({"seconds_per_step": seconds, "peak_memory_bytes": peak}))


if __name__ == "__main__":
    main()
