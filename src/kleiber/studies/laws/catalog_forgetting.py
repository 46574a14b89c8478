"""The shipped laws of forgetting and transfer: one function, one docstring with its source each, as in `laws`.

Symbols: N parameters, D tokens of the new text, M pre-training tokens per parameter, p share of replayed tokens, P
tuned parameters, t steps, L loss in nats per token, L0 the upstream loss before, Lx the fine-tuning loss, F the rise of
the upstream loss (mapped to L where a law is one of F).
"""

from typing import Annotated

from kleiber.studies.laws.law import Array, Exponent, Part, Real, Scale, Shape, Signed, law

Worth = Annotated[Array, Shape(0.1, 1e4)]  # what one unit of the replayed share is worth


@law(aliases=("bethune",))
def forgetting(
    N: Array, D: Array, p: Array, L0: Array, *, E: Signed, A: Part, B: Worth, alpha: Exponent, beta: Exponent
):
    """Upstream loss after fine-tuning: L = L0 + E + A D^beta ((1 + B p) N)^-alpha.

    L0 upstream loss before, D unique target tokens, p share of replayed tokens; B is what one unit of p is worth in N.
    Source: Bethune et al. 2025, eq. 2, arXiv:2502.06042
    """
    return L0 + E + A * D**beta * ((1 + B * p) * N) ** -alpha


@law()
def transfer(N: Array, D: Array, *, E: Part, A: Part, alpha: Exponent, beta: Exponent):
    """Target loss after fine-tuning: L = E + A N^-alpha D^-beta, D unique target tokens.

    Source: Bethune et al. 2025, eq. 1, arXiv:2502.06042
    """
    return E + A * N**-alpha * D**-beta


@law(aliases=("kalajdzievski",), space="linear", loss_fn="squared")
def forgetting_power(P: Array, t: Array, *, c: Part, a: Real, b: Exponent, P0: Scale, t0: Scale):
    """Forgetting by tuned parameters and steps: F = c (P/P0)^a (1 + t/t0)^b - c.

    F in nats (mapped to L), P tuned parameters, t steps. c, P0 and a trade off: expect "not identified" on one P.
    Source: Kalajdzievski 2024, eq. 5, arXiv:2401.05605
    """
    return c * ((P / P0) ** a * (1 + t / t0) ** b - 1)


@law(space="linear", loss_fn="squared")
def forgetting_line(Lx: Array, *, s: Signed, c: Signed):
    """Forgetting against the fine-tuning loss Lx: F = s - c Lx.

    Source: Kalajdzievski 2024, eq. 4, arXiv:2401.05605
    """
    return s - c * Lx


@law(space="linear", loss_fn="squared")
def replay_curve(p: Array, *, F0: Part, c: Part, B: Worth):
    """Forgetting against the replayed share p: F = (F0 + c)/(1 + B p) - c.

    F may end below 0, since replay also goes on training the old domain: c is that gain at p -> infinity.
    Source: ours; Bethune et al. 2025 (arXiv:2502.06042, eq. 2) with alpha = 1 and an offset
    """
    return (F0 + c) / (1 + B * p) - c


@law(space="linear", loss_fn="squared")
def replay_grid(N: Array, D: Array, p: Array, *, A: Part, c: Part, B: Worth, alpha: Exponent, beta: Exponent):
    """Forgetting by size, new text and replayed share: F = (A D^beta N^-alpha + c)/(1 + B p) - c.

    `replay_curve` whose F at p = 0 is Bethune's power of D and N.
    Source: ours; Bethune et al. 2025 (arXiv:2502.06042, eq. 2) with alpha = 1 in p and an offset
    """
    return (A * D**beta * N**-alpha + c) / (1 + B * p) - c


@law(space="linear", loss_fn="squared")
def replay_grid_ratio(
    N: Array, D: Array, M: Array, p: Array, *, A: Part, c: Part, B: Worth, alpha: Exponent, beta: Exponent, gamma: Real
):
    """Forgetting by size, new text, pre-training and share: F = (A D^beta N^-alpha M^gamma + c)/(1 + B p) - c.

    gamma > 0: what was trained on more tokens per parameter forgets more (Springer et al. 2025, arXiv:2503.19206).
    Source: ours; `replay_grid` with a power of M
    """
    return (A * D**beta * N**-alpha * M**gamma + c) / (1 + B * p) - c
