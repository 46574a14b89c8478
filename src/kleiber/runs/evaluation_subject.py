"""Opens the subject of evaluations: a run or a Hugging Face folder, and the data that its model is scored on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.config.foreign import Unpermitted, requests
from kleiber.config.model_size import check_model_memory
from kleiber.config.permissions import permit_data
from kleiber.config.targets import build
from kleiber.data.evaluation_sets import DataSet, open_sets
from kleiber.data.order import Reading
from kleiber.data.pretrained_tokenizer import load_pretrained
from kleiber.evals.evaluation import Subject
from kleiber.evals.measure import find_sets, language_objective, make_subject, own_sets
from kleiber.models.transformer import Transformer
from kleiber.records.folder import TOKENIZER
from kleiber.records.summary_file import read_summary
from kleiber.runs.open import TrainedModel, build_objective, open_hf, open_model, prepare_corpus
from kleiber.runs.plan import batch_samples
from kleiber.runs.recorded_config import recorded_configs
from kleiber.runs.stage_evaluation import plan_reading
from kleiber.training import checkpoint
from kleiber.training.trainer import chosen_device
from kleiber.types.contracts import Corpus, Objective
from kleiber.types.model import Model, device_of


def open_subject(
    path: Path, stage: str | None, data: Sequence[str], tokens: int | None, device: str | None = None
) -> tuple[Subject, list[DataSet], list[DataSet]]:
    """Opens the model at `path`, a run, RUN/STAGE or a Hugging Face folder with a tokenizer, and its data.

    data    names or paths of data sets; KEY=VALUE among them are the overrides of one more, such as data.path=...
    tokens  targets to score in each data set; None leaves the number to the evaluation
    device  cpu or gpu; None takes the GPU where there is one

    Returns the model, the validation data of the run (built-in text for a Hugging Face folder) and that of `data`.
    """
    where = chosen_device(device)
    overrides = [text for text in data if "=" in text.partition("://")[0]]  # the query of a URL may have one too
    names = [text for text in data if text not in overrides]
    permit_data(names)
    is_hf = (path / "config.json").is_file() and not (path / "config.yaml").is_file()
    if is_hf:
        if stage is not None:
            raise ValueError(f"--stage {stage}: {path} is a Hugging Face folder, which has no stages: remove --stage")
        subject, validation_sets = open_hf_subject(path, overrides, tokens)
        described = validation_sets if overrides else []
    else:
        place = path if stage is None else path / stage
        run = open_model(place)
        subject = replace(subject_of(run, tokens, data), folder=run.folder, earlier=partial(earlier_models, place))
        validation_sets = list(subject.validation)
        described = own_sets(corpus_for(run, overrides).validation) if overrides else []
        recorded = {request.value for request in requests({"data": run.config["data"]})}
        if recorded & {*names}:  # named to allow it
            described, names = [*described, *validation_sets], [name for name in names if name not in recorded]
    named = [part for name in names for part in find_sets(name, "--data", subject.tokenizer, subject.model)]
    own_names = {part.name for part in validation_sets}
    # The run has held out other text of its own data set than an evaluation of the whole file would.
    named = [next(part for part in validation_sets if part.name == n.name) if n.name in own_names else n for n in named]
    subject.model.to(where)
    return replace(subject, device=where), validation_sets, [*described, *named]


def subject_of(run: TrainedModel, tokens: int | None, data: Sequence[str]) -> Subject:
    """Returns the model of a run as a subject with the run's own data.

    Its own data is left out where the reader has not allowed to open it, but has named other `data`. Raises Unpermitted
    where they have named none.
    """
    try:
        corpus = run.corpus
    except Unpermitted:
        if not data:
            raise
        language = language_objective(Objective(), run.model, run.tokenizer)
        return Subject(run.model, run.tokenizer, language, language, (), tokens=tokens, device=device_of(run.model))
    return make_subject(run.model, corpus, run.objective, tokens, reading=reading_of(run))


def reading_of(run: TrainedModel) -> Reading | None:
    """How far a stage has read its training samples; None where that is not known, as for an imported model."""
    if not run.step:
        return None
    cfg = OmegaConf.create(dict(run.config))
    rows = batch_samples(cfg.batch.tokens, cfg.model.context * run.corpus.train.sides, 1)
    skipped = sum(entry["step"] - entry["to"] for entry in run.record.get("rollbacks") or [])
    return plan_reading(cfg, run.corpus, rows, run.step + skipped)


def corpus_for(run: TrainedModel, overrides: Sequence[str]) -> Corpus:
    """Prepares other data with the tokenizer and the context of a run.

    overrides  such as data=text and data.path=..., which choose the data

    Raises ValueError where the data needs a tokenizer of its own.
    """
    config, _ = resolve_config(Composer("train").compose(list(overrides)))
    trained = run.config["data"].get("tokenizer") or "bytes"
    folder = run.folder / TOKENIZER
    config["data"]["tokenizer"] = str(folder.absolute()) if folder.is_dir() else trained
    if config["data"].get("vocab_size") is not None:
        raise ValueError("--data data.vocab_size: the run has a tokenizer already: remove data.vocab_size")
    config["model"]["context"] = run.model.context
    return prepare_corpus(config)


def open_hf_subject(path: Path, overrides: Sequence[str], tokens: int | None) -> tuple[Subject, list[DataSet]]:
    """Opens a Hugging Face folder, and the data of `overrides`, or else built-in text, which is encoded on use.

    The text is cut into the tokens of the folder's own tokenizer. Raises ValueError when it has more than the model.
    """
    from kleiber.models.hf_config import hf_tokenizer

    model, tokenizer = native_model(path) or open_hf(path).model, load_pretrained(hf_tokenizer(path))
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, but the model only {model.vocab_size}: put the "
            "tokenizer that the model was trained with into the folder"
        )
    config, _ = resolve_config(Composer("train").compose(["data=builtin", *overrides]))
    context = min(model.context, config["model"]["context"])
    objective = language = language_objective(Objective(), model, tokenizer)
    data = open_sets("builtin/docs", tokenizer, context)
    if overrides:
        config["data"]["tokenizer"] = str(path.absolute())  # a path need not fit the grammar of overrides
        cfg = OmegaConf.create(config)
        corpus = build(cfg.data).prepare(context)
        objective, data = build_objective(cfg, corpus), own_sets(corpus.validation)
    device = device_of(model)
    return Subject(model, tokenizer, objective, language, (), tokens=tokens, device=device), data


def native_model(path: Path) -> Transformer | None:
    """Loads a Hugging Face folder into the native model in fp32, so that an evaluation can look into its layers.

    Returns None for an architecture that the native model cannot represent. Raises ValueError for a damaged folder.
    """
    from kleiber.models.hf_config import KINDS, hf_model_node, hf_vocab_size, read_config
    from kleiber.models.hf_pretrained import read_folder
    from kleiber.models.hf_twin import from_hf

    if read_config(path).get("model_type") not in KINDS:
        return None
    try:
        node = hf_model_node(path)
    except ConfigError:  # `from_hf` decides what cannot be represented
        node = None
    if node is not None:
        check_model_memory(node, hf_vocab_size(path), f"{path}: ")
    twin = read_folder(path)
    try:
        return from_hf(twin).eval()
    except ValueError:
        return None


def earlier_models(path: str | Path) -> Iterator[tuple[int, Model]]:
    """Yields (step, model) for every checkpoint before the newest of RUN/STAGE, oldest first.

    A branch continues its trunk, so the trunk's checkpoints up to the branch come first; how many there are is set by
    `callbacks.checkpoints`. Yields the same model object every time, with other weights. Yields nothing for a stage
    that trained an adapter, because its checkpoints do not hold a whole model.
    """
    from kleiber.runs.open import add_saved_heads, find_stage, load_tokenizer, new_model

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
    branch_step, trunk = (stages.get(stage, {}).get(key) for key in ("branch_step", "trunk"))
    if branch_step is None or trunk is None:
        return of_stage
    before = checkpoint.steps(folder / "stages" / trunk / "checkpoints")[::-1]
    return [path for path in before if path.name <= checkpoint.name(branch_step)] + of_stage
