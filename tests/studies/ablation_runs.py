"""Planted runs of an ablation."""

import math
from dataclasses import replace

import numpy as np
from fake_run import fake_run

from kleiber.config.errors import Status
from kleiber.records.catalog import read_runs

LRS = [0.005, 0.01, 0.02, 0.04, 0.08]
TOKENS = (1e6, 4e6)


def write(folder, gap=lambda x: -0.02, seeds=3, best=0.02, status="finished", arms=("plain", "qk_norm"), slope=-0.05):
    """Arms at three widths and two lengths: the log loss has a slope a decade; x is 0 at the largest."""
    rng = np.random.default_rng(0)
    largest = 6 * 128**2 * TOKENS[-1]
    shared = rng.normal(size=seeds) * 0.01
    for arm in arms:
        for width in (32, 64, 128):
            for seed in range(seeds):
                for lr in LRS:
                    stages = []
                    for tokens in TOKENS:
                        flops = 6 * width**2 * tokens
                        x = math.log10(flops / largest)
                        loss = math.log(1.5) + slope * x + 0.01 * math.log2(lr / best) ** 2 + shared[seed]
                        loss += ({"qk_norm": gap(x), "worse": 0.03}.get(arm, 0.0)) + 3e-4 * rng.normal()
                        metrics = {"val/docs/loss": math.exp(loss)}
                        stages.append({"name": f"{tokens:g}", "parent": "trunk", "tokens": tokens, "lr": lr,
                                       "flops": {"model": float(flops)}, "metrics": metrics})  # fmt: skip
                    config = {"seed": seed, "model": {"width": width}, "optimizer": {"lr": lr}, "study": {"arm": arm},
                              "design": {"arms": {name: {} for name in arms}}}  # fmt: skip
                    home = folder / f"{arm}-{width}-{seed}-{lr}"
                    fake_run(home, [{"name": "trunk"}, *stages], config=config, seed=seed, status=status)
    return read_runs(folder)


def copied(run, name, **config):
    """The run in another folder, with other values of its config."""
    return replace(run, folder=run.folder.with_name(name), archived={"config": {**run.config, **config}, "rows": []})


def with_divergence(runs, where):
    """The runs, of which those `where` arm, width, seed and rate are so have diverged."""
    out = []
    for run in runs:
        config = run.config
        if where(config["study"]["arm"], config["model"]["width"], config["seed"], config["optimizer"]["lr"]):
            run = replace(run, status=Status.DIVERGED, summary={**run.summary, "status": "diverged", "stages": []})
        out.append(run)
    return out
