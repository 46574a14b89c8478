"""The commands of `kleiber` that open the model of a run or of a Hugging Face folder.

Each command imports what it needs only when it is called.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from kleiber.config.permissions import permit_data
from kleiber.records.terminal import print_line
from kleiber.studies.fit_command import html_path

Device = Annotated[
    Literal["cpu", "gpu"] | None, typer.Option(help="Where to compute. Default: the GPU where there is one.")
]


def evaluate(
    subject: Annotated[Path, typer.Argument(metavar="RUN|HF_FOLDER", help="A run, RUN/STAGE or a model folder.")],
    evals: Annotated[str, typer.Option(help="Names of evaluations, separated by commas: perplexity,pairs,routing.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]", help="Keys of the evaluations, such as evals.perplexity.stride=64."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Data by name or path, such as wikitext, blimp or FILE; the default is that of the run."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to score of each table.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens to score of each text, such as 64K.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage of the run. Default: the last finished one.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all scores to this JSON file as well.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="OUT.html", callback=html_path, help="Write scores and figures to this HTML file."),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Names of lm-eval tasks for --evals harness.")] = None,
    task_files: Annotated[Path | None, typer.Option(help="Folder of lm-eval tasks for --evals harness.")] = None,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="Also log the results of a run to W&B, as a run of the job type eval.")
    ] = False,
    device: Device = None,
) -> None:
    """Evaluate a run or a Hugging Face model. The results of a run are also written to RUN/evals."""
    existing(subject)
    from kleiber.config.compose import list_choices
    from kleiber.runs.evaluate import log_to_wandb, result_lines, run_evaluations

    if wandb and not (subject / "config.yaml").is_file():
        raise ValueError(f"--wandb logs beside the W&B run of a run, and {subject} is none: remove --wandb")
    for option, value in (("--tasks", tasks), ("--task-files", task_files)):
        if value is not None and "harness" not in evals.split(","):
            raise ValueError(f"{option} {value} is only read by --evals harness: add harness, or remove {option}")
    settings = [text for text in overrides or () if text.startswith("evals.")]
    names = [*(data or ()), *(text for text in overrides or () if not text.startswith("evals."))]  # --data A B C
    misplaced = [name for name in names if name in list_choices("evals") and not Path(name).exists()]
    if misplaced:
        raise ValueError(f"{misplaced[0]} is an evaluation: write --evals {','.join([evals, *misplaced])}")
    if names and not data and (Path(names[0]) / "config.yaml").is_file():
        raise ValueError(f"kleiber eval takes one run, and {names[0]} is another: write a command for each")
    if names and not data:
        raise ValueError(f"{names[0]} must be evals.NAME.KEY=VALUE, or follow --data as a name or path of data")
    settings += [] if tasks is None else [f"evals.harness.tasks=[{tasks}]"]
    settings += [] if task_files is None else [f"evals.harness.task_files='{task_files}'"]
    results = run_evaluations(subject, evals, names, settings, tokens, limit, stage, json, report, device)
    if wandb:
        log_to_wandb(subject, results)
    print_line("\n".join(result_lines(results)))


Tokens = Annotated[int, typer.Option(help="Most tokens of a continuation.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most probable token.")]
TopP = Annotated[float, typer.Option(help="Sample from the most probable tokens that reach this probability.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends a continuation; may be repeated.")]
SamplingSeed = Annotated[int, typer.Option(help="Seed of the samples: the same seed gives the same text.")]
Generator = Annotated[Path, typer.Argument(metavar="RUN|HF_FOLDER", help="A run, RUN/STAGE or a model folder.")]


AllowedData = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="URL", help="URL, pattern or large folder that the run may read its data from."),
]


def generate(
    subject: Generator,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    tokens: Tokens = 64,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the most probable token. Default: 1, or 0 with --beams.")
    ] = None,
    top_p: TopP = 1.0,
    stop: Stop = None,
    seed: SamplingSeed = 0,
    beams: Annotated[int, typer.Option(help="Search for the most probable text with so many beams.")] = 1,
    datastore: Annotated[
        list[str] | None, typer.Option(help="Text to look things up in, by name or path; may be repeated.")
    ] = None,
    retrieval: Annotated[
        str, typer.Option(help="bm25, dense: put text of the datastore in front of the prompt; knn: mix neighbors in.")
    ] = "bm25",
    data: AllowedData = None,
    json: Annotated[Path | None, typer.Option(help="Write the text and how it was sampled to this JSON file.")] = None,
    device: Device = None,
) -> None:
    """Continue a prompt with a run or a Hugging Face model, and print both."""
    existing(subject)
    permit_data(data or ())
    from kleiber.records.files import write_json
    from kleiber.runs.completion import Sampling, continue_prompt, open_lookup, to_json
    from kleiber.runs.open import open_model
    from kleiber.training.trainer import chosen_device

    if temperature is None:
        temperature = 1.0 if beams == 1 else 0.0
    sampling = Sampling(tokens, temperature, top_p, tuple(stop or ()), seed, beams)
    lookup = open_lookup(datastore or (), retrieval)
    run = open_model(subject)
    run.model.to(chosen_device(device))
    continuation = continue_prompt(run, prompt, sampling, lookup)
    print_line(prompt, end="")
    begin = time.perf_counter()
    for piece in continuation:
        print_line(piece, end="")
    print_line()
    if json is not None:
        write_json(json, to_json(subject, prompt, continuation, time.perf_counter() - begin))


def chat(
    subject: Generator,
    system: Annotated[str | None, typer.Option(help="Text in front of the conversation.")] = None,
    tokens: Tokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    stop: Stop = None,
    seed: SamplingSeed = 0,
    data: AllowedData = None,
    device: Device = None,
) -> None:
    """Talk to a run or a Hugging Face model. `/reset` forgets the conversation, Ctrl-D ends it."""
    existing(subject)
    permit_data(data or ())
    from kleiber.runs.completion import Chat, Sampling, chat_loop
    from kleiber.runs.open import open_model
    from kleiber.training.trainer import chosen_device

    run = open_model(subject)
    run.model.to(chosen_device(device))
    objective = run.record.get("objective")
    if objective == "clm":
        print_line(f"{subject} was trained on text, not on conversations (objective=sft trains on them)", err=True)
    conversation = Chat(run, Sampling(tokens, temperature, top_p, tuple(stop or ()), seed), system)
    sign = "> " if sys.stdin.isatty() else ""
    chat_loop(conversation, lambda: input(sign), lambda piece: print_line(piece, end=""))


def existing(subject: Path) -> Path:
    """Returns the path of a run, RUN/STAGE or a model folder. Raises FileNotFoundError for any other path.

    Commands call it before they import torch, which takes seconds.
    """
    from kleiber.config.errors import ConfigError
    from kleiber.runs.inherit import find_start

    if not (subject / "config.json").is_file():
        try:
            find_start(str(subject))
        except ConfigError:
            wrong = "is no run" if subject.exists() else "does not exist"
            runs = sorted(file.parent for file in subject.glob("*/config.yaml"))
            such = f"; it has {len(runs)} run{'s' * (len(runs) > 1)}, such as {runs[0]}" if runs else ""
            message = f"{subject} {wrong}: name a run, RUN/STAGE or a Hugging Face folder{such}"
            raise FileNotFoundError(message) from None
    return subject


def license_name(value: str | None) -> str | None:
    """Returns the value of --license. Raises ValueError for what cannot be a name of a license on the hub."""
    if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", value):
        raise ValueError(f"--license {value} must be the name of a license, such as apache-2.0, cc-by-4.0 or other")
    return value


License = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", callback=license_name, help="License of the weights, which the model card states: apache-2.0."
    ),
]


def export_run(
    run: Annotated[str, typer.Argument(help="A run, or RUN/STAGE.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, which must not exist or be empty.")],
    license: License = None,
    data: AllowedData = None,
) -> None:
    """Write a run as a Hugging Face folder: config, safetensors, tokenizer and a model card."""
    existing(Path(run))
    permit_data(data or ())
    from kleiber.runs.huggingface import export

    export(run, out, license)
    print_line(f"wrote {out}; its README.md shows how to load it with transformers")


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
    print_line(f"wrote {out}; a run starts from it with init=checkpoint init.path={out}")


def push(
    run: Annotated[str, typer.Argument(help="A run, or RUN/STAGE.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Commit to this branch, and create it if it does not exist.")
    ] = None,
    license: License = None,
    data: AllowedData = None,
) -> None:
    """Export a run and upload it to the Hugging Face hub. The token is that of HF_TOKEN or `hf auth login`."""
    existing(Path(run))
    permit_data(data or ())
    from kleiber.runs.hub_upload import push

    print_line(f"uploaded {run}: {push(run, repository, private, revision, license)}")
