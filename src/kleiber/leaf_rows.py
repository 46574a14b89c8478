"""A run as rows of runs.jsonl.gz and back: one row a leaf of its tree of stages, `{run, config, summary, rows}`.

run      the name of the run's folder
config   the content of config.yaml
summary  that of summary.json, with the stages from the root to this leaf alone: the leaf is the last of them
rows     what was logged in these stages (`metrics.condensed`); of stages that leaves share, with the first leaf
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kleiber.catalog import Run

Row = Mapping[str, Any]


def leaf_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of a run; a run without a leaf, such as one that failed early, has one row all the same."""
    stages = {stage.get("name"): stage for stage in run.stages}
    paths = [path_to(leaf.get("name"), stages) for leaf in run.leaves] or [[]]
    paths[0] = [*(name for name in stages if not any(name in path for path in paths)), *paths[0]]
    first_path = {name: number for number, path in reversed(list(enumerate(paths))) for name in path}
    summary = {**run.summary, "status": run.status, "overrides": run.overrides}
    return [
        {
            "run": run.name,
            "config": run.config,
            "summary": {**summary, "stages": [stages[name] for name in path]},
            "rows": [row for row in run.rows if first_path.get(row.get("stage"), 0) == number],
        }
        for number, path in enumerate(paths)
    ]


def path_to(name: str | None, stages: Mapping[str | None, Row]) -> list[str | None]:
    """Names of the stages from the root to one of them."""
    path: list[str | None] = []
    while name in stages and name not in path:
        path.insert(0, name)
        name = stages[name].get("parent")
    return path


def runs_of(rows: Sequence[Row], home: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, summary, and `{config, rows}` of each run that rows are of, in order of name.

    Of a run that was added several times the last one counts, and one that finished before any other. Paths through
    the folders of these runs are rewritten to begin at `home`: a study that was moved reads as if it had been made
    there.
    """
    leaves: dict[str, list[Row]] = {}
    for row in rows:
        earlier = leaves.get(row["run"], [])
        if earlier and is_further_leaf(row, earlier):
            earlier.append(row)
        elif not earlier or row["summary"]["status"] == "finished" or earlier[0]["summary"]["status"] != "finished":
            leaves[row["run"]] = [row]
    for name, of_run in sorted(leaves.items()):
        stages = {stage.get("name"): stage for row in of_run for stage in row["summary"].get("stages") or []}
        summary = {**of_run[0]["summary"], "stages": list(stages.values())}
        summary["overrides"] = [moved_override(line, home, leaves) for line in summary.get("overrides") or []]
        logged = [entry for row in of_run for entry in row["rows"]]
        yield name, summary, {"config": moved(of_run[0]["config"], home, leaves), "rows": logged}


def is_further_leaf(row: Row, leaves: Sequence[Row]) -> bool:
    """Whether a row is another leaf of the run that `leaves` are of, and not that run a second time."""
    summary, earlier = ({**leaf["summary"], "stages": None} for leaf in (row, leaves[0]))
    return summary == earlier and leaf_name(row) not in map(leaf_name, leaves)


def leaf_name(row: Row) -> str | None:
    stages = row["summary"].get("stages")
    return stages[-1].get("name") if stages else None


def moved(value: Any, home: Path, names: Container[str]) -> Any:
    """A config in which every absolute path through the folder of a run in `names` leads there from `home`."""
    if isinstance(value, dict):
        return {key: moved(entry, home, names) for key, entry in value.items()}
    if isinstance(value, list):
        return [moved(entry, home, names) for entry in value]
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    parts = Path(value).parts
    start = next((number for number, part in enumerate(parts) if part in names), None)
    return value if start is None else str(home.absolute().joinpath(*parts[start:]))


def moved_override(line: str, home: Path, names: Container[str]) -> str:
    key, equals, value = line.partition("=")
    return f"{key}{equals}{moved(value, home, names)}"
