"""A study in W&B: its panels, tables and laws.json as one run of job type `study`, in the group of the sweep.

It goes where the runs of the study went: online if one of them was, offline otherwise. A part that W&B does not take
keeps no other part back, and no part costs the report. It writes nothing that the folder does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kleiber import archive
from kleiber.catalog import Run
from kleiber.studies.findings import Findings

FILES = ("findings.json", "report.html", archive.NAME)  # of the artifact, beside laws.json


def send(
    folder: Path, findings: Mapping[str, Any], found: Findings, charts: Mapping[str, Any], runs: Sequence[Run]
) -> list[str]:
    """One W&B run for the study; a second report continues it. Returns what did not arrive, each part with why."""
    failures: list[str] = []
    try:
        run = begin(folder, runs)
    except Exception as error:  # W&B raises classes of its own, of pydantic's and of the network's
        return [f"the study: {reason(error)}"]
    for part, log in parts(run, folder, findings, found, charts).items():
        try:
            log()
        except Exception as error:
            failures.append(f"{part}: {reason(error)}")
    return failures


def begin(folder: Path, runs: Sequence[Run]) -> Any:
    """The W&B run of the study, in the project of its runs."""
    import wandb

    nodes = [(run.config.get("logger") or {}).get("wandb") or {} for run in runs]
    online = any(any((run.folder / "wandb").glob("run-*")) for run in runs)
    name = folder.absolute().name
    return wandb.init(
        dir=folder, project=next((node["project"] for node in nodes if node.get("project")), "kleiber"),
        entity=next((node["entity"] for node in nodes if node.get("entity")), None),
        group=name, job_type="study", name=f"{name} (study)", id=f"study-{name}", resume="allow",
        mode="online" if online else "offline",
        settings=wandb.Settings(init_timeout=30, console="off", x_disable_stats=True, silent=True),
    )  # fmt: skip


def parts(
    run: Any, folder: Path, findings: Mapping[str, Any], found: Findings, charts: Mapping[str, Any]
) -> dict[str, Callable[[], None]]:
    """What is sent, by name, in order; the last one ends the run. All panels are logged at one step."""
    headline = {"headline": findings["headline"], "runs": findings["runs"]}
    steps: dict[str, Callable[[], None]] = {"headline": partial(run.summary.update, headline)}
    for name in charts:
        steps[f"figure {name}"] = partial(send_image, run, f"figures/{name}", folder / "figures" / f"{name}.png")
    for title, rows in findings["tables"].items():
        if rows:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            steps[f"table {title}"] = partial(send_table, run, f"tables/{title}", columns, rows)
    steps["verdicts"] = partial(send_table, run, "verdicts", ["level", "code", "text"], findings["verdicts"])
    laws = ["laws.json"] if found.law is not None else []
    files = [folder / name for name in (*laws, *FILES) if (folder / name).exists()]
    steps["artifact"] = partial(send_artifact, run, f"{folder.absolute().name}-study", files)
    steps["end of the run"] = run.finish
    return steps


def send_image(run: Any, key: str, file: Path) -> None:
    import wandb

    run.log({key: wandb.Image(str(file))}, commit=False)


def send_table(run: Any, key: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    import wandb

    cells: Any = [[row.get(name) for name in columns] for row in rows]
    run.log({key: wandb.Table(columns=list(columns), data=cells, allow_mixed_types=True)}, commit=False)


def send_artifact(run: Any, name: str, files: Sequence[Path]) -> None:
    import wandb

    artifact = wandb.Artifact(name, type="study")
    for file in files:
        artifact.add_file(str(file))
    run.log_artifact(artifact)


def reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
