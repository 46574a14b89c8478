"""The evaluation `attribution`: which tokens a prediction rests on, and whether the methods are faithful."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, MinLen
from jaxtyping import Float
from torch import Tensor

from kleiber.evals import Evaluation, Results, Subject, mean_score, pass_tokens
from kleiber.records import Activity, activity
from kleiber.types import Count, DataPath, Json, Metric, Metrics, Model, Natural, Scores, Seed
from kleiber_topics.interpretability.attention.attention import token_text
from kleiber_topics.interpretability.attribution.faithfulness import (
    TESTS,
    Removal,
    agreement,
    gains,
    planted_scores,
    random_attributions,
    ranks,
)
from kleiber_topics.interpretability.attribution.methods import METHODS, Explainer, without_attention
from kleiber_topics.interpretability.attribution.predictions import (
    ExplainedPredictions,
    baseline_embedding,
    choose_predictions,
    target_places,
    to_device,
    token_predictions,
)

if TYPE_CHECKING:
    from altair import TopLevelMixin

Method = Literal["gradient_x_input", "integrated_gradients", "occlusion", "rollout"]


class Attribution(Evaluation):
    """Attributions of the log-probability of one prediction of each text to its tokens, and what they are worth.

    A prediction is the next token of a causal model, a masked token of another one, or the class of a classifier.

    agreement/<method>/<method>  Spearman's rank correlation over the tokens of a text
    deletion/<method>            area under the log-probability over the share of removed tokens, the most important
                                 ones first, in nats; deletion_gain is how much lower it is than for random rankings
    insertion/<method>           the same where tokens are put back; insertion_gain is how much higher it is
    completeness_error           |sum of the integrated gradients - (log p(input) - log p(baseline))|, in nats
    planted_first, planted_found on data whose causes are known (see `planted_scores`)
    log_prob                     of the explained predictions, in nats

    methods      null: those that the model allows; attention rollout needs attention in every layer and a token
    texts        of each of which one prediction is explained
    length       tokens of a text that are read; rows with a planted cause are read whole
    position     number of the explained token in the text, from 1; null: the last one, or the planted one
    baseline     what stands for no information in integrated gradients and occlusion: the mean embedding, or zero
    steps        of the integral of integrated gradients
    replacement  what takes the place of a removed token in deletion and insertion: the token of another text at the
                 same place, or the baseline
    points       of the curves of deletion and insertion
    random       random rankings of each text
    shown        texts in the report, each token of which can be explained
    shown_tokens of each of them
    data         names or paths of other data; null: that of the run or of the command
    """

    metrics: ClassVar[Metrics] = {
        "agreement/{method}/{other}": Metric("rank correlation of {method} and {other}", "none"),
        "deletion/random": Metric("area under the deletion curve of random rankings", "none", "nats"),
        "deletion/{method}": Metric("area under the deletion curve of {method}", "lower", "nats"),
        "deletion_gain/{method}": Metric("deletion gain of {method} over random rankings", "higher", "nats"),
        "insertion/random": Metric("area under the insertion curve of random rankings", "none", "nats"),
        "insertion/{method}": Metric("area under the insertion curve of {method}", "higher", "nats"),
        "insertion_gain/{method}": Metric("insertion gain of {method} over random rankings", "higher", "nats"),
        "completeness_error": Metric("completeness error of integrated gradients", "lower", "nats"),
        "planted_first/random": Metric("share of planted causes that a random ranking puts first", "none"),
        "planted_first/{method}": Metric("share of planted causes that {method} ranks first", "higher"),
        "planted_found/{method}": Metric("share of planted causes that {method} finds", "higher"),
        "log_prob": Metric("log-probability of the explained predictions", "higher", "nats"),
    }

    def __init__(
        self,
        methods: Annotated[Sequence[Method], MinLen(1)] | None = None,
        texts: Annotated[int, Ge(2)] = 48,
        length: Count = 48,
        position: Count | None = None,
        baseline: Literal["mean", "zero"] = "mean",
        steps: Count = 64,
        replacement: Literal["sampled", "baseline"] = "sampled",
        points: Count = 10,
        random: Count = 3,
        shown: Natural = 2,
        shown_tokens: Count = 32,
        seed: Seed = 0,
        data: Sequence[DataPath] | None = None,
    ) -> None:
        self.methods, self.texts, self.length, self.position = methods, texts, length, position
        self.baseline, self.steps, self.replacement, self.points = baseline, steps, replacement, points
        self.random, self.shown, self.shown_tokens, self.seed, self.data = random, shown, shown_tokens, seed, data

    def check(self, model: Model) -> None:
        """Raises ValueError for rollout where a layer has no attention, and for a position behind the context."""
        reason = without_attention(model)
        if self.methods is not None and "rollout" in self.methods and reason:
            raise ValueError(
                f"evals.attribution.methods has rollout, which needs attention in every layer, and {reason}: leave it "
                "out, or set evals.attribution.methods=null"
            )
        if self.position is not None and self.position > min(self.length, model.context):
            raise ValueError(
                f"evals.attribution.position={self.position} must be <= {min(self.length, model.context)}, the tokens "
                "of a text that are read: set evals.attribution.length"
            )

    def evaluate(self, subject: Subject) -> Results:
        """Explains the predictions of each data set. Raises ValueError for one with fewer than two texts."""
        scores: dict[str, Scores] = {}
        details: Json = {"curves": {}, "texts": {}}
        for domain in subject.domains:
            texts = self.texts if subject.limit is None else min(self.texts, max(2, subject.limit))
            chosen = choose_predictions(subject, domain, texts, self.length, self.position, self.seed)
            methods = self.methods_of(subject.model, chosen)
            total = len(chosen) * (len(methods) + len(TESTS) * (len(methods) + self.random) * (self.points + 1))
            with activity(f"explaining predictions on {domain}", total, "passes over a text") as work:
                explainer = self.explainer(subject, work)
                attributions = {method: explainer.explain(method, chosen) for method in methods}
                curves, test_scores = self.test(subject, chosen, attributions, explainer)
            scores[domain] = {
                **test_scores,
                **agreement(attributions, chosen),
                **self.completeness(explainer, chosen, attributions),
                **planted_scores(attributions, chosen),
            }
            details["curves"][domain] = curves
            details["texts"][domain] = self.shown_texts(subject, domain, methods)
        return Results(scores, details)

    def methods_of(self, model: Model, predictions: ExplainedPredictions) -> list[str]:
        """The methods that are asked for, or those that the model and what it predicts allow."""
        has_rollout = predictions.classify is None and not without_attention(model)
        if self.methods is None:
            return [method for method in METHODS if method != "rollout" or has_rollout]
        if "rollout" in self.methods and not has_rollout:
            raise ValueError(
                "evals.attribution.methods has rollout, which follows attention to one position, and a class is "
                "predicted from all of them: leave it out"
            )
        return list(dict.fromkeys(self.methods))

    def explainer(self, subject: Subject, work: Activity) -> Explainer:
        """What the methods need."""
        baseline = baseline_embedding(subject.model, subject.tokenizer, self.baseline)
        return Explainer(subject.model, baseline, self.steps, pass_tokens(subject.model, subject.rows), work)

    def test(
        self,
        subject: Subject,
        chosen: ExplainedPredictions,
        attributions: Mapping[str, Float[Tensor, "rows time"]],
        explainer: Explainer,
    ) -> tuple[Json, Scores]:
        """Curves of deletion and insertion, their means over texts by method, and the scores of both."""
        baseline = explainer.baseline if self.replacement == "baseline" else None
        removal = Removal(subject.model, baseline, self.points, explainer.tokens, explainer.work)
        shuffled = [random_attributions(chosen, self.seed + number) for number in range(self.random)]
        details: Json = {}
        scores: Scores = {}
        for test in TESTS:
            drawn = [removal.curves(chosen, ranks(values, chosen), test) for values in shuffled]
            random = np.mean(drawn, axis=0)
            curves = {
                method: removal.curves(chosen, ranks(values, chosen), test) for method, values in attributions.items()
            }
            scores |= gains(curves, random, test)
            means = {**curves, "random": random}
            details[test] = {method: values.mean(0).round(4).tolist() for method, values in means.items()}
            if test == "deletion":
                scores["log_prob"] = mean_score(random[:, 0])
        return details, scores

    def completeness(
        self, explainer: Explainer, chosen: ExplainedPredictions, attributions: Mapping[str, Float[Tensor, "rows time"]]
    ) -> Scores:
        """The mean error of the sum of integrated gradients in nats; {} without them."""
        if "integrated_gradients" not in attributions:
            return {}
        with torch.no_grad():
            ends = [explainer.embed(chosen), explainer.without_information(chosen)]
            whole, start = (chosen.log_probs(explainer.model, vectors) for vectors in ends)
        errors = (attributions["integrated_gradients"].sum(1) - (whole - start)).abs()
        return {"completeness_error": mean_score(errors.double().cpu().numpy())}

    def shown_texts(self, subject: Subject, domain: str, methods: Sequence[str]) -> list[Json]:
        """The first texts with the attributions of each of their predictions, as plain data for the report.

        tokens   texts of the tokens
        targets  what is explained: `at` (number of the token, None for a class), `name` and `log_prob` in nats
        methods  by method, for each target the attributions of the tokens
        """
        if not self.shown:
            return []
        if subject.objective_of(domain).class_names:
            chosen = choose_predictions(subject, domain, max(2, self.shown), self.shown_tokens, None, self.seed)
            names = subject.objective_of(domain).class_names
            parts = [chosen.select(torch.tensor([row], device=chosen.at.device)) for row in range(self.shown)]
            return [
                self.shown_text(subject, part, methods, part.batch.tokens[0], names) for part in parts[: len(chosen)]
            ]
        samples = subject.samples(domain)
        raw = samples.gather(np.arange(min(self.shown, len(samples))))
        planted, last = samples.planted(np.arange(len(raw))), min(self.shown_tokens, subject.model.context)
        texts = []
        for row in range(len(raw)):
            alone = raw.map(lambda tensor, row=row: tensor[row : row + 1])
            if planted is None:
                alone = alone.columns(last + 1)
            places = target_places(alone, subject.model)[0].nonzero()[:, 0]
            if not len(places):
                continue
            repeated = alone.map(lambda tensor, places=places: tensor.expand(len(places), *tensor.shape[1:]))
            chosen = token_predictions(subject.model, subject.tokenizer, repeated, places)
            texts.append(
                self.shown_text(subject, to_device(chosen, subject.device), methods, alone.tokens[0], (), places)
            )
        return texts

    def shown_text(
        self,
        subject: Subject,
        chosen: ExplainedPredictions,
        methods: Sequence[str],
        tokens: Tensor,
        names: Sequence[str],
        places: Tensor | None = None,
    ) -> Json:
        """One text with the attributions of its predictions, see `shown_texts`."""
        with activity("explaining the texts of the report", len(chosen) * len(methods), "predictions") as work:
            explainer = self.explainer(subject, work)
            values = {method: explainer.explain(method, chosen) for method in methods}
        with torch.no_grad():
            log_probs = chosen.log_probs(subject.model).tolist()
        texts = [token_text(subject.tokenizer, token) for token in tokens.tolist()]
        ids: list[int] = chosen.targets.tolist()
        at: list[int | None] = [None] * len(chosen) if places is None else places.tolist()
        targets = [
            {"at": place, "name": names[i] if names else token_text(subject.tokenizer, i), "log_prob": round(value, 3)}
            for place, i, value in zip(at, ids, log_probs, strict=True)
        ]
        rounded = {
            method: [[float(f"{value:.3g}") for value in row] for row in rows.tolist()]
            for method, rows in values.items()
        }
        return {"tokens": texts, "targets": targets, "methods": rounded}

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        """Curves of deletion and insertion, gains over random rankings, and agreement of the methods."""
        from kleiber_topics.interpretability.attribution.figures import figures

        return figures(results)

    def page(self, results: Json) -> str:
        """The texts, colored by the attributions of the token that the reader chooses."""
        from kleiber_topics.interpretability.attribution.page import explorer

        return explorer(results["details"]["texts"])
