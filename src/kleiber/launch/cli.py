"""The command `kleiber`: trains, lists and evaluates runs, fits laws to them, and converts models.

Each command imports what it needs only when it is called.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from kleiber.config.errors import ExitCode, Status, did_you_mean, exit_on_interrupt, exit_with

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def commands() -> None:
    """Train, list, evaluate, export and import runs, fit scaling laws to them, and check muP."""


# All arguments are overrides and Hydra's flags, --help among them, which the command line of training reads itself.
AS_THEY_ARE = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=AS_THEY_ARE, options_metavar="[-m] [OVERRIDES]...")
def train(context: typer.Context) -> None:
    """Train a run, or a sweep with -m: the same as `python train.py`. `kleiber train --help` lists the choices."""
    exit_on_interrupt()  # importing the rest takes a second
    from kleiber.launch.main import main

    exit_with(main(context.args))


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder of a study or of a single run, such as multirun/first.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    status: Annotated[str | None, typer.Option(help=f"List only runs with this status: {', '.join(Status)}.")] = None,
) -> None:
    """List the runs in a folder: status, loss, bits per byte, parameters, tokens, seconds."""
    from kleiber.records.catalog import print_table, read_runs

    if status is not None and status not in list(Status):
        near = did_you_mean(status, map(str, Status))
        raise ValueError(f"--status {status} must be one of {', '.join(Status)}.{near}")
    selected = [run for run in read_runs(folder) if status in (None, run.status)]
    if as_json:
        typer.echo(json.dumps([{**run.row(), "folder": str(run.folder)} for run in selected], indent=1))
    elif not selected:
        kind = f"runs with status {status}" if status else "runs"
        typer.echo(f"no {kind} in {folder} (the folder of a run has a config.yaml)")
    else:
        print_table(selected)


@app.command()
def plot(
    places: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders that contain runs.")],
    y: Annotated[
        list[str] | None, typer.Option(help="Metric to draw, such as train/loss or val/*/loss; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A .png, .svg, .html or .json file. Default: curves.png and .html in RUN.")
    ] = None,
) -> None:
    """Draw the curves of runs over training tokens: loss, validation loss, learning rate and gradient norm."""
    from kleiber.records.catalog import read_runs
    from kleiber.studies.fit_command import import_page_module

    curves = import_page_module("curves")
    runs = [run for place in places for run in read_runs(place)]
    if not runs:
        raise FileNotFoundError(f"{places[0]} contains no run (the folder of a run has a config.yaml)")
    chart = curves.draw(runs, y or tuple(curves.PANELS))
    for file in [out] if out else [places[0] / "curves.png", places[0] / "curves.html"]:
        curves.save(chart, file)
        typer.echo(f"wrote {file}")


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="mup", help="Name of the check; mup is the only one.")],
    widths: Annotated[str, typer.Option(help="Widths of the models in channels, multiples of 16.")] = "64,128,256",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps before the activations are compared.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Models per width, over which activation sizes are averaged.")] = 3,
    optimizer: Annotated[str, typer.Option(help="Optimizer of the models: adamw, muon or lion.")] = "adamw",
    lr: Annotated[float, typer.Option(help="Learning rate of the models.")] = 0.02,
    out: Annotated[Path | None, typer.Option(help="Folder for the figure. Default: multirun/check-mup.")] = None,
) -> None:
    """Check muP: train small models of several widths and compare the sizes of their activations.

    Exits with 0 when the sizes do not depend on the width, and with 1 otherwise.
    """
    if name != "mup":
        raise ValueError(f"kleiber check {name}: the name of the check must be mup")
    from kleiber.runs.coordinate_check import check_mup

    folder = out or Path(os.environ.get("KLEIBER_ROOT", "multirun")) / "check-mup"
    if not check_mup(parse_widths(widths), steps, seeds, optimizer, lr, folder):
        raise typer.Exit(ExitCode.FAILED)


def parse_widths(text: str) -> list[int]:
    """Splits the value of --widths, such as `64,128`. Raises ValueError for what is not a whole number."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--widths {text} must be whole numbers separated by commas, such as 64,128,256") from None


@app.command("eval")
def evaluate(
    subject: Annotated[Path, typer.Argument(metavar="RUN|HF_FOLDER", help="A run, RUN/STAGE or a model folder.")],
    evals: Annotated[str, typer.Option(help="Names of evaluations, separated by commas: perplexity,routing,latency.")],
    json: Annotated[Path | None, typer.Option(help="Write all results to this JSON file as well.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens to score in each validation domain, such as 64K.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage of the run. Default: the last finished one.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Data for HF_FOLDER, such as data=wikitext.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Names of lm-eval tasks for --evals harness.")] = None,
    task_files: Annotated[
        Path | None, typer.Option(help="Folder of lm-eval tasks for --evals harness, or questions for --evals choice.")
    ] = None,
) -> None:
    """Evaluate a run or a Hugging Face model. The results of a run are also written to RUN/evals."""
    from kleiber.runs.evaluate import result_lines, run_evaluations

    if not subject.is_dir():
        raise FileNotFoundError(f"{subject} must be the folder of a run, RUN/STAGE, or a Hugging Face folder")
    results = run_evaluations(subject, evals, tokens, stage, data or (), json, tasks, task_files)
    typer.echo("\n".join(result_lines(results)))


Tokens = Annotated[int, typer.Option(help="Most tokens of a continuation.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most probable token.")]
TopP = Annotated[float, typer.Option(help="Sample from the most probable tokens that reach this probability.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends a continuation; may be repeated.")]
SamplingSeed = Annotated[int, typer.Option(help="Seed of the samples: the same seed gives the same text.")]
Generator = Annotated[Path, typer.Argument(metavar="RUN|HF_FOLDER", help="A run, RUN/STAGE or a model folder.")]


