"""Next-token prediction with a penalty on how differently a text and its counterfactual are predicted."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int

from kleiber.data import splitmix64
from kleiber.nn import counts_over_ranks, needs_other_ranks
from kleiber.objectives import CLM, answer_log_probs
from kleiber.types import Batch, Corpus, Loss, Model, NonNegative, Positive, Seed
from kleiber_topics.bias.counterfactual import CounterfactualCorpus


class Equalized(CLM):
    """Cross-entropy per token + strength E[(log p(x) - log p(x'))^2], x a text and x' its counterfactual, in nats.

    The pairs are beginnings of training documents, with the words of two groups swapped (`data=counterfactual`). Logit
    pairing of counterfactuals: Garg et al. 2019, arXiv:1809.10610, section 4.3, there between the logits of a
    classifier, here between the log-likelihoods of a language model. Every sample of a batch draws its pairs by its
    number, so they are the same in every micro-batch and after every resume. Held-out loss has no penalty.

    strength  coefficient of the penalty; its mean without the coefficient is logged as "equalization", in nats^2
    rate      mean number of pairs per sample, each of which costs the time of two rows of its length
    z_loss    as in `CLM`
    """

    couples_samples = True  # pairs of any training documents are part of a sample's loss

    def __init__(
        self,
        corpus: Corpus,
        strength: NonNegative = 0.1,
        rate: Positive = 0.25,
        z_loss: NonNegative = 0.0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(z_loss)
        if not isinstance(corpus, CounterfactualCorpus):
            raise ValueError(
                f"objective=equalized needs pairs of counterfactual texts, and data={corpus.name} has none: set "
                "data=counterfactual; data.share=0 leaves its text as it is"
            )
        self.pairs = corpus.read_pairs()
        if not len(self.pairs):
            raise ValueError(
                f"objective=equalized needs pairs, and no training document of {corpus.name} has a word of data.words "
                "within its first model.context tokens: use another list, or a larger model.context"
            )
        self.strength, self.rate, self.seed = strength, rate, seed

    def __call__(self, model: Model, batch: Batch) -> Loss:
        loss = super().__call__(model, batch)
        if not torch.is_grad_enabled():
            return loss
        penalty = torch.zeros((), device=batch.tokens.device)
        numbers, weight = self.draw(batch), loss.tokens / (self.rate * len(batch))
        if not len(numbers) and (needs_other_ranks(model) or counts_over_ranks(model)):
            # Other ranks may have drawn pairs, and wait for the weights or counts that this rank holds.
            numbers, weight = np.zeros(1, np.int64), 0.0 * loss.tokens
        if len(numbers):
            pairs = self.pairs.gather(numbers).to(batch.tokens.device)
            log_probs = answer_log_probs(model, pairs)[0]
            gaps = log_probs[:, 0] - log_probs[:, 1]
            # The sum over all micro-batches, divided by their tokens, is the mean over the pairs that are expected.
            penalty = gaps.square().sum() * weight
        metrics = {**loss.metrics, "equalization": penalty.detach()}
        return Loss(loss.total + self.strength * penalty, loss.tokens, metrics)

    def draw(self, batch: Batch) -> Int[np.ndarray, "_"]:
        """The numbers of the pairs of a batch, on average `rate` for each sample, from the samples' numbers alone."""
        assert batch.samples is not None, "pairs are drawn by the numbers of the samples"
        key = splitmix64(np.array([self.seed % (1 << 64)], np.uint64))
        state = splitmix64(batch.samples.cpu().numpy().astype(np.uint64) ^ key)
        counts = np.floor(self.rate + state / 2.0**64).astype(np.int64)
        copies = [np.arange(count, dtype=np.uint64) for count in counts]
        bits = splitmix64(np.repeat(splitmix64(state), counts) + np.concatenate([np.empty(0, np.uint64), *copies]))
        return (bits % np.uint64(len(self.pairs))).astype(np.int64)
