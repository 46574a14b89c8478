"""Exchange: from a design that elimination has left to a better one at no more cost, one point in for one point out.

Elimination never takes a point back, so it can end at dear points that the rules then hold, above the budget or below
it. Here every candidate is tried in the place of every point, and beside them, and the best is taken until none helps.
It keeps the rules; a local optimum, and the same every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kleiber.studies.elimination import Mask, Rules
from kleiber.studies.information import Noise, Points, gradient, target
from kleiber.studies.law import Array

WORTH = 1e-3  # of log variance, that an exchange within the budget must gain
CHEAPER = 0.99  # of the cost, that one above the budget must come to


def exchange(
    points: Points, laws: Sequence[Mapping[str, float]], flops: float, noise: Noise, decay: float, rules: Rules,
    alive: Mask, fixed: Mask, budget: float,
) -> tuple[Mask, float]:  # fmt: skip
    """`alive` after the exchanges, and the mean over the laws of the log variance of the prediction at `flops`.

    While what is not in `fixed` costs more than `budget` FLOPs, the exchange that loses least per FLOP saved is taken;
    after that the one that gains most. The variance is infinite where the budget cannot be met so.
    """
    covariance = noise.covariance(points)
    bases = np.stack([gradient(law, points.N, points.D) for law in laws])
    scale = np.linalg.norm(bases, axis=1, keepdims=True)
    bases, wanted = bases / scale, np.stack([target(law, flops) for law in laws]) / scale[:, 0]
    alive = alive.copy()
    for _ in range(2 * len(points)):
        spent, (now, _) = points.keep(alive & ~fixed).cost(decay), _variances(covariance, bases, wanted, alive)
        best, chosen = (-WORTH if spent <= budget else np.inf), None
        for out in (None, *np.flatnonzero(alive & ~fixed)):
            left = alive & (np.arange(len(alive)) != out)
            price, cost = _variances(covariance, bases, wanted, left)[1] - now, _costs(points, left & ~fixed, decay)
            may = ~alive & _kept(points, left, rules) & (cost <= max(CHEAPER * spent, budget))
            if spent > budget:
                price = price / np.maximum(spent - cost, 1.0)
            price = np.where(may, price, np.inf)
            if price.min() < best:
                best, chosen = float(price.min()), (out, int(price.argmin()))
        if chosen is None:
            break
        alive[chosen[1]] = True
        if chosen[0] is not None:
            alive[chosen[0]] = False
    met = points.keep(alive & ~fixed).cost(decay) <= budget
    return alive, _variances(covariance, bases, wanted, alive)[0] if met else float("inf")


def _variances(covariance: Array, bases: Array, wanted: Array, left: Mask) -> tuple[float, Array]:
    """Mean log variance with the points that are `left`, and with each of all points beside them, in closed form."""
    precision = np.linalg.inv(covariance[np.ix_(left, left)])
    carried = covariance[:, left] @ precision
    own = np.maximum(covariance.diagonal() - np.einsum("jk,jk->j", carried, covariance[:, left]), 1e-12)
    news = bases - carried @ bases[:, left]  # what a point tells that the others do not, (laws, points, parameters)
    inverse = np.linalg.pinv(bases[:, left].transpose(0, 2, 1) @ precision @ bases[:, left], hermitian=True)
    toward = np.einsum("lp,lpq->lq", wanted, inverse)
    variance = np.einsum("lq,lq->l", toward, wanted)[:, None]
    spread = own + np.einsum("ljp,lpq,ljq->lj", news, inverse, news, optimize=True)
    after = variance - np.einsum("lq,ljq->lj", toward, news) ** 2 / spread
    return float(np.log(variance).mean()), np.log(np.maximum(after, 1e-300)).mean(0)


def _costs(points: Points, paid: Mask, decay: float) -> Array:
    """FLOPs of the points `paid` for with each of all points beside them."""
    longest = np.zeros(points.trunk.max() + 1)
    np.maximum.at(longest, points.trunk[paid], points.D[paid])
    tokens = decay * points.D + (1 - decay) * np.maximum(points.D - longest[points.trunk], 0.0)
    return points.keep(paid).cost(decay) + tokens * points.flops_per_token


def _kept(points: Points, left: Mask, rules: Rules) -> Mask:
    """Points that keep the rules when they are added to those that are `left`."""
    sizes = np.unique(points.N[left])
    cells = np.unique(np.column_stack([points.N, points.D]), axis=0, return_inverse=True)[1].reshape(-1)
    twins = np.bincount(cells[left], minlength=cells.max() + 1)
    kept = len(sizes) + ~np.isin(points.N, sizes) >= rules.sizes
    kept &= (twins >= 2).sum() + (twins[cells] == 1) >= rules.replicates
    return kept & bool(left.sum() + 1 >= rules.points)
