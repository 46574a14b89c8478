"""How far a policy has moved from another model on the prompts that it practices: KL(other || policy) of answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kleiber.config import local_copy
from kleiber.data import DataSet
from kleiber.evals import Evaluation, Results, Subject, mean_score
from kleiber.objectives import answer_limit, frozen_log_probs, questions_of, to_batch, write_answers
from kleiber.runs import open_model
from kleiber.types import Batch, Count, Metric, Metrics, Scores, Seed, device_of

ROWS = 256  # answers in a forward pass


@dataclass(frozen=True)
class Written:
    """Answers of the other model, as rows with their log-probabilities under it, in nats (answers,)."""

    batch: Batch
    log_probs: torch.Tensor


class Divergence(Evaluation):
    """KL(other || policy) of answers to held-out prompts, in nats per answer.

    The other model writes answers y, and the mean of log other(y) - log policy(y) estimates the divergence without
    bias. It predicts what fine-tuning forgets, whatever the method (Shenfeld et al. 2025, arXiv:2509.04259).

    model    RUN or RUN/STAGE, such as the one that the policy started from
    samples  answers to each prompt
    limit    most prompts of a data set; null: all
    seed     of the answers
    """

    causal = True
    metrics: ClassVar[Metrics] = {"kl": Metric("divergence from the other model", "lower", "nats per answer")}
    reads = "prompts with right answers, such as those of data=verifiable/sorting"

    def __init__(self, model: str, samples: Count = 4, limit: Count | None = 200, seed: Seed = 0) -> None:
        self.model, self.samples, self.limit, self.seed = model, samples, limit, seed
        self.written: dict[str, Written] = {}  # of each data set, of which a run has the same

    def accepts(self, data: DataSet) -> bool:
        """Only the data of the run."""
        return data.of_run

    def evaluate(self, subject: Subject) -> Results:
        """The divergence on each data set. Raises ValueError, which names the key, where the model cannot be opened."""
        scores: dict[str, Scores] = {}
        for domain in subject.domains:
            written = self.written.get(domain) or self._write(subject, domain)
            self.written[domain] = written
            batch = written.batch.to(device_of(subject.model))
            after = frozen_log_probs(subject.model, batch, ROWS).sum(1).cpu()
            gaps = (written.log_probs - after).double().view(-1, self.samples).mean(1)
            scores[domain] = {"kl": mean_score(gaps.numpy())}
        return Results(scores)

    def _write(self, subject: Subject, domain: str) -> Written:
        """Answers of the other model to the held-out prompts of a data set."""
        try:
            other = open_model(local_copy(self.model) or self.model).model.to(device_of(subject.model))
        except ValueError as error:
            raise ValueError(f"evals.divergence.model: {error}") from None
        held_out, eos = subject.samples(domain, subject.tokens), subject.tokenizer.eos
        questions = questions_of(held_out, self.limit)
        tokens = answer_limit(held_out, other.context, None, "")
        prompts = {number: question.prompt for number, question in enumerate(questions)}
        answers = write_answers(other, prompts, self.samples, tokens, eos, self.seed)
        numbers = [number for number in prompts for _ in range(self.samples)]
        batch = to_batch(answers, numbers, eos, other.context + 1).to(device_of(other))
        return Written(batch, frozen_log_probs(other, batch, ROWS).sum(1).cpu())
