"""How a mixture of experts routes held-out text: balance, saturation, specialization, sensitivity and redundancy.

Reads one model and the earlier checkpoints of its run, and draws no conclusions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kleiber.evals.evaluation import Evaluation, Results, Score, Subject, flatten_numbers
from kleiber.evals.routing.analysis import coactivation, redundancy, saturation, sensitivity, specialization
from kleiber.evals.routing.trace import moe_layers, record_routing
from kleiber.types import Json
from kleiber.types.access import DataPath
from kleiber.types.model import Model
from kleiber.types.score import Metric, Metrics, variants

if TYPE_CHECKING:
    from altair import TopLevelMixin

TOKENS = 16_384  # of all data sets together, by default: the sensitivities read them some sixty times
ALL = "all"  # name of the data sets together, in the names of the scores
SENSITIVITY = {  # to each change of the router's weights
    "flips": Metric("share of tokens with other experts", "lower"),
    "flips_by_layer/{layer}": Metric("share of tokens with other experts in layer {layer}", "lower"),
    "free": Metric("rise of the loss", "lower", "nats per token"),
    "frozen": Metric("rise of the loss with the same experts", "lower", "nats per token"),
    "gating": Metric("rise of the loss by other experts", "lower", "nats per token"),
}


class Routing(Evaluation):
    """Measures of the routing, over all data sets together.

    data  names or paths of data sets; null: those of the command or of the run
    """

    metrics: ClassVar[Metrics] = {
        "loss": Metric("loss", "lower", "nats per token"),
        "margin/{layer}": Metric("margin of the router's scores in layer {layer}", "none"),
        "specialization/domain/{layer}": Metric("specialization by data set in layer {layer}", "none"),
        "specialization/token/{layer}": Metric("specialization by token in layer {layer}", "none"),
        "specialization/next_token/{layer}": Metric("specialization by next token in layer {layer}", "none"),
        "redundancy/alike/{layer}": Metric("similarity of the experts in layer {layer}", "none"),
        **variants(SENSITIVITY, "sensitivity/noise/{size}/*", "* under noise of {size}"),
        **variants(SENSITIVITY, "sensitivity/rounding/{kind}/*", "* under rounding to {kind}"),
    }
    data_labels: ClassVar[Mapping[str, str]] = {ALL: "all data sets"}

    def __init__(self, data: Sequence[DataPath] | None = None) -> None:
        self.data = data

    def check(self, model: Model) -> None:
        """Raises ValueError for a model without experts."""
        if not moe_layers(model):
            raise ValueError("--evals routing needs a mixture of experts (model=moe); this model has no experts")

    def evaluate(self, subject: Subject) -> Results:
        """The measures by layer number, as details; experts are lists in the order of their indices.

        load            share of the assignments that each expert gets
        margin          mean of s_(k) - s_(k+1), the scores of the k-th expert and of the next one
        settled         comparison with earlier checkpoints (see `saturation`)
        coactivation    entry (i, j): share of the tokens sent to expert i that are also sent to expert j
        specialization  of experts by data set, input token and next token (see `specialization`)
        sensitivity     of the loss and of the chosen experts to noise in the router's weights (see `sensitivity`)
        redundancy      similarity of the experts, and the loss without each (see `redundancy`)

        The scores are all single numbers among them, by their path, and `loss` in nats per target.
        """
        tokens = subject.tokens or max(1, TOKENS // len(subject.domains))
        record = record_routing(subject, subject.model, tokens)
        layers = list(record.experts)
        details = {
            "tokens": record.num_tokens,
            "loss": record.loss,
            "layers": layers,
            "num_experts": record.num_experts,
            "load": {layer: record.load(layer).tolist() for layer in layers},
            "margin": {layer: record.margins[layer] for layer in layers},
            "settled": saturation(subject, record, tokens),
            "coactivation": {layer: coactivation(record, layer) for layer in layers},
            "specialization": specialization(record),
            "sensitivity": sensitivity(subject, record, tokens),
            "redundancy": redundancy(subject, record, tokens),
        }
        settings = ("tokens", "layers", "num_experts")
        measures = {name: value for name, value in details.items() if name not in settings}
        scores = {path: Score(value, n=record.num_tokens) for path, value in flatten_numbers(measures).items()}
        return Results({ALL: scores}, details)

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        """The figures of `kleiber.evals.routing.figures`."""
        from kleiber.evals.routing.figures import figures

        return figures(results["details"], folder)
