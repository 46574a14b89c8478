"""The `kleiber` command: lists and evaluates runs, fits laws to them, and converts models. `python train.py` trains.

Each command imports what it needs when it is called.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kleiber.config.errors import ExitCode, Status, did_you_mean

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def commands() -> None:
    """List, evaluate, export and import runs, fit laws to them, and check the parametrization."""


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="A study or a single run, such as multirun/first.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of rows instead of a table.")] = False,
    status: Annotated[str | None, typer.Option(help=f"Only runs with this status: {', '.join(Status)}.")] = None,
) -> None:
    """List the runs in a folder: status, loss, bits per byte, parameters, tokens, seconds."""
    from kleiber.records.catalog import print_table, read_runs

    if status is not None and status not in list(Status):
        near = did_you_mean(status, map(str, Status))
        raise ValueError(f"--status {status}: no such status.{near} One of {', '.join(Status)}")
    selected = [run for run in read_runs(folder) if status in (None, run.status)]
    if as_json:
        typer.echo(json.dumps([{**run.row(), "folder": str(run.folder)} for run in selected], indent=1))
    elif not selected:
        typer.echo(f"no runs{f' that are {status}' if status else ''} in {folder} (a run has a config.yaml)")
    else:
        print_table(selected)


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="mup", help="The coordinate check of the parametrization.")],
    widths: Annotated[str, typer.Option(help="Channels of the residual stream, multiples of 16.")] = "64,128,256",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps before activations are compared.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Models per width, averaged.")] = 3,
    optimizer: Annotated[str, typer.Option(help="adamw, muon or lion.")] = "adamw",
    lr: Annotated[float, typer.Option(help="Base learning rate.")] = 0.02,
    out: Annotated[Path | None, typer.Option(help="Folder of the figure; default: multirun/check-mup.")] = None,
) -> None:
    """Train small models of several widths for a few steps: exit 0 when activations keep their size, 1 when not."""
    if name != "mup":
        raise ValueError(f"kleiber check {name}: no such check.{did_you_mean(name, ['mup'])} The only check is mup")
    from kleiber.runs.coordinate_check import check_mup

    folder = out or Path(os.environ.get("KLEIBER_ROOT", "multirun")) / "check-mup"
    if not check_mup(numbers(widths), steps, seeds, optimizer, lr, folder):
        raise typer.Exit(ExitCode.FAILED)


def numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--widths {text} must be whole numbers separated by commas, such as 64,128,256") from None


@app.command("eval")
def evaluate(
    subject: Annotated[Path, typer.Argument(metavar="RUN|HF_FOLDER", help="A run, RUN/STAGE, or a folder of a model.")],
    evals: Annotated[str, typer.Option(help="Names of evaluations: perplexity,routing,latency,harness.")],
    json: Annotated[Path | None, typer.Option(help="Also write all results to this file.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Targets per domain, such as 64K.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage of the run; default: the last one.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Data for a HF_FOLDER, as an override: data=wikitext.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Names of lm-eval tasks, for --evals harness.")] = None,
    task_files: Annotated[
        Path | None, typer.Option(help="Folder of task files, for --evals harness; questions, for --evals choice.")
    ] = None,
) -> None:
    """Evaluate a run or a Hugging Face model; results of a run are written to RUN/evals."""
    from kleiber.runs.evaluate import result_lines, run_evaluations

    if not subject.is_dir():
        raise FileNotFoundError(f"{subject}: no such folder")
    results = run_evaluations(subject, evals, tokens, stage, data or (), json, tasks, task_files)
    typer.echo("\n".join(result_lines(results)))


@app.command("export")
def export_run(
    run: Annotated[str, typer.Argument(help="A run, or RUN/STAGE.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
) -> None:
    """Write a run as a Hugging Face folder: config, safetensors, tokenizer and a model card."""
    from kleiber.runs.huggingface import export

    export(run, out)
    typer.echo(f"{out}: load it with AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained")


@app.command("import")
def import_folder(
    folder: Annotated[Path, typer.Argument(help="A Llama, Qwen3, Mixtral or Qwen3-MoE folder with safetensors.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
) -> None:
    """Write a Hugging Face folder as a run of no steps, from which other runs can start."""
    from kleiber.runs.huggingface import import_hf

    import_hf(folder, out)
    typer.echo(f"{out}: start from it with init=checkpoint init.path={out}")


def register_studies() -> None:
    """Adds the commands `fit`, `predict` and `report`, whose options come from the studies."""
    from kleiber.studies import fit_command

    for command in (fit_command.fit, fit_command.predict, fit_command.report):
        app.command(command.__name__)(command)


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code (`kleiber.config.errors`)."""
    register_studies()
    try:
        code = app(sys.argv[1:] if argv is None else argv, prog_name="kleiber", standalone_mode=False)
    except (ValueError, FileNotFoundError) as error:
        print(f"kleiber: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except Exception as error:
        show = getattr(error, "show", None)  # click's errors of the command line print themselves; typer vendors click
        if show is None:
            raise
        show()
        return ExitCode.BAD_INPUT
    return code if isinstance(code, int) else ExitCode.DONE
