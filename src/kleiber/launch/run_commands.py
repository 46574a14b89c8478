"""The commands of `kleiber` that read folders of runs.

Each command imports what it needs only when it is called.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from kleiber.config.errors import Preempted, Status
from kleiber.config.permissions import permit_data
from kleiber.records.terminal import print_line

Folder = Annotated[Path, typer.Argument(help="Folder of runs, such as multirun/first, a run, or a runs.jsonl.gz.")]


def runs(
    folder: Folder = Path("multirun"),
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    status: Annotated[str | None, typer.Option(help=f"List only runs with this status: {', '.join(Status)}.")] = None,
    filter: Annotated[
        str | None, typer.Option(metavar="EXPR", help="List only runs with, say, 'loss < 4 and model.depth in [2, 4]'.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COL", help="Sort by a column; -COL sorts in descending order.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="List at most this many runs.")] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="List these columns, such as run,loss,model.depth.")
    ] = None,
) -> None:
    """List the runs in a folder: status, loss, bits per byte, parameters, tokens, seconds.

    A column is a name that --json prints, a metric such as val/docs/loss, or a key of the config such as model.depth.
    """
    from kleiber.launch.run_list import Selection, print_columns, print_table, to_json
    from kleiber.records.catalog import read_runs

    selection = Selection(status, filter, sort, limit, [name.strip() for name in (columns or "").split(",") if name])
    present = read_runs(folder)
    selected = selection.apply(present)
    if as_json:
        print_line(to_json(selection.rows(selected, present)))
    elif not selected:
        asked = " ".join(f"--{name} {value!r}" for name, value in (("status", status), ("filter", filter)) if value)
        none = f"none of the {len(present)} runs in {folder} matches {asked}"
        print_line(none if present else f"no runs in {folder} (the folder of a run has a config.yaml)")
    elif columns:
        print_columns(selected, selection.rows(selected, present))
    else:
        print_table(selected)


def plot(
    places: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders that contain runs.")],
    y: Annotated[
        list[str] | None, typer.Option(help="Metric to draw, such as train/loss or val/*/loss; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A .png, .svg, .html or .json file. Default: curves.png and .html in RUN, or beside it."),
    ] = None,
) -> None:
    """Draw the curves of runs over training tokens: loss, validation loss, learning rate and gradient norm."""
    from kleiber.records.catalog import read_runs
    from kleiber.records.completeness import incomplete_runs_named
    from kleiber.studies.fit_command import import_page_module

    curves = import_page_module("curves")
    runs = [run for place in places for run in read_runs(place)]
    if not runs:
        raise FileNotFoundError(f"{places[0]} contains no run (the folder of a run has a config.yaml)")
    with incomplete_runs_named(runs):
        chart = curves.draw(runs, y or tuple(curves.PANELS))
    folder = places[0] if places[0].is_dir() else places[0].parent
    for file in [out] if out else [folder / "curves.png", folder / "curves.html"]:
        curves.save(chart, file)
        print_line(f"wrote {file}")


def publish(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of studies and runs, such as multirun.")],
    out: Annotated[Path | None, typer.Option(metavar="SITE", help="Folder of the site. Default: site in DIR.")] = None,
) -> None:
    """Write a static site of a folder: an index of its studies and runs, and the report of each as a page.

    The site opens from a file and needs no network. A study has the answers of its last `kleiber report`.
    """
    from kleiber.studies.fit_command import import_page_module

    sites = import_page_module("site")
    print_line("\n".join(sites.closing_lines(*sites.publish(folder, out))))


def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run: A.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of another run: B.")],
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the differences to this file.")] = None,
) -> None:
    """Compare two runs: config, data, code, environment, the first step that differs, and the final metrics."""
    from kleiber.records.diff import diff_lines, diff_runs, open_run
    from kleiber.records.files import write_json

    differences = diff_runs(open_run(first), open_run(second))
    print_line("\n".join(diff_lines(differences)))
    if json is not None:
        write_json(json, differences.to_json())


def reproduce(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|STUDY_FOLDER", help="A finished run, or a folder of runs or runs.jsonl.gz.")
    ],
    cells: Annotated[
        int | None, typer.Option(min=1, help="Train only this many runs again, those that took the least time.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the new runs. Default: beside the old one.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="URL or pattern that the runs may read; may be repeated.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]", help="Keys that cannot change the result.")
    ] = None,
) -> None:
    """Train recorded runs again from their configs: are the new runs equal, within noise, or different, and where?

    A recorded config does not run code, fetch, search or write elsewhere unless the command names the value: with
    --data URL, or as KEY=VALUE, such as callbacks.checkpoints.remote=null.

    Exit code 0 if all are equal or within noise, 5 if one is different, 1 if one fails.
    """
    from kleiber.launch import reproduce

    try:
        permit_data(data or ())
        results = reproduce.reproduce(source, out, cells, overrides or ())
    except Preempted as reason:
        print_line(f"{reason.status} by {reason}; run the same command again", err=True)
        raise typer.Exit(reason.status.exit_code) from None
    print_line("\n".join(reproduce.lines_of(results)))
    raise typer.Exit(reproduce.worst(results))


def clean(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of runs. Default: multirun, or KLEIBER_ROOT.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """Remove what killed processes have left: scratch folders, locks and files that were never finished.

    Lists them with their sizes and asks. Runs, their checkpoints and all that a live process holds stay. The cache of
    prepared data cleans itself.
    """
    from kleiber.records.leftovers import find_leftovers, format_bytes

    place = folder or Path(os.environ.get("KLEIBER_ROOT", "multirun"))
    if not place.is_dir():
        raise FileNotFoundError(f"{place} must be a folder of runs")
    leftovers = find_leftovers(place, Path(tempfile.gettempdir()))
    locks = [leftover for leftover in leftovers if leftover.kind == "lock"]
    for leftover in leftovers:
        if leftover not in locks:
            print_line(f"{leftover.kind:15}  {format_bytes(leftover.size):>8}  {leftover.path}")
    if locks:
        size = format_bytes(sum(lock.size for lock in locks))
        print_line(f"{'locks':15}  {size:>8}  of {len(locks)} runs that no process is writing, in {place}")
    total = format_bytes(sum(leftover.size for leftover in leftovers))
    if not leftovers:
        print_line(f"nothing is left over in {place}")
    elif yes or confirm(f"Remove these {len(leftovers)} files and folders ({total})? [y/N] "):
        removed = sum(leftover.remove() for leftover in leftovers)
        print_line(f"removed {removed} of {len(leftovers)}")
    else:
        print_line("nothing was removed; --yes removes without asking")


def confirm(question: str) -> bool:
    """Asks a question on the terminal and returns whether the answer is yes; the end of the input is a no."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print_line()
        return False
