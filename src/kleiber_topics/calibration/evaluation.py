"""Whether a model knows when it is wrong: calibration, selective prediction, and temperature scaling as a remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Le

from kleiber.data import DataSet
from kleiber.evals import (
    COLUMNS,
    LEVEL,
    Evaluation,
    Results,
    Subject,
    log_likelihoods,
    match_answers,
    numeric_questions,
    pass_tokens,
    score_questions,
)
from kleiber.types import Count, DataPath, Json, Metric, Metrics, Natural, Score, Scores, variants
from kleiber_topics.calibration import predictions
from kleiber_topics.calibration.measures import (
    Outcomes,
    binned_sums,
    coverage_rows,
    error_scores,
    mean_of,
    reliability_rows,
    resampled_errors,
    selective_scores,
    share_of,
)
from kleiber_topics.calibration.predictions import Predicted

if TYPE_CHECKING:
    from altair import TopLevelMixin

SCORES = {  # of predictions; those of generated answers have them too
    "accuracy": Metric("accuracy", "higher"),
    "confidence": Metric("mean confidence", "none"),
    "overconfidence": Metric("confidence minus accuracy", "none"),
    "ece": Metric("expected calibration error", "lower"),
    "ece_equal_width": Metric("expected calibration error with bins of equal width", "lower"),
    "ece_calibrated": Metric("calibration error of calibrated predictions", "none"),
    "ece_excess": Metric("calibration error above that of calibrated predictions", "lower"),
    "brier": Metric("Brier score", "lower"),
    "nats": Metric("negative log-likelihood", "lower", "nats"),
    "accuracy_at_{share}": Metric("accuracy at coverage {share}", "higher"),
    "aurc": Metric("area under the risk-coverage curve", "lower"),
    "excess_aurc": Metric("area under the risk-coverage curve above the least possible", "lower"),
}
LEAST_CLUSTERS = 4  # samples, of which half choose a temperature: two of each half
ANSWERS = "answers"  # of the scores and details of generated answers

Coverage = Annotated[float, Gt(0), Le(1)]
SCALED = {name: SCORES[name] for name in ("ece", "ece_excess", "nats", "brier")}  # also before and after scaling


class Calibration(Evaluation):
    """Calibration and selective prediction of classes, of answers to multiple-choice questions, and of next tokens.

    The confidence of a prediction is its probability: of the class, of the ending among the endings of its question, or
    of the token. For every data set:

    accuracy, confidence   share of right predictions, and mean probability of the predictions
    overconfidence         their difference, confidence minus accuracy
    ece, ece_equal_width   expected calibration error over bins of equally many items, and of equal width
    ece_calibrated         ece of calibrated predictions with the same confidences: what chance alone gives
    ece_excess             ece less ece_calibrated
    brier                  mean over items of the squared error of all probabilities, from 0 to 2
    nats                   negative log-likelihood
    accuracy_at_<share>    accuracy on the most confident share of the items
    aurc, excess_aurc      area under the risk-coverage curve, and the same less the least possible one

    A temperature is fitted on every second sample, and its effect measured on the other half: `temperature`,
    `unscaled/ece` and `scaled/ece`, the same for nats and brier, and the changes `scaled/ece_change`,
    `scaled/nats_change` and `scaled/brier_change`.

    bins       of confidence
    tokens     most next tokens of each text
    coverages  shares of the items whose accuracy is reported
    scaled     whether a temperature is fitted; data of fewer than four samples has none
    answers    number of questions whose final numbers are answered greedily as in `exact_match`, with the geometric
               mean probability of the tokens of an answer as its confidence; scores begin with answers/
    data       names or paths of text or of tables of questions; null: those of the command or of the run
    """

    metrics: ClassVar[Metrics] = {
        **SCORES,
        **variants(SCORES, "answers/*", "* of answers"),
        "temperature": Metric("fitted temperature", "none"),
        **variants(SCALED, "unscaled/*", "* before temperature scaling"),
        **variants(SCALED, "scaled/*", "* after temperature scaling"),
        **variants(SCALED, "scaled/*_change", "* after minus before temperature scaling"),
    }
    reads = f"text, in a column text, or questions with the columns {'; or '.join(map(', '.join, COLUMNS))}"

    def __init__(
        self,
        bins: Annotated[int, Ge(2), Le(1000)] = 15,
        tokens: Count = 16_384,
        coverages: Sequence[Coverage] = (0.5, 0.8),
        scaled: bool = True,
        answers: Natural = 0,
        data: Sequence[DataPath] | None = None,
    ) -> None:
        for coverage in coverages:
            if not 0 < coverage <= 1:
                raise ValueError(f"evals.calibration.coverages={coverage} must lie in (0, 1]: a share of the items")
        self.bins, self.tokens, self.coverages, self.scaled = bins, tokens, coverages, scaled
        self.answers, self.data = answers, data

    def accepts(self, data: DataSet) -> bool:
        """Text, tables of questions, and the data of the run."""
        return super().accepts(data) or any(set(columns) <= set(data.columns) for columns in COLUMNS)

    def evaluate(self, subject: Subject) -> Results:
        """Scores of each data set. Raises ValueError for a model and data without classes or next tokens."""
        scores: dict[str, Scores] = {}
        details: Json = {}
        for data in subject.data:
            predicted = self._predictions(subject, data)
            outcomes = predicted.outcomes()
            scores[data.name] = scores_of(outcomes, self.bins, self.coverages)
            details[data.name] = curves(outcomes, self.bins)
            if self.scaled and int(outcomes.cluster.max()) + 1 >= LEAST_CLUSTERS:
                temperature = predicted.half(odd=False).fit_temperature()
                half = predicted.half(odd=True)
                before, after = half.outcomes(), half.outcomes(temperature)
                scores[data.name] |= {"temperature": Score(temperature), **changes(before, after, self.bins)}
                details[data.name]["scaled"] = reliability_rows(after, self.bins)
            if self.answers:
                answered = self._answers(subject, data, self.answers)
                of_answers = scores_of(answered, self.bins, self.coverages)
                scores[data.name] |= {f"{ANSWERS}/{name}": score for name, score in of_answers.items()}
                details[f"{data.name}, {ANSWERS}"] = curves(answered, self.bins)
        return Results(scores, details)

    def _predictions(self, subject: Subject, data: DataSet) -> Predicted:
        if any(set(columns) <= set(data.columns) for columns in COLUMNS):
            if not subject.model.causal:
                raise ValueError(
                    f"--evals calibration on the questions of {data.name} needs a causal model, such as model=gpt; "
                    "this model is bidirectional"
                )
            questions, log_probs = score_questions(subject, data)
            return predictions.of_questions(log_probs, [question.label for question in questions])
        objective = subject.objective_of(data.name)
        if not predictions.has_outcomes(objective, subject.model):
            raise ValueError(
                f"--evals calibration needs classes or next tokens, and objective={type(objective).__name__} predicts "
                f"neither on {data.name}: name text or questions with --data or evals.calibration.data=[...]"
            )
        tokens = subject.tokens if objective.class_names else min(self.tokens, subject.tokens or self.tokens)
        return predictions.of_samples(subject.model, objective, subject.batches(data.name, tokens))

    def _answers(self, subject: Subject, data: DataSet, count: Count) -> Outcomes:
        """Generated answers: whether their final numbers are right, and how probable the model finds them."""
        prompts, answers = numeric_questions(subject, data)
        prompts, answers = prompts[:count], answers[:count]
        match = match_answers(subject.model, subject.tokenizer, prompts, answers)
        ids = [subject.tokenizer.encode(text) or [subject.tokenizer.eos] for text in match.texts]
        items = [[pair] for pair in zip(prompts, ids, strict=True)]
        tokens = pass_tokens(subject.model, subject.rows)
        log_probs = log_likelihoods(subject.model, items, tokens, f"scoring answers to {data.name}").log_probs
        confidence = np.exp(log_probs / np.array([len(row) for row in ids]))
        correct = np.array(match.correct, dtype=np.float64)
        clipped = confidence.clip(1e-12, 1 - 1e-12)
        nats = -(correct * np.log(clipped) + (1 - correct) * np.log1p(-clipped))
        return Outcomes(confidence, correct, 2 * (confidence - correct) ** 2, nats, np.arange(len(correct)))

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        from kleiber_topics.calibration.figures import figures

        return figures(results["details"])


def scores_of(outcomes: Outcomes, bins: int, coverages: Sequence[float]) -> Scores:
    """All scores of predictions but those of a temperature; see `Calibration`."""
    cluster = outcomes.cluster
    return {
        "accuracy": share_of(outcomes.correct, cluster),
        "confidence": mean_of(outcomes.confidence, cluster),
        "overconfidence": mean_of(outcomes.confidence - outcomes.correct, cluster),
        **error_scores(outcomes, bins),
        "brier": mean_of(outcomes.brier, cluster),
        "nats": mean_of(outcomes.nats, cluster),
        **selective_scores(outcomes, coverages),
    }


def curves(outcomes: Outcomes, bins: int) -> Json:
    """The points of the figures."""
    return {"reliability": reliability_rows(outcomes, bins), "coverage": coverage_rows(outcomes)}


def changes(before: Outcomes, after: Outcomes, bins: int) -> Scores:
    """Scores of the same items before and after a temperature, and their differences, paired by item."""
    scores: Scores = {}
    for name, outcomes in (("unscaled", before), ("scaled", after)):
        errors = error_scores(outcomes, bins)
        scores[f"{name}/ece"], scores[f"{name}/ece_excess"] = errors["ece"], errors["ece_excess"]
        scores[f"{name}/nats"] = mean_of(outcomes.nats, outcomes.cluster)
        scores[f"{name}/brier"] = mean_of(outcomes.brier, outcomes.cluster)
    scores["scaled/nats_change"] = mean_of(after.nats - before.nats, after.cluster)
    scores["scaled/brier_change"] = mean_of(after.brier - before.brier, after.cluster)
    drawn = [resampled_errors(binned_sums(outcomes, bins, equal_mass=True)) for outcomes in (before, after)]
    change = scores["scaled/ece"].value - scores["unscaled/ece"].value
    deviations = drawn[1] - drawn[0]
    low, high = np.quantile(deviations - deviations.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    scores["scaled/ece_change"] = Score(change, change - float(high), change - float(low), len(after))
    return scores
