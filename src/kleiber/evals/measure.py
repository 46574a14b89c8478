"""Runs evaluations: chooses the data of each, measures the model, and names the results."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from kleiber.config.labels import data_label
from kleiber.config.targets import build
from kleiber.data.evaluation_sets import DataSet, open_sets
from kleiber.data.order import Reading
from kleiber.evals.contamination import CONTAMINATION, Contamination
from kleiber.evals.evaluation import Evaluation, Results, Subject
from kleiber.objectives.clm import CLM
from kleiber.records.files import write_json
from kleiber.records.progress import activity
from kleiber.records.regular_files import make_folder
from kleiber.types import Config, Json
from kleiber.types.contracts import Corpus, HeldOut, Objective
from kleiber.types.model import Model, device_of, evaluation_mode
from kleiber.types.score import Scores, described
from kleiber.types.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """An evaluation with the data sets that it reads.

    name           of the choice of the config group `evals`
    contamination  of the tables of items that all evaluations of one command read
    """

    name: str
    evaluation: Evaluation
    data: Sequence[DataSet]
    contamination: Contamination = field(default_factory=Contamination)

    def measure(self, subject: Subject) -> Results:
        """Evaluates the model of `subject` on the data; restores its mode and the random state of PyTorch."""
        devices = [subject.device] if torch.device(subject.device).type == "cuda" else []
        # Only training is compiled: each odd batch size would need its own graph.
        eager, mode = torch.compiler.set_stance("force_eager"), evaluation_mode(subject.model)
        with mode, torch.random.fork_rng(devices), eager, activity(f"evaluation {self.name}"):
            results = self.evaluation.evaluate(replace(subject, data=self.data))
            return self.describe(replace(results, scores=self.contamination.add_to(results.scores, subject)))

    def describe(self, results: Results) -> Results:
        """The results with units, directions and labels, as the evaluation declares them for its metrics."""
        metrics, labels = {**CONTAMINATION, **self.evaluation.metrics}, {data.name: data.label for data in self.data}
        labels |= self.evaluation.data_labels
        scores = {
            data: {
                metric: described(score, metrics, metric, f"on {labels.get(data) or data_label(data)}")
                for metric, score in of_data.items()
            }
            for data, of_data in results.scores.items()
        }
        return replace(results, scores=scores)

    def measure_or_warn(self, subject: Subject) -> Results | None:
        """As `measure`; None, with a warning, where the data cannot be scored, which is no reason to end a run."""
        try:
            return self.measure(subject)
        except ValueError as error:
            log.warning("evaluation %s failed, and the run has no scores of it: %s", self.name, error)
            return None


def build_evaluations(nodes: Config | None) -> dict[str, Evaluation]:
    """Builds the evaluations of the config node `evals`, by name."""
    return {name: build(DictConfig(node)) for name, node in (nodes or {}).items() if node is not None}


def plan_measurements(
    evaluations: Mapping[str, Evaluation],
    model: Model,
    tokenizer: Tokenizer,
    validation_sets: Sequence[DataSet],
    named: Sequence[DataSet] = (),
) -> list[Measurement]:
    """Chooses the data of each evaluation: of its key `data`, else `named`, else the validation data of the run.

    An evaluation that accepts none of these reads its default data, if it has any.

    validation_sets  of the run
    named     data sets of the command line

    Raises ValueError for a model or data that an evaluation cannot read, and for a data set that none of them reads.
    """
    measurements, contamination = [], Contamination()
    for name, evaluation in evaluations.items():
        if evaluation.causal and not model.causal:
            raise ValueError(f"--evals {name} needs a causal model, such as model=gpt; this model is bidirectional")
        evaluation.check(model)
        data: Sequence[DataSet] = named or validation_sets
        paths = evaluation.data
        if paths is None and not any(map(evaluation.accepts, data)):
            paths = evaluation.default_data or None
        if paths is not None:
            data = [part for text in paths for part in find_sets(text, f"evals.{name}.data", tokenizer, model)]
        accepted = [part for part in data if evaluation.accepts(part)]
        if evaluation.reads_data and (not accepted or (evaluation.data is not None and len(accepted) < len(data))):
            refused = next((part for part in data if part not in accepted), None)
            raise ValueError(explain_refusal(name, evaluation, refused))
        contamination.sets += [part for part in accepted if evaluation.columns and part.table is not None]
        measurements.append(Measurement(name, evaluation, accepted, contamination))
    read = {part.name for measurement in measurements for part in measurement.data}
    for part in named:
        if part.name not in read:
            names, columns = ", ".join(evaluations), ", ".join(part.columns)
            raise ValueError(f"--data {part.name} has the columns {columns}, which none of {names} reads")
    return measurements


def training_measurements(nodes: Config | None, model: Model, corpus: Corpus) -> list[Measurement]:
    """The evaluations of a training run: those of the config node `evals`, with the data of each."""
    validation_sets = own_sets(corpus.validation)
    return plan_measurements(build_evaluations(nodes), model, corpus.tokenizer, validation_sets)


def find_sets(text: str, key: str, tokenizer: Tokenizer, model: Model) -> list[DataSet]:
    """The data sets of a name or path. Errors name `key`, where the text stands."""
    try:
        return open_sets(text, tokenizer, model.context)
    except ValueError as error:
        raise ValueError(str(error).replace("data.path=", f"{key} ", 1)) from error


def explain_refusal(name: str, evaluation: Evaluation, data: DataSet | None) -> str:
    """Why an evaluation cannot read a data set, and what it needs."""
    got = "no data" if data is None else f"{data.name}, whose columns are {', '.join(data.columns) or 'none'}"
    if data is not None and data.of_run:
        got = f"only {data.name}, the validation data of the run"
    if not evaluation.columns:
        return f"--evals {name} reads {evaluation.reads}, and got {got}"
    needed = "; or ".join(", ".join(columns) for columns in evaluation.columns)
    return (
        f"--evals {name} needs a table with the columns {needed}, and got {got}: name such data with --data, or with "
        f"evals.{name}.data=[...]"
    )


def own_sets(samples: Mapping[str, HeldOut]) -> list[DataSet]:
    """The validation data of a run as data sets."""
    return [
        DataSet(name, lambda held_out=held_out: held_out, of_run=True, label=held_out.label)
        for name, held_out in samples.items()
    ]


def language_objective(objective: Objective, model: Model, tokenizer: Tokenizer) -> Objective:
    """The objective by which a model reads any text: its own if it is one, else prediction of the next token.

    A bidirectional model predicts masked tokens.
    """
    if objective.likelihood:
        return objective
    if model.causal:
        return CLM()
    from kleiber.objectives.mlm import MLM

    return objective if isinstance(objective, MLM) else MLM(tokenizer)


def make_subject(
    model: Model,
    corpus: Corpus,
    objective: Objective,
    tokens: int | None,
    rows: int = 16,
    reading: Reading | None = None,
) -> Subject:
    """A model that trains on `corpus`, as the subject of evaluations.

    tokens   target tokens to score per data set; None leaves the number to the evaluation
    rows     samples per forward pass
    reading  how far the training samples have been read; None where that is not known
    """
    language = language_objective(objective, model, corpus.tokenizer)
    device = device_of(model)
    validation_sets = own_sets(corpus.validation)
    return Subject(
        model,
        corpus.tokenizer,
        objective,
        language,
        (),
        corpus.train if corpus.train.random_access else None,
        validation_sets,
        tokens,
        rows=rows,
        device=device,
        corpus=corpus,
        reading=reading,
    )


def scores_by_key(name: str, results: Results) -> Scores:
    """The scores by their key in summary.json, eval/<name>/<data>/<metric>."""
    return {
        f"eval/{name}/{data}/{metric}": score
        for data, scores in results.scores.items()
        for metric, score in scores.items()
    }


def to_json(results: Results) -> Json:
    """The scores, details and items as RUN/evals/<name>.json holds them; of the contents of items their hashes."""
    scores = {
        data: {metric: score.to_json() for metric, score in scores.items()} for data, scores in results.scores.items()
    }
    items = {
        data: {
            "contents": [hashlib.sha256(text.encode()).hexdigest()[:16] for text in each.contents],
            "values": {metric: values.tolist() for metric, values in each.values.items()},
        }
        for data, each in results.items.items()
    }
    return {"scores": scores, "details": results.details, **({"items": items} if items else {})}


def save_results(folder: Path, name: str, results: Results, settings: Config) -> None:
    """Writes the results of an evaluation to RUN/evals/<name>.json.

    settings  by data set of the run's own evaluation, as `kleiber.records.evaluations.settings_of`
    """
    write_json(make_folder(folder, "evals") / f"{name}.json", {**to_json(results), "settings": dict(settings)})
