"""How a mixture of experts routes, on held-out text: whether it is settled, what it specialises in, how sensitive its
gates are, whether its experts are redundant.

It measures one model and its run's own earlier checkpoints, and judges nothing. It refuses a model without experts.
"""

from __future__ import annotations

from kleiber.evals import Subject
from kleiber.evals.routing.analysis import coactivation, redundancy, sensitivity, settled, specialisation
from kleiber.evals.routing.trace import Record, mixtures, read
from kleiber.types import Json

FIGURES = "kleiber.evals.routing.figures"
TOKENS = 16_384  # of all domains together, unless told: the sensitivities read them some sixty times


def evaluate(subject: Subject) -> Json:
    """Layers by their number, experts by their index.

    load            share of each expert; margin: mean of s_(k) - s_(k+1)
    settled         per earlier checkpoint: share of choices that are the last one's (saturation), and churn between
                    neighbours
    coactivation    P(j | i): how often a token that goes to i goes to j as well
    specialisation  by domain, input token and next token (see `special`)
    sensitivity     of loss and choice to the router's weights (see `sensitivity`)
    redundancy      similarity of the experts' outputs, and the loss when each is removed
    """
    if not mixtures(subject.model):
        raise ValueError("--evals routing: this model has no experts; it is for runs of model=moe")
    tokens = subject.tokens or max(1, TOKENS // len(subject.domains))
    record = read(subject, subject.model, tokens)
    layers = list(record.experts)
    return {
        "tokens": record.num_tokens,
        "loss": record.loss,
        "layers": layers,
        "num_experts": record.num_experts,
        "load": {layer: record.load(layer).tolist() for layer in layers},
        "margin": {layer: record.margins[layer] for layer in layers},
        "settled": settled(subject, record, tokens),
        "coactivation": {layer: coactivation(record, layer) for layer in layers},
        "specialisation": specialisation(record),
        "sensitivity": sensitivity(subject, record, tokens),
        "redundancy": redundancy(subject, record, tokens),
    }


__all__ = ["FIGURES", "Record", "evaluate"]
