"""The evaluation `patching`: how much of a prediction each layer, position and head restores.

The model runs on corrupted texts with some activations of the clean ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from kleiber.evals import (
    Change,
    Evaluation,
    Results,
    Subject,
    changed_input,
    changed_output,
    changed_stream,
    hooked,
    mean_score,
    num_layers,
    pass_tokens,
    proportion_score,
    ratio_score,
)
from kleiber.models import Block
from kleiber.records import activity
from kleiber.types import Count, DataPath, Json, Metric, Metrics, Model, Scores
from kleiber_topics.interpretability.attention.heads import attention_layers
from kleiber_topics.interpretability.patching.pairs import (
    PROMPTS,
    SENTENCES,
    PairBatch,
    PatchingPair,
    collate,
    read_pairs,
)

if TYPE_CHECKING:
    from altair import TopLevelMixin

Values = dict[str, Float[np.ndarray, "pairs"]]
Site = Callable[[Change], RemovableHandle]  # changes an activation (rows, time, channels) while active


def sites(model: Model, heads: bool) -> dict[str, Site]:
    """The activations of a model that can be patched, by name.

    stream/layer<L>     the residual stream: 0 before the first block, L after block L
    attention/layer<L>  what attention adds to it, and mlp/layer<L>; of kleiber's Transformer, its layers count from 0
    head/layer<L>       what its heads give to the output matrix of attention, one after another
    """
    named: dict[str, Site] = {
        f"stream/layer{layer}": partial(changed_stream, model, layer) for layer in range(num_layers(model))
    }
    for layer, block in enumerate(model.blocks):
        if isinstance(block, Block):
            named[f"attention/layer{layer}"] = partial(changed_output, block.attention)
            named[f"mlp/layer{layer}"] = partial(changed_output, block.mlp)
    if heads:
        for layer, attention in attention_layers(model).items():
            named[f"head/layer{layer}"] = partial(changed_input, attention.out)
    return named


def num_heads(model: Model) -> dict[int, int]:
    """Number of heads of each layer with attention."""
    return {layer: attention.num_heads for layer, attention in attention_layers(model).items()}


class Patcher:
    """The clean activations of some pairs, which are put into runs on their corrupted texts.

    clean, corrupted  values of the pairs without a patch
    """

    def __init__(self, model: Model, pairs: PairBatch, named: dict[str, Site]) -> None:
        self.model, self.pairs, self.sites = model, pairs, named
        self.activations: dict[str, Tensor] = {}
        with hooked([site(partial(self._keep, name)) for name, site in named.items()]):
            self.clean = pairs.values(model, pairs.clean)
        self.corrupted = pairs.values(model, pairs.corrupted)

    def _keep(self, name: str, activation: Tensor) -> Tensor:
        self.activations[name] = activation
        return activation

    def patched(
        self, name: str, places: Bool[Tensor, "rows time"], channels: slice = slice(None)
    ) -> Float[Tensor, "rows"]:
        """The values with the clean activation of a site at some places, in some channels."""
        clean = self.activations[name]

        def change(activation: Tensor) -> Tensor:
            mixed = activation.clone()
            mixed[..., channels] = torch.where(places[:, :, None], clean[..., channels], activation[..., channels])
            return mixed

        with self.sites[name](change):
            return self.pairs.values(self.model, self.pairs.corrupted)


class Patching(Evaluation):
    """Activation patching from clean to corrupted texts (Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022,
    arXiv:2202.05262, section 2.1; Wang et al. 2022, arXiv:2211.00593).

    The model reads the corrupted text with one activation of the clean one in it. The restored share is what this gives
    back of the difference between both: 0 is the corrupted text, 1 the clean one. It is a ratio of means over the pairs
    whose clean text makes the answer likelier, with a bootstrap interval over pairs.

    stream/layer<L>/offset<K>  the residual stream K tokens behind the first difference; layer 0 is the embedding
    stream/layer<L>/end        the stream at the positions that predict the answer, without the differing tokens
    attention/layer<L>, mlp/layer<L>, head/layer<L>/head<H>  what these add, at all positions; of kleiber's Transformer
    difference                 log-probability of the answer after the clean text less that after the corrupted one
    equal_length               share of the pairs of equal length that can be patched
    clean_is_likelier          share of those whose clean text makes the answer likelier: the ones that are patched

    With the columns sentence_good and sentence_bad, the answer is what both sentences have in common after their last
    difference. With clean, corrupted, answer and wrong_answer, it is the first token of the answer, and the quantity is
    the difference of its logit from that of the wrong one.

    pairs    most pairs of each table, of equal length
    offsets  tokens from the first difference on that are patched, one after another
    heads    whether heads are patched too
    prefix   text in front of each sentence, as for evals=pairs
    data     names or paths of tables; null: those of the command
    """

    columns = (SENTENCES, PROMPTS)
    causal = True
    metrics: ClassVar[Metrics] = {
        "stream/layer{layer}/end": Metric("share restored by the end of the stream in layer {layer}", "none"),
        "stream/layer{layer}/offset{offset}": Metric(
            "share restored by the stream in layer {layer}, {offset} tokens on,", "none"
        ),
        "head/layer{layer}/head{head}": Metric("share restored by head {head} in layer {layer}", "none"),
        "{part}/layer{layer}": Metric("share restored by the {part} of layer {layer}", "none"),
        "difference": Metric("log-probability after clean less that after corrupted text", "higher", "nats"),
        "equal_length": Metric("share of pairs of equal length", "none"),
        "clean_is_likelier": Metric("share of pairs whose clean text is likelier", "higher"),
    }

    def __init__(
        self,
        pairs: Count = 64,
        offsets: Count = 6,
        heads: bool = True,
        prefix: str = " ",
        data: Sequence[DataPath] | None = None,
    ) -> None:
        self.pairs, self.offsets, self.heads, self.prefix, self.data = pairs, offsets, heads, prefix, data

    def evaluate(self, subject: Subject) -> Results:
        """Patches the pairs of each table. Raises ValueError where no table has a pair of equal length."""
        scores: dict[str, Scores] = {}
        for data in subject.data:
            rows = data.rows(subject.limit)
            read = read_pairs(subject.tokenizer, rows, self.prefix, subject.model.context)
            usable = [pair for pair in read if pair is not None]
            scores[data.name] = {"equal_length": proportion_score([pair is not None for pair in read])}
            if usable:
                scores[data.name] |= restored(self.values(subject, usable[: self.pairs], data.name))
        if all(of_data["equal_length"].value == 0 for of_data in scores.values()):
            raise ValueError(
                "evals.patching needs pairs of equal length with a common ending, and no row of "
                f"{', '.join(scores)} is one in the tokens of {subject.tokenizer.name}"
            )
        return Results(scores)

    @torch.no_grad()
    def values(self, subject: Subject, pairs: Sequence[PatchingPair], name: str) -> Values:
        """The value of each pair in nats: clean, corrupted, and with each patch; NaN where a pair has no such place."""
        model = subject.model
        named = sites(model, self.heads)
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].clean))
        size = max(1, pass_tokens(model, subject.rows) // len(pairs[order[-1]].clean))
        parts: dict[str, list[Tensor]] = {}
        with activity(f"patching {name}", len(pairs), "pairs") as work:
            for start in range(0, len(pairs), size):
                chosen = [pairs[i] for i in order[start : start + size]]
                patcher = Patcher(model, collate(chosen, subject.device), named)
                for key, each in {"clean": patcher.clean, "corrupted": patcher.corrupted}.items():
                    parts.setdefault(key, []).append(each)
                for key, each in self.patches(model, patcher):
                    parts.setdefault(key, []).append(each)
                work.done += len(chosen)
        back = np.argsort(order)
        return {key: torch.cat(each).double().cpu().numpy()[back] for key, each in parts.items()}

    def patches(self, model: Model, patcher: Patcher) -> Iterator[tuple[str, Float[Tensor, "pairs"]]]:
        """The name and the values of each patch."""
        offsets, ends = patcher.pairs.offsets, patcher.pairs.ends
        everywhere = offsets >= 0
        heads = num_heads(model)
        for name, activation in patcher.activations.items():
            kind, layer = name.split("/layer")
            if kind == "stream":
                for offset in range(self.offsets):
                    yield (
                        f"{name}/offset{offset}",
                        with_place(patcher.patched(name, offsets == offset), offsets == offset),
                    )
                yield f"{name}/end", with_place(patcher.patched(name, ends), ends)
            elif kind == "head":
                width = activation.shape[2] // heads[int(layer)]
                for head in range(heads[int(layer)]):
                    channels = slice(head * width, (head + 1) * width)
                    yield f"{name}/head{head}", patcher.patched(name, everywhere, channels)
            else:
                yield name, patcher.patched(name, everywhere)

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        """Heat maps of the restored share over layers and positions, and over layers and heads."""
        from kleiber_topics.interpretability.patching.figures import figures

        return figures(results)


def with_place(values: Float[Tensor, "pairs"], places: Bool[Tensor, "pairs time"]) -> Float[Tensor, "pairs"]:
    """The values of the pairs that have such a place; NaN for the others."""
    return values.masked_fill(~places.any(1), torch.nan)


def restored(values: Values) -> Scores:
    """The restored share of each patch, over the pairs whose clean text is likelier; no patch without such a pair."""
    gaps = values["clean"] - values["corrupted"]
    kept = gaps > 0
    scores = {"difference": mean_score(gaps), "clean_is_likelier": proportion_score(kept)}
    for patch, patched in values.items():
        use = kept & ~np.isnan(patched)
        if patch not in ("clean", "corrupted") and use.any():
            scores[patch] = ratio_score(patched[use] - values["corrupted"][use], gaps[use])
    return scores
