"""What pre-training gives: planned in rounds, tuned, paired with the same model from nothing, counted in labels."""

import json
from pathlib import Path

import yaml


def write(home: Path, lines: list[str], **metrics: float) -> Path:
    """A finished run as the overrides plan it."""
    told = dict(line.split("=", 1) for line in lines)
    study = {key.split(".")[1]: value for key, value in told.items() if key.startswith("study.")}
    folder = home / f"run{len(list(home.glob('*')))}"
    (folder / "tokenizer").mkdir(parents=True)
    stage = {
        "name": "main", "tasks": ["toy"], "lr": float(told.get("optimizer.lr", 0.02)), "seconds": 1.0,
        "metrics": {f"val/toy/{key}": value for key, value in metrics.items()},
        "data": {"tokens": 1000 * float(told.get("data.share", 1))}, "params": {"total": 10, "non_embedding": 5},
    }  # fmt: skip
    summary = {"status": "finished", "seed": int(told["seed"]), "stages": [stage]}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(yaml.safe_dump({"study": study, "seed": int(told["seed"]), "data": {}}))
    (folder / "overrides.yaml").write_text(yaml.safe_dump(lines))
    return folder
