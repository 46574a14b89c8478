"""The command `kleiber gate`: begins a stream, decides proposals, and shows what was decided."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kleiber_topics.gate import chain

ACTIONS = ("init", "propose", "report", "status")
OF_INIT = (
    "measure", "metric", "better", "cwd", "level", "error", "horizon", "seeds", "max_seeds", "budget_runs", "take",
    "timeout", "reserve", "set", "confirm_at", "protect",
)  # fmt: skip

Action = Annotated[str, typer.Argument(metavar="init|propose|report|status", help="What to do.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the stream.")]
Name = Annotated[str | None, typer.Option(help="propose: a name for the change.")]
Command = Annotated[
    str | None, typer.Option(help="init, propose: a command line with {seed} that trains and prints the metric.")
]
Overrides = Annotated[
    str | None, typer.Option(help="init: the plain recipe, as of kleiber train; propose: the change.")
]
Ref = Annotated[str | None, typer.Option(metavar="GIT_REF", help="propose: a commit with the change.")]
Metric = Annotated[
    str | None, typer.Option(metavar="REGEX", help="init: how the metric is printed; one group is the number.")
]
Measure = Annotated[str | None, typer.Option(metavar="METRIC", help="init: metric of a run of kleiber. Default: loss.")]
Better = Annotated[str | None, typer.Option(help="init: lower (default) or higher: which value is better.")]
Place = Annotated[Path | None, typer.Option(metavar="FOLDER", help="init: where commands run. Default: here.")]
Level = Annotated[float | None, typer.Option(help="init: 1 - the error of the stream. Default: 0.9.")]
Error = Annotated[
    str | None, typer.Option(help="init: keep bounds the share of false keeps (default), stream the chance of any.")
]
Horizon = Annotated[int | None, typer.Option(min=1, help="init: planned proposals. Default: 200.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="init: runs of the first look. Default: 1.")]
MaxSeeds = Annotated[int | None, typer.Option(min=1, help="init: most runs of a changed recipe. Default: 12.")]
BudgetRuns = Annotated[int | None, typer.Option(min=1, help="init: most runs of the stream.")]
TakeOption = Annotated[
    str | None, typer.Option(help="init: once (default) or last: which metric of several that are printed.")
]
Timeout = Annotated[float | None, typer.Option(help="init: seconds after which a run has failed.")]
Reserve = Annotated[
    str | None,
    typer.Option(metavar="TEXT|DATA", help="init: what fills {reserve} in a confirmation; of kleiber, data."),
]
Values = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="init: what fills {KEY}; may be repeated.")]
ConfirmAt = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="init: what fills {KEY} in a confirmation.")
]
Protect = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="init: files that no proposal may change.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")]


def gate(
    action: Action, folder: Folder, name: Name = None, command: Command = None, overrides: Overrides = None,
    ref: Ref = None, metric: Metric = None, measure: Measure = None, better: Better = None, cwd: Place = None,
    level: Level = None, error: Error = None, horizon: Horizon = None, seeds: Seeds = None,
    max_seeds: MaxSeeds = None, budget_runs: BudgetRuns = None, take: TakeOption = None, timeout: Timeout = None,
    reserve: Reserve = None, set: Values = None, confirm_at: ConfirmAt = None, protect: Protect = None,
    json: AsJson = False,
) -> None:  # fmt: skip
    """Keep only changes to a training recipe that are better than its noise, over a whole stream of proposals.

    init begins a stream with the plain recipe; propose runs a change beside it and decides; report writes a page.

    Exit code of propose: 0 if the change is kept, 5 if it is discarded, 3 if it is undecided, 1 if a run failed.
    """
    options = {key: value for key, value in locals().items() if key in OF_INIT and value not in (None, [])}
    if action not in ACTIONS:
        raise ValueError(f"kleiber gate {action}: must be one of {', '.join(ACTIONS)}")
    proposed = {"name": name, "command": command, "overrides": overrides, "ref": ref}
    allowed = {"init": ("command", "overrides"), "propose": (*proposed,)}.get(action, ())
    for option, value in proposed.items():
        if value is not None and option not in allowed:
            raise ValueError(f"--{option} {value} is not for kleiber gate {action}: remove it")
    if action != "init" and options:
        option = next(iter(options))
        raise ValueError(
            f"--{option.replace('_', '-')} is fixed by kleiber gate init: remove it, or begin a new stream"
        )
    from kleiber_topics.gate import actions  # which imports SciPy and Altair: the options are listed without them

    if action == "init":
        actions.begin(folder, command, overrides, options)
        return
    if not (folder / chain.FILE).is_file():
        raise ValueError(f"{folder} has no {chain.FILE}: begin a stream with kleiber gate init {folder} --command ...")
    if action == "propose":
        raise typer.Exit(actions.decide(folder, name, command, overrides, ref, json))
    actions.show(folder, json, report=action == "report")
