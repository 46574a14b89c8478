"""`kleiber eval`: opens a run or a Hugging Face folder, runs evaluations on it by name, and writes their results.

An evaluation is a module of `kleiber.evals` with a function `evaluate` (see `kleiber.evals.Evaluation`). The results of
a run go to RUN/evals, with figures beside them if the extra `report` is installed.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import kleiber.evals
from kleiber.config.errors import did_you_mean
from kleiber.config.stages import quantity
from kleiber.evals import Subject
from kleiber.models.transformer import Transformer
from kleiber.records.files import write_json
from kleiber.records.progress import activity
from kleiber.records.summary_file import read_summary
from kleiber.training import checkpoint
from kleiber.types import Json
from kleiber.types.model import Model

SCHEMA = "kleiber.eval/1"


def evaluation_names() -> list[str]:
    """Returns the names of all evaluations: modules and packages of `kleiber.evals` with a function `evaluate`."""
    home = Path(kleiber.evals.__file__).parent
    files = {path.stem: path for path in home.glob("*.py")} | {p.parent.name: p for p in home.glob("*/__init__.py")}
    return sorted(name for name, path in files.items() if defines_evaluate(path))


def defines_evaluate(path: Path) -> bool:
    """Whether the file defines a function `evaluate(subject)`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == "evaluate":
            return [argument.arg for argument in node.args.args] == ["subject"]
    return False


def parse_names(text: str) -> list[str]:
    """Splits the value of --evals, such as `a,b`. Raises ValueError when a name is not an evaluation."""
    names, available = [name.strip() for name in text.split(",") if name.strip()], evaluation_names()
    if not names:
        raise ValueError(f"--evals {text!r} must name at least one evaluation of: {', '.join(available)}")
    for name in names:
        if name not in available:
            near = did_you_mean(name, available)
            raise ValueError(f"--evals {name} must be an evaluation.{near} Available: {', '.join(available)}")
    return names


def run_evaluations(
    path: Path,
    evals: str,
    tokens: str | None = None,
    stage: str | None = None,
    data: Sequence[str] = (),
    json: Path | None = None,
    tasks: str | None = None,
    task_files: Path | None = None,
) -> Json:
    """Runs evaluations one after another, writes their results, and returns them in the form of `kleiber eval --json`.

    The arguments are the options of the command `kleiber eval`. Raises ValueError for options that do not fit together.
    """
    names = parse_names(evals)
    if json is not None and not json.absolute().parent.is_dir():
        raise ValueError(f"--json {json} must be in an existing folder: create {json.absolute().parent}")
    if tasks and "harness" not in names:
        raise ValueError(f"--tasks {tasks} is only read by --evals harness: add harness, or remove --tasks")
    if task_files and not {"harness", "choice"} & set(names):
        raise ValueError(
            f"--task-files {task_files} is only read by --evals harness and --evals choice: add one of them, or remove "
            "--task-files"
        )
    subject = open_subject(path, stage, data, None if tokens is None else round(quantity(tokens)))
    task_names = tuple(name for name in (tasks or "").split(",") if name)
    subject = replace(subject, tasks=task_names, task_files=task_files)
    results: Json = {}
    for name in names:
        module = importlib.import_module(f"kleiber.evals.{name}")
        with activity(f"evaluation {name}"):
            results[name] = module.evaluate(subject)
        home = subject.folder / "evals" if subject.folder else json.parent if json else None
        if home is not None:
            home.mkdir(exist_ok=True)
            if subject.folder:
                write_json(home / f"{name}.json", results[name])
            draw_figures(module, results[name], subject.folder, home)
    record = {"schema": SCHEMA, "subject": str(path), "evals": results}
    if json is not None:
        write_json(json, record)
    return record


def log_to_wandb(folder: Path, record: Json) -> None:
    """Logs the results of a run to W&B, as a run of the job type eval in the group and project of the run.

    A later evaluation adds its numbers to the same W&B run.
    """
    from kleiber.records.folder import read_config
    from kleiber.records.summary_file import read_summary
    from kleiber.records.wandb_run import node_of, start_run, was_online

    config, summary = read_config(folder), read_summary(folder) or {}
    node = node_of(config)
    run = start_run(
        folder, f"eval-{summary['run_id']}", f"{folder.absolute().name} (eval)", config["name"], "eval",
        online=was_online(folder), project=node.get("project") or "kleiber", entity=node.get("entity"),
        tags=node.get("tags"), config={"run": summary["run_id"], "overrides": summary["overrides"]},
    )  # fmt: skip
    run.summary.update({f"eval/{name}": value for name, value in flatten_numbers(record["evals"]).items()})
    run.finish()


def open_subject(path: Path, stage: str | None, data: Sequence[str], tokens: int | None) -> Subject:
    """Opens the model at `path` with its held-out data: a run, RUN/STAGE, or a Hugging Face folder with a tokenizer.

    data    overrides that choose the data of a Hugging Face folder
    tokens  targets to score in each validation domain; None leaves the number to the evaluation
    """
    if (path / "config.json").is_file() and not (path / "config.yaml").is_file():
        if stage is not None:
            raise ValueError(f"--stage {stage}: {path} is a Hugging Face folder, which has no stages: remove --stage")
        return open_hf_subject(path, data, tokens)
    if data:
        raise ValueError(f"--data {data[0]}: a run is evaluated on its own data; --data is for Hugging Face folders")
    from kleiber.runs.open import open_model

    path = path if stage is None else path / stage
    run = open_model(path)
    earlier = partial(earlier_models, path)
    return move_to_gpu(Subject(run.model, run.corpus, run.objective, tokens, folder=run.folder, earlier=earlier))


