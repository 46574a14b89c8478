"""`kleiber eval`: opens a run or a Hugging Face folder, runs evaluations by name on it, and writes their results.

Each evaluation is a module of `kleiber.evals` with a function `evaluate` (see `kleiber.evals.Evaluation`). Results of a
run go to RUN/evals, with figures beside them where the extra for reports is installed.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import kleiber.evals
from kleiber.config.errors import did_you_mean
from kleiber.config.stages import quantity
from kleiber.evals import Subject
from kleiber.records.summary import write_json

SCHEMA = "kleiber.eval/1"


def available() -> list[str]:
    """Names of the evaluations: modules and packages with a function `evaluate`."""
    home = Path(kleiber.evals.__file__).parent
    files = {path.stem: path for path in home.glob("*.py")} | {p.parent.name: p for p in home.glob("*/__init__.py")}
    return sorted(name for name, path in files.items() if defines_evaluate(path))


def defines_evaluate(path: Path) -> bool:
    """Whether the file has a function `evaluate(subject)`."""
    found = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return any(f.name == "evaluate" and [arg.arg for arg in f.args.args] == ["subject"] for f in found)


def chosen(text: str) -> list[str]:
    """`a,b` as names of evaluations. Raises ValueError for one that is not there."""
    names, known = [name.strip() for name in text.split(",") if name.strip()], available()
    if not names:
        raise ValueError(f"--evals {text!r} names none; there are: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(
                f"--evals {name}: no such evaluation.{did_you_mean(name, known)} One of {', '.join(known)}"
            )
    return names


def assess(
    path: Path,
    evals: str,
    tokens: str | None = None,
    stage: str | None = None,
    data: Sequence[str] = (),
    json: Path | None = None,
    tasks: str | None = None,
    task_files: Path | None = None,
) -> dict[str, Any]:
    """Runs the evaluations one after another; returns and writes what they found."""
    names = chosen(evals)
    if json is not None and not json.absolute().parent.is_dir():
        raise ValueError(f"--json {json}: there is no folder {json.absolute().parent}")
    if "harness" not in names and (tasks or (task_files and "choice" not in names)):
        raise ValueError(
            f"--tasks {tasks} is read by --evals harness alone, --task-files {task_files} by harness and choice"
        )
    subject = open_subject(path, stage, data, None if tokens is None else round(quantity(tokens)))
    asked = tuple(name for name in (tasks or "").split(",") if name)
    subject = replace(subject, tasks=asked, task_files=task_files)
    found = {}
    for name in names:
        module = importlib.import_module(f"kleiber.evals.{name}")
        print(f"{name} ...", file=sys.stderr)
        found[name] = module.evaluate(subject)
        home = subject.folder / "evals" if subject.folder else json.parent if json else None
        if home is not None:
            home.mkdir(exist_ok=True)
            if subject.folder:
                write_json(home / f"{name}.json", found[name])
            draw(module, found[name], subject.folder, home)
    record = {"schema": SCHEMA, "subject": str(path), "evals": found}
    if json is not None:
        write_json(json, record)
    return record


def open_subject(path: Path, stage: str | None, data: Sequence[str], tokens: int | None) -> Subject:
    """The model at `path`: a run (or RUN/STAGE), or a folder with a Hugging Face model and its tokenizer."""
    if (path / "config.json").is_file() and not (path / "config.yaml").is_file():
        if stage is not None:
            raise ValueError(f"--stage {stage}: {path} is a Hugging Face folder, which has none")
        return of_hf(path, data, tokens)
    if data:
        raise ValueError(f"--data {data[0]}: a run is scored on its own data; --data is for Hugging Face folders")
    from kleiber.runs.open import earlier_models, open_model

    path = path if stage is None else path / stage
    run = open_model(path)
    earlier = partial(earlier_models, path)
    return on_device(Subject(run.model, run.corpus, run.objective, tokens, folder=run.folder, earlier=earlier))


def of_hf(path: Path, data: Sequence[str], tokens: int | None) -> Subject:
    """The model of a Hugging Face folder, on built-in text in its own tokens unless `data` says otherwise."""
    from omegaconf import OmegaConf

    from kleiber.config.compose import Composer, resolved
    from kleiber.config.signatures import build
    from kleiber.runs.open import objective_of, open_hf

    model = ours(path) or open_hf(path).model
    config, _ = resolved(Composer("train").compose(["data=builtin", *data]))
    config["data"]["tokenizer"] = str(path.absolute())  # not as an override, whose grammar a path need not follow
    cfg: Any = OmegaConf.create(config)
    corpus = build(cfg.data).prepare(min(model.context, cfg.model.context))
    if corpus.tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"{path}: its tokenizer has {corpus.tokenizer.vocab_size} tokens, its model {model.vocab_size}: "
            "they do not belong together"
        )
    objective = objective_of(cfg, corpus)
    return on_device(Subject(model, corpus, objective, tokens))


def ours(path: Path) -> Any:
    """The model in fp32 as one of ours, whose layers an evaluation can look into; None for one that ours cannot be.

    Raises ValueError where the folder is damaged.
    """
    from kleiber.models.hf_config import KINDS, read_config
    from kleiber.models.hf_twin import from_hf, read_folder

    if read_config(path).get("model_type") not in KINDS:
        return None
    twin = read_folder(path)
    try:
        return from_hf(twin).eval()
    except ValueError:
        return None


def on_device(subject: Subject) -> Subject:
    """The subject on a GPU where there is one."""
    import torch

    if not torch.cuda.is_available():
        return subject
    device = torch.device("cuda")
    subject.model.to(device)
    return replace(subject, device=device)


def draw(module: Any, found: Mapping[str, Any], folder: Path | None, home: Path) -> None:
    """The figures of an evaluation, where it has any and they can be drawn here."""
    name = getattr(module, "FIGURES", None)
    if name is None:
        return
    try:
        charts = importlib.import_module(name).figures(found, folder)
    except ImportError as error:
        print(f"no figures: {error.name} is not installed (pip install 'kleiber[report]')", file=sys.stderr)
        return
    (home / "figures").mkdir(exist_ok=True)
    for title, chart in charts.items():
        chart.save(home / "figures" / f"{title}.png", scale_factor=2)
        chart.save(home / "figures" / f"{title}.svg")


def lines(record: Mapping[str, Any]) -> list[str]:
    """Every single number that was found, a line each; lists are in the file."""
    told = []
    for name, found in record["evals"].items():
        told += [f"{name}/{key} {value:.6g}" for key, value in numbers(found).items()]
    return told


def numbers(found: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in found.items():
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat
