"""The shipped laws: one function each, whose docstring gives its formula and source.

N parameters, D training tokens, C training FLOPs, M = D/N, U unique tokens, X experts, G granularity, S sparsity,
batch tokens of a step, L loss in nats per token, Lx another loss. In laws of forgetting: D unique tokens of the new
text, M pre-training tokens per parameter, p replayed fraction, P tuned parameters, t steps, L0 loss on the pre-training
text before fine-tuning, F its increase (mapped to L). To add a law, add a function (see `laws.law`) and a test that
recovers its parameters.
"""

import difflib
from typing import Annotated

import numpy as np

from kleiber.studies.laws.hyperparameters import NAME, of_axes
from kleiber.studies.laws.law import LAWS, Array, Exponent, Law, Part, Real, Scale, Shape, Signed, from_extension, law

Slow = Annotated[Array, Shape(0.02, 1.0)]
Eta = Annotated[Array, Shape(0.02, 0.6)]
Positive = Annotated[Array, Shape(1e-3, 1e30)]  # not linear here: N_opt(U) contains A and B
Few = Annotated[Array, Shape(1.05, 30.0)]
Many = Annotated[Array, Shape(40.0, 5000.0)]
Offset = Annotated[Array, Shape(0.01, 10.0)]
Steepness = Annotated[Array, Shape(0.2, 5.0)]
Worth = Annotated[Array, Shape(0.1, 1e4)]  # of the replayed fraction p, in 1 + B p

ALLOCATION = {
    "a_opt": lambda p: p["beta"] / (p["alpha"] + p["beta"]),
    "b_opt": lambda p: 1 - p["beta"] / (p["alpha"] + p["beta"]),
}
TOKENS_PER_PARAMETER = {"M_opt": lambda p: (p["b"] / p["a"]) ** (0.5 / p["eta"])}
CUTOFF = {"N_cutoff": lambda p: 10 ** (-p["b"] / p["c"])}


@law(aliases=("hoffmann",), derived=ALLOCATION)
def chinchilla(N: Array, D: Array, *, E: Part, A: Part, B: Part, alpha: Exponent, beta: Exponent) -> Array:
    """Chinchilla, approach 3: L = E + A N^-alpha + B D^-beta.

    Fitted to log L with a Huber loss of delta 1e-3, as in the paper. N_opt ~ C^a_opt, a_opt = beta / (alpha + beta).
    Source: Hoffmann et al. 2022, eq. 2, arXiv:2203.15556
    """
    return E + A * N**-alpha + B * D**-beta


@law(aliases=("tied",), derived={"a_opt": lambda p: 0.5 + 0 * p["alpha"]})
def chinchilla_tied(N: Array, D: Array, *, E: Part, A: Part, B: Part, alpha: Exponent) -> Array:
    """Chinchilla with one exponent: L = E + A N^-alpha + B D^-alpha.

    Use it if there are few points; it then predicts as well as `chinchilla`. The allocation exponent is fixed at 1/2.
    Source: Hoffmann et al. 2022, eq. 2 with alpha = beta, arXiv:2203.15556
    """
    return E + A * N**-alpha + B * D**-alpha


@law(derived=ALLOCATION)
def no_floor(N: Array, D: Array, *, A: Part, B: Part, alpha: Exponent, beta: Exponent) -> Array:
    """Two power laws without an irreducible loss: L = A N^-alpha + B D^-beta.

    Source: Hoffmann et al. 2022, eq. 2 with E = 0, arXiv:2203.15556
    """
    return A * N**-alpha + B * D**-beta


@law(start="chinchilla")
def interaction(N: Array, D: Array, *, E: Part, A: Part, B: Part, F: Signed, alpha: Exponent, beta: Exponent) -> Array:
    """Chinchilla with a product term: L = E + A N^-alpha + B D^-beta + F N^-alpha D^-beta.

    Tests additivity: if F differs from 0, the effects of model size and data are not additive.
    Source: ours; extends Hoffmann et al. 2022, eq. 2, arXiv:2203.15556
    """
    small, scarce = N**-alpha, D**-beta
    return E + A * small + B * scarce + F * small * scarce


@law(derived={"a_opt": lambda p: p["aD"] / (p["aN"] + p["aD"])})
def kaplan(N: Array, D: Array, *, Nc: Scale, Dc: Scale, aN: Slow, aD: Slow) -> Array:
    """Joint law of size and data: L = [(Nc/N)^(aN/aD) + Dc/D]^aD.

    a_opt balances the two terms at fixed C = 6 N D; the paper's exponent of .73 counts compute differently.
    Source: Kaplan et al. 2020, eq. 1.5, arXiv:2001.08361
    """
    return ((Nc / N) ** (aN / aD) + Dc / D) ** aD


@law(loss_fn="squared")
def power(C: Array, *, k: Part, a: Real) -> Array:
    """Power law, fitted by least squares in logs: L = k C^a.

    The target may be any positive quantity. With L=N_opt it is the allocation law, and a is the allocation exponent.
    Source: Kaplan et al. 2020, eq. 1.3 (there L(C) = (Cc/C)^aC), arXiv:2001.08361
    """
    return k * C**a


@law()
def power_floor(C: Array, *, E: Part, k: Part, a: Exponent) -> Array:
    """Power law with an irreducible loss, in any variable mapped to C: L = E + k C^-a.

    Source: Henighan et al. 2020, eq. 1.1, arXiv:2010.14701
    """
    return E + k * C**-a


@law(aliases=("gadre",), space="linear", loss_fn="squared", derived=TOKENS_PER_PARAMETER)
def overtraining(M: Array, C: Array, *, E: Part, a: Part, b: Part, eta: Eta) -> Array:
    """Over-training by M = D / N, tokens per parameter: L = E + (a M^eta + b M^-eta) C^-eta.

    Chinchilla with alpha = beta = 2 eta at C = 6 N D; at fixed C the loss is least at M_opt = (b/a)^(1/(2 eta)).
    Source: Gadre et al. 2024, arXiv:2403.08540
    """
    return E + (a * M**eta + b * M**-eta) * C**-eta


@law(start="chinchilla", aliases=("muennighoff",))
def data_constrained(
    N: Array, D: Array, U: Array, *, E: Part, A: Positive, B: Positive, alpha: Exponent, beta: Exponent,
    RN: Annotated[Array, Shape(0.3, 1000.0)], RD: Annotated[Array, Shape(0.3, 1000.0)],
) -> Array:  # fmt: skip
    """Repeated data: L = E + A N'^-alpha + B D'^-beta with D' = U + U RD (1 - e^(-R/RD)), R = max(D/U - 1, 0).

    N' = U_N + U_N RN (1 - e^(-R_N/RN)), U_N = min(N, N_opt(U)), R_N = N/U_N - 1; U counts unique tokens. After RN or RD
    repetitions, another one is worth 1/e of the first. All seven are fitted together (the paper fixes five of them).
    Source: Muennighoff et al. 2023, arXiv:2305.16264
    """
    unique = np.minimum(D, U)
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    enough = np.minimum(N, G * (unique * G) ** (beta / alpha))
    tokens = unique * (1 + RD * -np.expm1(-(D / unique - 1) / RD))
    size = enough * (1 + RN * -np.expm1(-(N / enough - 1) / RN))
    return E + A * size**-alpha + B * tokens**-beta


def saturated(X: Array, start: Array, end: Array) -> Array:
    """Effective number of experts: 1/Xhat = 1/(X - 1 + 1/(1/start - 1/end)) + 1/end, from start (X = 1) to end."""
    return 1 / (1 / (X - 1 + 1 / (1 / start - 1 / end)) + 1 / end)


@law(aliases=("clark",), returns="log10", space="log10", loss_fn="squared", derived=CUTOFF)
def routed(N: Array, X: Array, *, a: Signed, b: Signed, c: Signed, d: Signed, E_start: Few, E_max: Many) -> Array:
    """Routed models: log10 L = a n + b h + c n h + d, n = log10 N, h = log10 Xhat (`saturated`).

    N is the parameters of the dense model, X the number of experts (1 if dense); routing does not help above N_cutoff =
    10^(-b/c). Above the fitted sizes the predicted loss is too low; check the backtests.
    Source: Clark et al. 2022, arXiv:2202.01169
    """
    n, h = np.log10(N), np.log10(saturated(X, E_start, E_max))
    return a * n + b * h + c * n * h + d


@law(aliases=("krajewski",))
def granularity(
    N: Array, D: Array, G: Array, *, c: Part, g: Part, a: Part, b: Part,
    alpha: Exponent, beta: Exponent, gamma: Exponent,
) -> Array:  # fmt: skip
    """Fine-grained experts: L = c + (g G^-gamma + a) N^-alpha + b D^-beta.

    G = d_ff / d_expert; N is the active non-embedding parameters without the router; the number of experts is constant.
    Source: Krajewski et al. 2024, arXiv:2402.07871
    """
    return c + (g * G**-gamma + a) * N**-alpha + b * D**-beta


@law(start="chinchilla", aliases=("ludziejewski",))
def joint_moe(
    N: Array, D: Array, X: Array, *, E: Part, A: Part, B: Part, alpha: Exponent, beta: Exponent,
    delta: Real, gamma: Real, omega: Real, zeta: Real,
) -> Array:  # fmt: skip
    """Dense and MoE models together: L = E + A X^delta N^(-alpha + gamma ln X) + B X^omega D^(-beta + zeta ln X).

    N active parameters, X experts; Chinchilla at X = 1. The paper writes exponents with the opposite sign and saturates
    X (`saturated`); runs with X below 64 do not determine that, so it is omitted.
    Source: Ludziejewski et al. 2025, arXiv:2502.05172
    """
    h = np.log(X)
    return E + A * X**delta * N ** (-alpha + gamma * h) + B * X**omega * D ** (-beta + zeta * h)


@law(aliases=("abnar",))
def sparsity(
    N: Array, D: Array, S: Array, *, e: Part, a: Part, b: Part, c: Part, d: Part,
    alpha: Exponent, beta: Exponent, lam: Real, delta: Real, gamma: Exponent,
) -> Array:  # fmt: skip
    """Sparsity: L = e + a N^-alpha + b D^-beta + c (1-S)^-lam + d (1-S)^-delta N^-gamma.

    N total parameters, D tokens, S = 1 - (active experts / experts). The paper's exponents are the negatives of these.
    Source: Abnar et al. 2025, arXiv:2501.12370
    """
    dense = 1 - S
    return e + a * N**-alpha + b * D**-beta + c * dense**-lam + d * dense**-delta * N**-gamma


@law(space="linear", loss_fn="squared")
def task_metric(Lx: Array, *, e: Part, k: Part, gamma: Annotated[Array, Shape(0.1, 10.0)]) -> Array:
    """Error on a task vs loss Lx, where random guessing has the error e: error = e - k exp(-gamma Lx).

    Source: Gadre et al. 2024, arXiv:2403.08540
    """
    return e - k * np.exp(-gamma * Lx)


@law(aliases=("brandfonbrener",), space="linear", loss_fn="squared")
def loss_to_loss(Lx: Array, *, E: Part, k: Part, Ex: Offset, kappa: Steepness) -> Array:
    """One loss vs another: L = E + k (Lx - Ex)^kappa.

    Lx - Ex is clipped at 1e-9, since the law is defined for Lx > Ex only.
    Source: Brandfonbrener et al. 2024, arXiv:2411.12925
    """
    return E + k * np.maximum(Lx - Ex, 1e-9) ** kappa


@law(aliases=("bethune",))
def forgetting(
    N: Array, D: Array, p: Array, L0: Array, *, E: Signed, A: Part, B: Worth, alpha: Exponent, beta: Exponent
) -> Array:
    """Loss on the pre-training text after fine-tuning: L = L0 + E + A D^beta ((1 + B p) N)^-alpha.

    Replaying a fraction p acts like a model that is larger by a factor 1 + B p.
    Source: Bethune et al. 2025, eq. 2, arXiv:2502.06042
    """
    return L0 + E + A * D**beta * ((1 + B * p) * N) ** -alpha


