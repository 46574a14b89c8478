"""How a mixture of experts routes held-out text: balance, saturation, specialization, sensitivity and redundancy.

Reads one model and the earlier checkpoints of its run, and draws no conclusions. Refuses models without experts.
"""

from __future__ import annotations

from kleiber.evals import Subject
from kleiber.evals.routing.analysis import coactivation, redundancy, saturation, sensitivity, specialization
from kleiber.evals.routing.trace import RoutingRecord, moe_layers, record_routing
from kleiber.types import Json

FIGURES = "kleiber.evals.routing.figures"
TOKENS = 16_384  # of all domains together, by default: the sensitivities read them some sixty times


def evaluate(subject: Subject) -> Json:
    """Measures of the routing, by layer number; experts are lists in the order of their indices.

    load            share of the assignments that each expert gets
    margin          mean of s_(k) - s_(k+1), the scores of the k-th expert and of the next one
    settled         comparison with earlier checkpoints (see `saturation`)
    coactivation    entry (i, j): share of the tokens sent to expert i that are also sent to expert j
    specialisation  of experts by domain, input token and next token (see `specialization`)
    sensitivity     of the loss and of the chosen experts to noise in the router's weights (see `sensitivity`)
    redundancy      similarity of the experts, and the loss without each (see `redundancy`)

    Raises ValueError for a model without experts.
    """
    if not moe_layers(subject.model):
        raise ValueError("--evals routing needs a mixture of experts (model=moe); this model has no experts")
    tokens = subject.tokens or max(1, TOKENS // len(subject.domains))
    record = record_routing(subject, subject.model, tokens)
    layers = list(record.experts)
    return {
        "tokens": record.num_tokens,
        "loss": record.loss,
        "layers": layers,
        "num_experts": record.num_experts,
        "load": {layer: record.load(layer).tolist() for layer in layers},
        "margin": {layer: record.margins[layer] for layer in layers},
        "settled": saturation(subject, record, tokens),
        "coactivation": {layer: coactivation(record, layer) for layer in layers},
        "specialisation": specialization(record),
        "sensitivity": sensitivity(subject, record, tokens),
        "redundancy": redundancy(subject, record, tokens),
    }


__all__ = ["FIGURES", "RoutingRecord", "evaluate"]