@app.command()
def generate(
    subject: Generator,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    tokens: Tokens = 64,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    stop: Stop = None,
    seed: SamplingSeed = 0,
    json: Annotated[Path | None, typer.Option(help="Write the text and how it was sampled to this JSON file.")] = None,
) -> None:
    """Continue a prompt with a run or a Hugging Face model, and print both."""
    from kleiber.records.files import write_json
    from kleiber.runs.completion import Sampling, continue_prompt, to_json
    from kleiber.runs.open import open_model

    sampling = Sampling(tokens, temperature, top_p, tuple(stop or ()), seed)
    continuation = continue_prompt(open_model(existing(subject)), prompt, sampling)
    typer.echo(prompt, nl=False)
    begin = time.perf_counter()
    for piece in continuation:
        typer.echo(piece, nl=False)
    typer.echo()
    if json is not None:
        write_json(json, to_json(subject, prompt, continuation, time.perf_counter() - begin))


@app.command()
def chat(
    subject: Generator,
    system: Annotated[str | None, typer.Option(help="Text in front of the conversation.")] = None,
    tokens: Tokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    stop: Stop = None,
    seed: SamplingSeed = 0,
) -> None:
    """Talk to a run or a Hugging Face model. `/reset` forgets the conversation, Ctrl-D ends it."""
    from kleiber.runs.completion import Chat, Sampling, chat_loop
    from kleiber.runs.open import open_model

    run = open_model(existing(subject))
    objective = run.record.get("objective")
    if objective == "clm":
        typer.echo(f"{subject} was trained on text, not on conversations (objective=sft trains on them)", err=True)
    conversation = Chat(run, Sampling(tokens, temperature, top_p, tuple(stop or ()), seed), system)
    sign = "> " if sys.stdin.isatty() else ""
    chat_loop(conversation, lambda: input(sign), lambda piece: typer.echo(piece, nl=False))


def existing(subject: Path) -> Path:
    """Returns the path of a run, a stage or a model folder. Raises FileNotFoundError where there is none."""
    if not subject.is_dir() and not subject.parent.is_dir():
        raise FileNotFoundError(f"{subject} must be the folder of a run, RUN/STAGE, or a Hugging Face folder")
    return subject


@app.command("export")
def export_run(
    run: Annotated[str, typer.Argument(help="A run, or RUN/STAGE.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, which must not exist or be empty.")],
) -> None:
    """Write a run as a Hugging Face folder: config, safetensors, tokenizer and a model card."""
    from kleiber.runs.huggingface import export

    export(run, out)
    typer.echo(f"wrote {out}; its README.md shows how to load it with transformers")


@app.command("import")
def import_folder(
    folder: Annotated[Path, typer.Argument(help="Folder of a Llama, Qwen3, Mixtral or Qwen3-MoE model.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, which must not exist or be empty.")],
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Accept NaN and infinite weights.")
    ] = False,
) -> None:
    """Write a Hugging Face folder as a run of zero steps, from which other runs can start."""
    from kleiber.runs.huggingface import import_hf

    import_hf(folder, out, allow_nonfinite)
    typer.echo(f"wrote {out}; a run starts from it with init=checkpoint init.path={out}")


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs, or runs.jsonl.gz files.")],
    arm: Annotated[
        str, typer.Option(metavar="KEY", help="Key of the config whose values are the arms, or study.arm.")
    ] = "study.arm",
    measure: Annotated[
        str, typer.Option(metavar="METRIC", help="What is compared, such as val/sst2/accuracy.")
    ] = "loss",
    equal: Annotated[str, typer.Option(help="Held equal: tokens, flops, params, memory or seconds.")] = "tokens",
    level: Annotated[float, typer.Option(help="Confidence level of the interval.")] = 0.9,
    json: Annotated[Path | None, typer.Option(metavar="OUT.json", help="Write the decision to this file.")] = None,
) -> None:
    """Compare the arms of finished runs: is the second better than the first, at equal what, and how sure?

    Exit code 0 if it is, 5 if it is worse, 3 if that is undecided or was not tested.
    """
    from kleiber.config.check import check_type
    from kleiber.records.catalog import read_runs
    from kleiber.records.files import write_json
    from kleiber.studies.compare import study
    from kleiber.studies.report import exit_code
    from kleiber.studies.study import Level

    check_type("--level", Level, level)
    selected = [run for folder in folders for run in read_runs(folder)]
    options = study.Compare(measure=measure, equal=equal, level=level)
    findings = study.compare(selected, options, study.arms_by_key(arm, selected))
    typer.echo("\n".join([findings.headline, *study.difference_lines(findings.tables["Differences"])]))
    content = findings.comparison or {}
    if json is not None:
        write_json(json, content)
    raise typer.Exit(exit_code(content))


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code (`ExitCode`)."""
    from kleiber.studies import fit_command

    for command in (fit_command.fit, fit_command.predict, fit_command.report):
        app.command(command.__name__)(command)
    try:
        code = app(sys.argv[1:] if argv is None else argv, prog_name="kleiber", standalone_mode=False)
    except (ValueError, FileNotFoundError) as error:
        print(f"kleiber: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except Exception as error:
        show = getattr(error, "show", None)  # of a click exception, which typer imports from a private copy of click
        if show is None:
            raise
        show()
        return ExitCode.BAD_INPUT
    return code if isinstance(code, int) else ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