@law()
def transfer(N: Array, D: Array, *, E: Part, A: Part, alpha: Exponent, beta: Exponent) -> Array:
    """Loss on a new text after fine-tuning on its D unique tokens: L = E + A N^-alpha D^-beta.

    Source: Bethune et al. 2025, eq. 1, arXiv:2502.06042
    """
    return E + A * N**-alpha * D**-beta


@law(aliases=("kalajdzievski",), space="linear", loss_fn="squared")
def forgetting_power(P: Array, t: Array, *, c: Part, a: Real, b: Exponent, P0: Scale, t0: Scale) -> Array:
    """Forgetting vs tuned parameters and steps: F = c (P/P0)^a (1 + t/t0)^b - c.

    F in nats (mapped to L), P tuned parameters, t steps. Rows with a single P do not identify c, P0 and a.
    Source: Kalajdzievski 2024, eq. 5, arXiv:2401.05605
    """
    return c * ((P / P0) ** a * (1 + t / t0) ** b - 1)


@law(space="linear", loss_fn="squared")
def forgetting_line(Lx: Array, *, s: Signed, c: Signed) -> Array:
    """Forgetting vs the fine-tuning loss Lx: F = s - c Lx.

    Source: Kalajdzievski 2024, eq. 4, arXiv:2401.05605
    """
    return s - c * Lx


@law(space="linear", loss_fn="squared")
def replay_curve(p: Array, *, F0: Part, c: Part, B: Worth) -> Array:
    """Forgetting vs the replayed fraction p: F = (F0 + c)/(1 + B p) - c.

    F may be negative, since replay also continues the training on the old text: F -> -c for p -> infinity.
    Source: ours; Bethune et al. 2025 (arXiv:2502.06042, eq. 2) with alpha = 1 and an offset
    """
    return (F0 + c) / (1 + B * p) - c


@law(space="linear", loss_fn="squared")
def replay_grid(N: Array, D: Array, p: Array, *, A: Part, c: Part, B: Worth, alpha: Exponent, beta: Exponent) -> Array:
    """Forgetting vs model size, new tokens and replayed fraction: F = (A D^beta N^-alpha + c)/(1 + B p) - c.

    This is `replay_curve` with F0 = A D^beta N^-alpha.
    Source: ours; Bethune et al. 2025 (arXiv:2502.06042, eq. 2) with alpha = 1 in p and an offset
    """
    return (A * D**beta * N**-alpha + c) / (1 + B * p) - c


@law(space="linear", loss_fn="squared")
def replay_grid_ratio(
    N: Array, D: Array, M: Array, p: Array, *, A: Part, c: Part, B: Worth, alpha: Exponent, beta: Exponent, gamma: Real
) -> Array:
    """Forgetting vs size, new tokens, pre-training and replay: F = (A D^beta N^-alpha M^gamma + c)/(1 + B p) - c.

    With gamma > 0, models trained on more tokens per parameter forget more (Springer et al. 2025, arXiv:2503.19206).
    Source: ours; `replay_grid` with a power of M
    """
    return (A * D**beta * N**-alpha * M**gamma + c) / (1 + B * p) - c


def find(name: str) -> Law:
    """Returns the shipped law of this name or alias, or the function of an extension; raises ValueError for others."""
    if "." in name:
        return from_extension(name)
    wanted = name.replace("-", "_").lower()
    if wanted == NAME:
        return of_axes(("lr", "batch"))
    names = {alias: shipped for shipped in LAWS.values() for alias in (shipped.name, *shipped.aliases)}
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, [*names, NAME], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "only --law of `kleiber fit` and `predict` runs FILE.py:FUNCTION"
    raise ValueError(f"law {name!r} must be one of {', '.join(sorted([*LAWS, NAME]))}; {hint}")
