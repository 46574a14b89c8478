"""A run on the disk whose weights and losses a test names."""

import json

from fake_run import fake_run

from kleiber.records.catalog import read_run


def record(folder, loss=2.0, *, weights=None, rows=((10, 3.0),), seed=0, init=None, status="finished", depth=2):
    stage = {"metrics": {"val/docs/loss": loss}, "checkpoint": "stages/main/checkpoints/step-00000010"}
    config = {
        "seed": seed, "model": {"depth": depth}, "init": init and {"path": str(init)}, "data": {}, "name": "study",
        "root": str(folder.parent.parent),
    }  # fmt: skip
    logged = [{"step": step, "train/loss": value} for step, value in rows]
    fake_run(folder, [stage], config=config, seed=seed, rows=logged, status=status)
    if weights:
        place = folder / stage["checkpoint"]
        place.mkdir(parents=True)
        (place / "model.safetensors").write_text("")
        (place / "meta.json").write_text(json.dumps({"sha256": {"model.safetensors": weights}}))
    return read_run(folder)
