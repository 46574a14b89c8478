"""What pre-training gives: planned in rounds, tuned, paired with the same model from nothing, counted in labels."""

from pathlib import Path

from fake_run import fake_run


def write(home: Path, lines: list[str], **metrics: float) -> Path:
    """A finished run as the overrides plan it."""
    told = dict(line.split("=", 1) for line in lines)
    study = {key.split(".")[1]: value for key, value in told.items() if key.startswith("study.")}
    folder = home / f"run{len(list(home.glob('*')))}"
    (folder / "tokenizer").mkdir(parents=True)
    stage = {
        "tasks": ["toy"], "lr": float(told.get("optimizer.lr", 0.02)),
        "metrics": {f"val/toy/{key}": value for key, value in metrics.items()},
        "data": {"tokens": round(1000 * float(told.get("data.share", 1)))}, "params": {"total": 10, "non_embedding": 5},
    }  # fmt: skip
    seed = int(told["seed"])
    return fake_run(folder, [stage], config={"study": study, "seed": seed, "data": {}}, overrides=lines, seed=seed)
