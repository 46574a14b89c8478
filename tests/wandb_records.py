"""Reads an offline W&B file back: a LevelDB log of 32 KiB blocks after a 7-byte header, one protobuf record each."""

import json
import struct
import time
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7


def records(path: Path):
    from wandb.proto import wandb_internal_pb2 as pb

    data = path.read_bytes()
    assert data[:4] == b":W&B", f"{path} is no W&B file"
    at, part = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # the rest of a block too small for a header is padding
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if at + HEADER + length > len(data):  # the service is writing this one
            return
        part += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = pb.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def read(path: Path, patience: float = 10.0) -> dict[str, Any]:
    """Run facts, config, history rows, summary, artifacts by name and exit code (None: the process never finished).

    The client's service writes a finished run a moment after `finish` has returned, at the latest when the process that
    began it ends; inside of that process, as here, it has to be waited for.
    """
    until = time.monotonic() + patience
    while (found := content(path))["exit_code"] is None and time.monotonic() < until:
        time.sleep(0.05)
    return found


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "artifacts": {}, "exit_code": None}
    found["axes"] = {}
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found["run"] = {
                    "id": run.run_id,
                    "group": run.run_group,
                    "name": run.display_name,
                    "type": run.job_type,
                    "tags": list(run.tags),
                }
                found["config"].update(items(run.config.update))
            case "config":
                found["config"].update(items(record.config.update))
            case "history":
                found["history"].append(items(record.history.item))
            case "summary":
                found["summary"].update(items(record.summary.update))
            case "artifact":
                artifact = record.artifact
                paths = {entry.path for entry in artifact.manifest.contents}
                found["artifacts"][artifact.name] = {
                    "type": artifact.type,
                    "paths": paths,
                    "aliases": list(artifact.aliases),
                }
            case "metric":
                metric = record.metric
                found["axes"][metric.name or metric.glob_name] = metric.step_metric
            case "exit":
                found["exit_code"] = record.exit.exit_code
    return found


def items(updates: Any) -> dict[str, Any]:
    return {("/".join(i.nested_key) if i.nested_key else i.key): json.loads(i.value_json) for i in updates}
