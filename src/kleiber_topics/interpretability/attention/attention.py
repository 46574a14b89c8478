"""The evaluation `attention`: summaries of every head on text, induction on repeated tokens, and the logit lens.

The logit lens shows what the model would predict after each of its layers: the final norm and the output layer are
applied to the residual stream before the first block and after each block (nostalgebraist 2020,
"interpreting GPT: the logit lens").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.evals import Evaluation, Results, Stream, Subject, mean_score, read_streams
from kleiber.models import HFModel, Transformer
from kleiber.nn import log_probs, target_weights
from kleiber.types import (
    Batch,
    Count,
    DataPath,
    Json,
    Metric,
    Metrics,
    Model,
    Natural,
    Score,
    Scores,
    Seed,
    Tokenizer,
    variants,
)
from kleiber_topics.interpretability.attention.heads import (
    HeadWeights,
    attention_layers,
    first_tokens,
    head_metrics,
    induction_scores,
    read_attention,
)

if TYPE_CHECKING:
    from altair import TopLevelMixin

REPEATED = "repeated_tokens"  # name of the data set of random tokens that are repeated
LONGEST_PERIOD = 64
MAXIMA = ("max_logit",)  # metrics that are maxima over rows, and have no interval
MINIMA = ("normalized_entropy",)  # metrics of which the least head is told too: a collapsed head attends to one token

ByLayer = dict[int, Float[np.ndarray, "rows heads"]]
HEADS = {  # of each head
    "entropy": Metric("attention entropy", "none", "nats"),
    "normalized_entropy": Metric("normalized attention entropy", "none"),
    "max_logit": Metric("largest attention logit", "none"),
    "sink": Metric("attention to the first token", "none"),
    "distance": Metric("attention distance", "none", "tokens"),
    "previous_token": Metric("attention to the previous token", "none"),
    "induction": Metric("induction score", "none"),
}


class LensText(NamedTuple):
    """Predictions of the tokens of one row after each layer; layer 0 is the embedding.

    tokens       the predicted tokens: the row without its first token
    probability  of each token given those before it
    best         the most probable token
    """

    tokens: Int[Tensor, "time"]
    probability: Float[Tensor, "layers time"]
    best: Int[Tensor, "layers time"]


@torch.compiler.set_stance("force_eager")
@torch.no_grad()
def residual_streams(model: Transformer, batch: Batch) -> list[Stream]:
    """The residual stream before the first block and after each block, with the final norm applied.

    The last one is the hidden state that the model returns.
    """
    return [model.norm(stream) for stream in read_streams(model, batch)]


@torch.no_grad()
def lens_losses(model: Transformer, batches: Iterable[Batch]) -> Float[Tensor, "rows layers"]:
    """Next-token loss of each row after each layer, in nats per target token; without the rows that have no target."""
    rows: list[Tensor] = []
    for batch in batches:
        streams = residual_streams(model, batch.columns(-1))
        losses = torch.stack([-log_probs(stream, model.head, batch.tokens[:, 1:]) for stream in streams], 1)
        weights = target_weights(batch)
        weights = torch.ones_like(losses[:, 0]) if weights is None else weights.to(losses.dtype)
        counts = weights.sum(1)
        rows.append(((losses * weights[:, None]).sum(2) / counts[:, None])[counts > 0].double().cpu())
    return torch.cat(rows)


@torch.no_grad()
def lens_text(model: Transformer, tokens: Int[Tensor, "1 time"]) -> LensText:
    """Predictions of the tokens of one row after each layer."""
    streams = residual_streams(model, Batch(tokens[:, :-1]))
    logits = torch.stack([model.head(stream)[0].float() for stream in streams])
    following = tokens[0, 1:]
    probability = logits.softmax(-1).gather(2, following.expand(len(logits), -1)[:, :, None])[..., 0]
    return LensText(following.cpu(), probability.cpu(), logits.argmax(-1).cpu())


class Attention(Evaluation):
    """Attention of every head: entropy, largest logit, sink, distance, previous-token and induction scores.

    The weights are computed beside the fused kernel, in fp32, on the first `tokens` held-out tokens of each data set.
    Metrics are `<metric>/layer<L>/head<H>`, their mean, largest and, for entropies, least value over heads
    (`<metric>/mean`, `/max`, `/min`); see `head_metrics`. Causal models also have `induction` (see `induction_scores`)
    and `repeat_gain`, the loss on random tokens less that on their repetition, on the data set `repeated_tokens`; and
    `lens_loss/layer<L>`, the next-token loss if the output layer read the residual stream after L blocks.
    Intervals are over rows of text; a layer or head is fixed.

    tokens       held-out tokens to read per data set, unless the command sets a number
    period       random tokens that are repeated; null: half the context, at most 64
    repeats      rows of repeated tokens
    text_tokens  tokens of the text in the report that is colored by layer and probability, per data set
    data         names or paths of other data; null: that of the run or of the command
    """

    metrics: ClassVar[Metrics] = {
        **variants(HEADS, "*/layer{layer}/head{head}", "* of head {head} in layer {layer}"),
        **variants(HEADS, "*/mean", "*, mean over heads,"),
        **variants(HEADS, "*/max", "*, largest over heads,"),
        **variants(HEADS, "*/min", "*, least over heads,"),
        "lens_loss/layer{layer}": Metric("loss of the logit lens in layer {layer}", "none", "nats per token"),
        "repeat_gain": Metric("loss less that of the repetition", "higher", "nats per token"),
    }
    data_labels: ClassVar[Mapping[str, str]] = {REPEATED: "repeated random tokens"}

    def __init__(
        self,
        tokens: Count = 8192,
        period: Count | None = None,
        repeats: Count = 16,
        text_tokens: Natural = 200,
        seed: Seed = 0,
        data: Sequence[DataPath] | None = None,
    ) -> None:
        self.tokens, self.period, self.repeats = tokens, period, repeats
        self.text_tokens, self.seed, self.data = text_tokens, seed, data

    def check(self, model: Model) -> None:
        """Raises ValueError for a model without readable attention, or a period that its context cannot repeat."""
        if isinstance(model, HFModel):
            raise ValueError(
                f"evals.attention reads the layers of kleiber's own Transformer, and a {model.config.model_type} is "
                "computed by transformers: evaluate a model of type llama, qwen3, mixtral or qwen3_moe"
            )
        if not isinstance(model, Transformer) or not attention_layers(model):
            name = type(model).__name__
            if isinstance(model, Transformer):
                name += f" with {type(model.blocks[0].attention).__name__}"
            raise ValueError(
                f"evals.attention reads attention weights, and this model, {name}, has none: evaluate a model with "
                "model/attention=full or window"
            )
        longest = (model.context - 1) // 2
        if model.causal and (self.period or 2) > longest:
            raise ValueError(
                f"evals.attention.period={self.period} must be <= {longest}, so that a token and the period twice fit "
                f"into the context of {model.context} tokens: set evals.attention.period=null"
            )

    def evaluate(self, subject: Subject) -> Results:
        """Reads the attention on the held-out text of each data set and on repeated random tokens."""
        model = subject.model
        self.check(model)
        assert isinstance(model, Transformer)
        tokens = subject.tokens or self.tokens
        scores: dict[str, Scores] = {}
        heads: Json = {}
        lens: Json = {}
        for domain in subject.domains:
            metrics = text_metrics(model, list(subject.batches(domain, tokens)))
            scores[domain] = head_scores(metrics)
            heads[domain] = head_matrices(metrics)
            if model.causal:
                losses = lens_losses(model, subject.batches(domain, tokens))
                by_layer = [mean_score(losses[:, layer].numpy()) for layer in range(losses.shape[1])]
                scores[domain] |= {f"lens_loss/layer{layer}": score for layer, score in enumerate(by_layer)}
                lens[domain] = {"loss": [score.value for score in by_layer], **self.colored_text(subject, domain)}
        if model.causal:
            induction, gains = repeated_metrics(model, self.repeated_tokens(model, subject.tokenizer, subject.device))
            scores[REPEATED] = head_scores({"induction": induction}) | {"repeat_gain": mean_score(gains)}
            heads[REPEATED] = head_matrices({"induction": induction})
        return Results(scores, {"heads": heads, "lens": lens})

    def repeated_tokens(
        self, model: Model, tokenizer: Tokenizer, device: torch.device | str
    ) -> Int[Tensor, "rows time"]:
        """Rows of the token in front of a document, random tokens, and the same random tokens again."""
        period = self.period or min(LONGEST_PERIOD, (model.context - 1) // 2)
        ids = np.flatnonzero(tokenizer.token_bytes > 0)
        chosen = np.random.default_rng(self.seed % 2**32).choice(ids, (self.repeats, period))
        begin = np.full((self.repeats, 1), tokenizer.begin)
        return torch.from_numpy(np.concatenate([begin, chosen, chosen], 1).astype(np.int64)).to(device)

    def colored_text(self, subject: Subject, domain: str) -> Json:
        """The first tokens of a data set with their probability and the best token after each layer, as plain data."""
        batch = next(iter(subject.batches(domain, 1)))
        row = batch.tokens[:1] if batch.real is None else batch.tokens[:1, batch.real[0]]
        row = row[:, : min(self.text_tokens, subject.model.context) + 1]
        if row.shape[1] < 2:
            return {"tokens": [], "probability": [], "best": []}
        assert isinstance(subject.model, Transformer)
        text = lens_text(subject.model, row)
        names = {i: token_text(subject.tokenizer, i) for i in {*text.tokens.tolist(), *text.best.flatten().tolist()}}
        return {
            "tokens": [names[i] for i in text.tokens.tolist()],
            "probability": [[round(p, 4) for p in layer] for layer in text.probability.tolist()],
            "best": [[names[i] for i in layer] for layer in text.best.tolist()],
        }

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        """Heat maps of each metric over heads and layers, and the loss of the logit lens by layer."""
        from kleiber_topics.interpretability.attention.figures import figures

        return figures(results)

    def page(self, results: Json) -> str:
        """The text of each data set, colored by the logit lens."""
        from kleiber_topics.interpretability.attention.colored_text import colored_pages

        return colored_pages(results["details"]["lens"])


def text_metrics(model: Transformer, batches: Sequence[Batch]) -> dict[str, ByLayer]:
    """`head_metrics` of each row of the batches, by metric and layer."""
    parts: dict[str, dict[int, list[Tensor]]] = {}
    for batch in batches:
        inputs = batch.columns(-1) if batch.tokens.shape[1] > model.context or model.causal else batch
        first = first_tokens(inputs)

        def add(layer: int, rows: slice, heads: HeadWeights, inputs: Batch = inputs, first: Tensor = first) -> None:
            real = None if inputs.real is None else inputs.real[rows]
            for metric, values in head_metrics(heads, first[rows], real).items():
                parts.setdefault(metric, {}).setdefault(layer, []).append(values.double().cpu())

        read_attention(model, inputs, add)
    return {
        metric: {layer: torch.cat(values).numpy() for layer, values in layers.items()}
        for metric, layers in parts.items()
    }


def repeated_metrics(model: Transformer, tokens: Int[Tensor, "rows time"]) -> tuple[ByLayer, list[float]]:
    """Induction scores by layer, and the gain in loss of each row in nats per token, on repeated tokens.

    tokens  a first token, and then a sequence twice
    """
    period, scores = tokens.shape[1] // 2, dict[int, list[Tensor]]()

    def add(layer: int, rows: slice, heads: HeadWeights) -> None:
        scores.setdefault(layer, []).append(induction_scores(heads.weights[:, :, 1:, 1:], period).double().cpu())

    read_attention(model, Batch(tokens), add)
    with torch.no_grad():
        losses = -log_probs(model(Batch(tokens[:, :-1])).hidden, model.head, tokens[:, 1:]).double()
    gains = losses[:, :period].mean(1) - losses[:, period:].mean(1)
    return {layer: torch.cat(values).numpy() for layer, values in scores.items()}, gains.tolist()


def head_scores(metrics: Mapping[str, ByLayer]) -> Scores:
    """The score of every head, and the mean, largest and least of a metric over all heads."""
    scores: Scores = {}
    for metric, layers in metrics.items():
        by_head = {
            f"layer{layer}/head{head}": row_score(metric, values[:, head])
            for layer, values in layers.items()
            for head in range(values.shape[1])
            if not np.isnan(values[:, head]).all()
        }
        if not by_head:  # as for the token before the query in a window of one token
            continue
        scores |= {f"{metric}/{head}": score for head, score in by_head.items()}
        order = sorted(by_head.values(), key=lambda score: score.value)
        scores[f"{metric}/max"] = order[-1]
        if metric in MINIMA:
            scores[f"{metric}/min"] = order[0]
        if metric not in MAXIMA:
            scores[f"{metric}/mean"] = row_score(metric, np.concatenate(list(layers.values()), 1).mean(1))
    return scores


def row_score(metric: str, values: Float[np.ndarray, "rows"]) -> Score:
    """The mean over rows with its interval, or for a maximum the largest; rows without a value are left out."""
    values = values[~np.isnan(values)]
    return Score(float(values.max()), n=len(values)) if metric in MAXIMA else mean_score(values)


def head_matrices(metrics: Mapping[str, ByLayer]) -> Json:
    """The value of each head, a list by layer, for each metric."""
    return {
        metric: {
            str(layer): [row_score(metric, values[:, head]).value for head in range(values.shape[1])]
            for layer, values in layers.items()
        }
        for metric, layers in metrics.items()
        if not any(np.isnan(values).all(0).any() for values in layers.values())
    }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token within a text, where it may begin with a space; <id> for one that is no whole character."""
    before = tokenizer.encode("a")[-1:]
    text = tokenizer.decode([*before, token]).removeprefix(tokenizer.decode(before))
    return f"<{token}>" if not text or "\ufffd" in text else text
