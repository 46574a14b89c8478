"""Runs of arms whose losses are known, with three seeds and five learning rates each."""

import math

from fake_run import fake_run

from kleiber.studies.compare.costs import LATENCY

LRS = [0.005, 0.01, 0.02, 0.04, 0.08]


TOKENS = (2e6, 4e6, 8e6)


def bowl(lr: float, best: float = 0.02) -> float:
    return 0.05 * math.log2(lr / best) ** 2


def write(
    folder, study, arm, base, lrs=LRS, seeds=3, best=0.02, total=400_000, core=100_000, speed=1e4, status="finished",
    latency=None,
):  # fmt: skip
    """Runs with branches at 2M, 4M and 8M tokens: loss = base - .1 log2(D / 4M) + bowl(lr) + noise of the seed.

    latency  decoded tokens/s of one row of the first run; each further run decodes slower, as if others were at work
    """
    for lr in lrs:
        for seed in range(seeds):
            model = {"depth": 2, "width": 64, "context": 128}
            config = {"seed": seed, "model": model, "optimizer": {"lr": lr}, "study": {**study, "arm": arm}}
            params = {"total": total, "active": core + 16_000, "non_embedding": total - 16_000, "embedding": 16_000}
            stages: list[dict] = [{"name": "trunk"}]
            for tokens in TOKENS:
                loss = base - 0.1 * math.log2(tokens / 4e6) + bowl(lr, best) + [0.0, 0.02, -0.01, 0.01, -0.02][seed]
                stages.append({
                    "name": f"{tokens / 1e6:g}M", "parent": "trunk", "trunk": "trunk", "lr": lr, "tokens": tokens,
                    "params": params, "flops": {"model": 6.0 * core * tokens}, "tokens_per_s": speed,
                    "metrics": {"val/docs/loss": loss, **({} if latency is None else served(latency / (1 + seed)))},
                })  # fmt: skip
            row = {"step": 9, "moe/load_entropy/0": 0.9, "moe/max_violation/0": 0.4, "moe/dead/0": 2.0}
            home = folder / f"{arm}-lr{lr:g}-seed{seed}"
            stages = stages if status == "finished" else []
            fake_run(home, stages, config=config, rows=[row], status=status, seed=seed)
    return folder


def served(rate: float) -> dict[str, float]:
    """The scores of evals=[latency] of a model that decodes at this rate; eight rows take no longer than one."""
    row = {"prefill_tokens_per_s": 10 * rate, "decode_tokens_per_s": rate, "decode_p50_ms": 1e3 / rate,
           "decode_p95_ms": 2e3 / rate, "memory_bytes": 4e6}  # fmt: skip
    eight = {**row, "prefill_tokens_per_s": 20 * rate, "decode_tokens_per_s": 8 * rate, "memory_bytes": 5e6}
    return {
        f"{LATENCY}{name}/{rows}": value for rows, by_code in ((1, row), (8, eight)) for name, value in by_code.items()
    }
