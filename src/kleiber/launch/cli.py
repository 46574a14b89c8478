"""The `kleiber` command: looks at what runs wrote. Training is train.py's.

Each command imports what it needs when it is called; a command of a part that is not there is not offered.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kleiber.config.errors import did_you_mean

BAD_INPUT, INTERRUPTED = 2, 130
STATUSES = ("running", "finished", "failed", "diverged", "preempted", "killed", "missing")
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def commands() -> None:
    """Looks at what runs wrote: tables of runs, evaluations, laws fitted to them; and checks the parametrisation."""


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="a study or a single run, such as multirun/first")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON list of rows instead of a table")] = False,
    status: Annotated[str | None, typer.Option(help=f"only runs with this status: {', '.join(STATUSES)}")] = None,
) -> None:
    """List the runs in a folder: status, loss, bits per byte, parameters, tokens, seconds."""
    from kleiber.records.catalog import read_runs, table

    if status is not None and status not in STATUSES:
        raise ValueError(f"--status {status}: no such status.{did_you_mean(status, STATUSES)} One of {STATUSES}")
    found = [run for run in read_runs(folder) if status in (None, run.status)]
    if as_json:
        typer.echo(json.dumps([{**run.row(), "folder": str(run.folder)} for run in found], indent=1))
    elif not found:
        typer.echo(f"no runs{f' that are {status}' if status else ''} in {folder} (a run has a config.yaml)")
    else:
        table(found)


@app.command()
def check(
    what: Annotated[str, typer.Argument(help="mup: the coordinate check of the parametrisation")],
    widths: Annotated[str, typer.Option(help="channels of the stream, multiples of 16")] = "64,128,256",
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps before the sizes are compared")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="models a width, averaged")] = 3,
    optimizer: Annotated[str, typer.Option(help="adamw, muon or lion")] = "adamw",
    lr: Annotated[float, typer.Option(help="base learning rate")] = 0.02,
    out: Annotated[Path | None, typer.Option(help="folder of the figure; default: multirun/check-mup")] = None,
) -> None:
    """Train small models of several widths for a few steps: exit 0 when activations keep their size, 1 when not."""
    if what != "mup":
        raise ValueError(f"kleiber check {what}: no such check.{did_you_mean(what, ['mup'])} There is: mup")
    from kleiber.runs.coordinate_check import check_mup

    folder = out or Path(os.environ.get("KLEIBER_ROOT", "multirun")) / "check-mup"
    if not check_mup(numbers(widths), steps, seeds, optimizer, lr, folder):
        raise typer.Exit(1)


def numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--widths {text}: write whole numbers separated by commas, such as 64,128,256") from None


@app.command("eval")
def evaluate(
    subject: Annotated[Path, typer.Argument(metavar="RUN|HF_FOLDER", help="a run (or RUN/STAGE), or a model's folder")],
    evals: Annotated[str, typer.Option(help="names of evaluations: perplexity,routing,latency,harness")],
    json: Annotated[Path | None, typer.Option(help="write everything here as well")] = None,
    tokens: Annotated[str | None, typer.Option(help="targets per domain, such as 64K")] = None,
    stage: Annotated[str | None, typer.Option(help="of the run; default: the last one")] = None,
    data: Annotated[list[str] | None, typer.Option(help="override of the data of a HF_FOLDER: data=wikitext")] = None,
    tasks: Annotated[str | None, typer.Option(help="of --evals harness: names of lm-eval's tasks")] = None,
    task_files: Annotated[
        Path | None, typer.Option(help="of --evals harness: a folder of task files; of choice: questions")
    ] = None,
) -> None:
    """Evaluate a run or a Hugging Face model; results of a run lie in RUN/evals."""
    from kleiber.runs.evaluate import assess, lines

    if not subject.is_dir():
        raise FileNotFoundError(f"{subject}: there is no such folder")
    typer.echo("\n".join(lines(assess(subject, evals, tokens, stage, data or (), json, tasks, task_files))))


@app.command("export")
def export_run(
    run: Annotated[str, typer.Argument(help="a run, or RUN/STAGE")],
    out: Annotated[Path, typer.Argument(help="the folder to write, which must not be there")],
) -> None:
    """Write a run as a Hugging Face folder: config, safetensors, tokenizer, and a card that says where it came from."""
    from kleiber.runs.huggingface import export

    export(run, out)
    typer.echo(f"{out}: load it with AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained")


@app.command("import")
def import_folder(
    folder: Annotated[Path, typer.Argument(help="a Llama, Qwen3, Mixtral or Qwen3-MoE folder with safetensors")],
    out: Annotated[Path, typer.Argument(help="the folder to write, which must not be there")],
) -> None:
    """Read a Hugging Face folder into a run of no steps, from which others start."""
    from kleiber.runs.huggingface import import_hf

    import_hf(folder, out)
    typer.echo(f"{out}: start from it with init=checkpoint init.path={out}")


def register_studies() -> None:
    """Adds `fit`, `predict` and `report`, which live with the laws."""
    if importlib.util.find_spec("kleiber.studies.fit_command") is None:
        return
    command = importlib.import_module("kleiber.studies.fit_command")
    for name in ("fit", "predict", "report"):
        app.command(name)(getattr(command, name))


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code (0, 2 for bad input, 3 for a law that is not identified or is refused)."""
    register_studies()
    try:
        told = app(sys.argv[1:] if argv is None else argv, prog_name="kleiber", standalone_mode=False)
    except (ValueError, FileNotFoundError) as error:
        print(f"kleiber: {error}", file=sys.stderr)
        return BAD_INPUT
    except Exception as error:
        show = getattr(error, "show", None)  # an error of the command line, which knows how to show itself
        if show is None:
            raise
        show()
        return BAD_INPUT
    return told if isinstance(told, int) else 0
