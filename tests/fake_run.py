"""The folder of a run without its training: what studies, tables and commands read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from declared_metrics import declared
from jsonschema import Draft202012Validator

import kleiber.records

SCHEMA = Path(kleiber.records.__file__).with_name("summary.schema.json")
STAGE = {
    "name": "main", "parent": None, "branch_step": None, "trunk": None, "status": "finished", "objective": "clm",
    "tokens": 1_000_000, "unique_tokens": 1_000_000, "samples": 1000, "steps": 1000, "batch_tokens": 1000, "lr": 0.01,
    "seconds": 10.0, "device_seconds": 10.0, "tokens_per_s": 1e5, "mfu": None, "peak_memory_bytes": 2**28,
    "metrics": {}, "start_metrics": {}, "curve": [], "checkpoint": None,
}  # fmt: skip
DATA = {"name": "docs", "config": "{}", "hash": "0" * 8, "tokenizer_hash": "0" * 8, "tokens": 1_000_000, "bytes": 10**6}
SUMMARY = {
    "schema": "kleiber.run/1", "error": None, "study": None, "config_hash": "0" * 8, "commit": None, "dirty": None,
    "versions": {}, "machine": {"cpu": "none", "threads": 1, "device": "cpu", "world_size": 1},
    "started": "2026-01-01T00:00:00+00:00", "seconds": 10.0, "R": None,
}  # fmt: skip


def fake_stage(name: str = "main", *, params: Mapping[str, int] | int = 1000, **values: Any) -> dict[str, Any]:
    """A stage of summary.json: `values` over the defaults, `data` and `flops` key by key.

    The scores are those of the metrics, as classes declare them; metrics that none declares have no scores.

    params  number of parameters, or some of the numbers in a summary; `active` stands for those that are not there
    """
    counts = dict(params) if isinstance(params, Mapping) else {"active": params}
    active = counts.setdefault("active", 1000)
    counts = {**dict.fromkeys(("total", "non_embedding", "trainable"), active), "embedding": 0, **counts}
    stage = {**STAGE, **values, "name": name, "params": counts, "data": {**DATA, **values.get("data", {})}}
    flops = {"model": 6.0 * active * stage["tokens"], "six_nd": 6.0 * active * stage["tokens"]}
    flops |= values.get("flops", {})
    scores = {key: score for key, value in stage["metrics"].items() if (score := fake_score(key, value)) is not None}
    scores |= values.get("scores", {})
    return {**stage, "scores": scores, "flops": {"executed": flops["model"], **flops}}


def fake_score(key: str, value: float | None) -> dict[str, Any] | None:
    """The score of a key of summary.json, whichever objective it is of; None where no class declares it."""
    for objective in ("clm", "classify", "dpo", "kto"):
        with suppress(KeyError):
            return declared(key, value, objective)
    return None


def fake_run(
    folder: Path, stages: Iterable[Mapping[str, Any]] = ({},), *, config: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (), rows: Iterable[Mapping[str, Any]] = (), status: str = "finished", seed: int = 0,
    R: Mapping[str, Any] | None = None, **summary: Any,
) -> Path:  # fmt: skip
    """Writes config.yaml, overrides.yaml, metrics.jsonl and a summary.json that is checked against its schema.

    stages   what is not as in `fake_stage`, for each stage
    rows     of metrics.jsonl
    R        the matrix of tasks, or some of its keys, such as `tasks`
    summary  further keys of summary.json
    """
    stages = [fake_stage(**stage) for stage in stages]
    if R is not None:
        metric = {task: f"val/{task}/loss" for task in R["tasks"]}
        empty = {"stages": [stage["name"] for stage in stages], "metric": metric, "matrix": [], "baseline": []}
        R = {**empty, "higher_is_better": dict.fromkeys(R["tasks"], False), **R}
    folder.mkdir(parents=True, exist_ok=True)
    write_summary(folder, stages, status=status, overrides=[*overrides], seed=seed, R=R, **summary)
    plain = json.loads(json.dumps(config or {}))  # numpy's numbers are no YAML
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    (folder / "overrides.yaml").write_text(yaml.safe_dump([*overrides]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_summary(folder: Path, stages: Iterable[Mapping[str, Any]] = (), **summary: Any) -> None:
    """Writes a summary.json alone, with what is not as in `SUMMARY`; `stages` are whole, as of `fake_stage`."""
    content = {**SUMMARY, "run_id": sha256(str(folder).encode()).hexdigest()[:8], "name": folder.name}
    content |= {"status": "finished", "overrides": [], "seed": 0, "stages": [*stages], **summary}
    validator().validate(content)
    (folder / "summary.json").write_text(json.dumps(content))


@cache
def validator() -> Draft202012Validator:
    """Of summary.json. Raises jsonschema's ValidationError for one that no run would write."""
    return Draft202012Validator(json.loads(SCHEMA.read_text()))
