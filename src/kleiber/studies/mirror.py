"""A study in W&B: its panels, tables and laws.json as one run of job type `study`, in the group of the sweep.

It goes where the runs of the study went: online if one of them was, offline otherwise. A server that does not take it
costs a line, not the report. It writes nothing that the folder does not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kleiber.catalog import Run
from kleiber.folder import read_config
from kleiber.studies.findings import Findings


def send(
    folder: Path, told: Mapping[str, Any], found: Findings, charts: Mapping[str, Any], runs: Sequence[Run]
) -> None:
    """One W&B run for the study; a second report continues it."""
    import wandb

    nodes = [(read_config(run.folder).get("logger") or {}).get("wandb") or {} for run in runs]
    project = next((node["project"] for node in nodes if node.get("project")), "kleiber")
    online = any(any((run.folder / "wandb").glob("run-*")) for run in runs)
    settings = wandb.Settings(init_timeout=30, console="off", x_disable_stats=True, silent=True)
    try:
        run = wandb.init(
            dir=folder, project=project, entity=next((n["entity"] for n in nodes if n.get("entity")), None),
            group=folder.name, job_type="study", name=f"{folder.name} (study)", id=f"study-{folder.name}",
            resume="allow", mode="online" if online else "offline", settings=settings,
        )  # fmt: skip
        run.summary.update({"headline": told["headline"], "runs": told["runs"]})
        logged: dict[str, Any] = {name: wandb.Image(str(folder / "figures" / f"{name}.png")) for name in charts}
        for title, rows in told["tables"].items():
            if rows:
                names = list(dict.fromkeys(name for row in rows for name in row))
                logged[title] = wandb.Table(
                    columns=names, data=[tuple(row.get(name) for name in names) for row in rows]
                )
        texts: Any = [(one["level"], one["code"], one["text"]) for one in told["verdicts"]]
        run.log({**logged, "verdicts": wandb.Table(columns=["level", "code", "text"], data=texts)})
        artifact = wandb.Artifact(f"{folder.name}-study", type="study")
        for name in ("laws.json", "findings.json", "report.html"):
            if (folder / name).exists():
                artifact.add_file(str(folder / name))
        run.log_artifact(artifact)
        run.finish()
    except (wandb.Error, OSError) as error:
        print(f"W&B: the study was not mirrored: {error}", file=sys.stderr)