def open_hf_subject(path: Path, data: Sequence[str], tokens: int | None) -> Subject:
    """Opens a Hugging Face folder, with the data of the overrides `data`, or else built-in text.

    The text is cut into the tokens of the folder's own tokenizer. Raises ValueError when it has more than the model.
    """
    from omegaconf import OmegaConf

    from kleiber.config.compose import Composer, resolve_config
    from kleiber.config.targets import build
    from kleiber.runs.open import build_objective, open_hf

    model = native_model(path) or open_hf(path).model
    config, _ = resolve_config(Composer("train").compose(["data=builtin", *data]))
    config["data"]["tokenizer"] = str(path.absolute())  # not as an override, because a path need not fit their grammar
    cfg = OmegaConf.create(config)
    corpus = build(cfg.data).prepare(min(model.context, cfg.model.context))
    if corpus.tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {corpus.tokenizer.vocab_size} tokens, but the model only {model.vocab_size}: "
            "put the tokenizer that the model was trained with into the folder"
        )
    return move_to_gpu(Subject(model, corpus, build_objective(cfg, corpus), tokens))


def native_model(path: Path) -> Transformer | None:
    """Loads a Hugging Face folder into the native model in fp32, so that an evaluation can look into its layers.

    Returns None for an architecture that the native model cannot represent. Raises ValueError for a damaged folder.
    """
    from kleiber.models.hf_config import KINDS, read_config
    from kleiber.models.hf_pretrained import read_folder
    from kleiber.models.hf_twin import from_hf

    if read_config(path).get("model_type") not in KINDS:
        return None
    twin = read_folder(path)
    try:
        return from_hf(twin).eval()
    except ValueError:
        return None


def move_to_gpu(subject: Subject) -> Subject:
    """Moves the model of the subject to the GPU if there is one."""
    import torch

    if not torch.cuda.is_available():
        return subject
    device = torch.device("cuda")
    subject.model.to(device)
    return replace(subject, device=device)


def draw_figures(module: ModuleType, results: Json, folder: Path | None, home: Path) -> None:
    """Draws the figures of an evaluation into `home`/figures, if it has any and the extra `report` is installed.

    module  the evaluation; its attribute FIGURES names the module that draws
    folder  folder of the run; None for a Hugging Face model
    """
    name = vars(module).get("FIGURES")
    if name is None:
        return
    try:
        charts = importlib.import_module(name).figures(results, folder)
    except ImportError as error:
        print(f"no figures: {error.name} is not installed (pip install 'kleiber[report]')", file=sys.stderr)
        return
    (home / "figures").mkdir(exist_ok=True)
    for title, chart in charts.items():
        chart.save(home / "figures" / f"{title}.png", scale_factor=2)
        chart.save(home / "figures" / f"{title}.svg")


def result_lines(record: Json) -> list[str]:
    """Returns the lines that `kleiber eval` prints: the path and value of each number, without lists."""
    return [f"{key} {value:.6g}" for key, value in flatten_numbers(record["evals"]).items()]


def flatten_numbers(results: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Returns all numbers of nested dictionaries by their path, such as "perplexity/docs/loss"."""
    flat: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat |= flatten_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def earlier_models(path: str | Path) -> Iterator[tuple[int, Model]]:
    """Yields (step, model) for every checkpoint before the newest of RUN/STAGE, oldest first.

    A branch continues its trunk, so the trunk's checkpoints up to the branch come first; how many there are is set by
    `callbacks.checkpoints`. Yields the same model object every time, with other weights. Yields nothing for a stage
    that trained an adapter, because its checkpoints do not hold a whole model.
    """
    from kleiber.runs.open import add_saved_heads, find_stage, load_tokenizer, new_model, recorded_configs

    folder, stage = find_stage(path)
    config = recorded_configs(folder, stage)[stage]
    checkpoints = earlier_checkpoints(folder, stage)
    if config.get("adapter") or not checkpoints:
        return
    model = new_model(config, load_tokenizer(folder, config).vocab_size)
    for saved in map(checkpoint.read, checkpoints):
        add_saved_heads(model, saved)
        saved.load_weights(model)
        yield saved.step, model.eval()


def earlier_checkpoints(folder: Path, stage: str) -> list[Path]:
    """Returns the checkpoints of a stage but its newest one, oldest first, after those of the trunk it continues."""
    of_stage = checkpoint.steps(folder / "stages" / stage / "checkpoints")[1:][::-1]
    stages = {record["name"]: record for record in (read_summary(folder) or {}).get("stages", [])}
    branch_step, trunk = (stages.get(stage, {}).get(key) for key in ("branch_step", "parent"))
    if branch_step is None or trunk is None:
        return of_stage
    before = checkpoint.steps(folder / "stages" / trunk / "checkpoints")[::-1]
    return [path for path in before if path.name <= checkpoint.name(branch_step)] + of_stage
