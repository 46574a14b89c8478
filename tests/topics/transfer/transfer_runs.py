"""Runs of the transfer study with known scores: from scratch, and from two pretrained bases."""

import math
from pathlib import Path

from fake_run import fake_run

from kleiber.records.catalog import Run, read_runs


def write(home: Path, lines: list[str], **metrics: float) -> Path:
    """A finished run as the overrides plan it."""
    overrides = dict(line.split("=", 1) for line in lines)
    study = {key.split(".")[1]: value for key, value in overrides.items() if key.startswith("study.")}
    folder = home / f"run{len(list(home.glob('*')))}"
    (folder / "tokenizer").mkdir(parents=True)
    stage = {
        "tasks": ["toy"], "lr": float(overrides.get("optimizer.lr", 0.02)),
        "metrics": {key if "/" in key else f"val/toy/{key}": value for key, value in metrics.items()},
        "data": {"tokens": round(1000 * float(overrides.get("data.share", 1)))},
        "params": {"total": 10, "non_embedding": 5},
    }  # fmt: skip
    seed = int(overrides["seed"])
    config = {"study": study, "seed": seed, "model": {}, "data": {"metric": overrides.get("data.metric")}}
    if "init.path" in overrides:
        config["init"] = {"path": overrides["init.path"]}
    rows = [{"stage": "main", "step": 4, "train/loss": 0.3 if "scratch" in study["start"] else 0.1}]
    return fake_run(folder, [stage], config=config, overrides=lines, seed=seed, rows=rows)


def paired_runs(home: Path) -> list[Run]:
    """From scratch the score is .7 + .1 per decade of labels + .02 per seed; one base adds .1, the other nothing."""
    for seed in range(3):
        for share in (0.01, 0.1, 1):
            lines = [
                f"seed={seed}",
                "study.task=toy",
                "study.kind=mlm",
                f"study.share={share:g}",
                f"data.share={share}",
            ]
            score = 0.7 + 0.1 * math.log10(share) + 0.02 * seed
            linear = {"eval/reference/toy/majority/accuracy": 0.5, "eval/reference/toy/tfidf/accuracy": 0.71}
            write(home, [*lines, "study.start=scratch", "optimizer.lr=0.005"], accuracy=score, loss=0.5, **linear)
            write(home, [*lines, "study.start=docs/1M", "optimizer.lr=0.01"], accuracy=score + 0.1, loss=0.4)
            write(home, [*lines, "study.start=docs/2M", "optimizer.lr=0.01"], accuracy=score - 0.01 * seed, loss=0.4)
        lines = [f"seed={seed}", "study.task=toy", "study.kind=hf", "study.start=docs/1M", "study.share=1"]
        write(home, [*lines, "optimizer.lr=0.001"], accuracy=0.79 + 0.02 * seed, loss=0.4)
    other = ["seed=0", "study.task=toy", "study.kind=mlm", "study.start=scratch", "study.share=1", "optimizer.lr=0.002"]
    write(home, other, accuracy=0.99, loss=0.1)  # tried at one seed, and no part of the comparison
    return read_runs(home)
