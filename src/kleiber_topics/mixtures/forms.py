"""Forms of the law of data mixtures: linear, ridge on log weights, and exponential. Fits many targets at once.

A mixture is a point on the simplex, (domains,). Further inputs, log N and log D, stand behind the weights in the
columns of a design. Parameters of a form are the constant, then one for each column; targets are (fits, rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from kleiber.studies import Array

FORMS = {
    "ridge": ("L = c + sum_j b_j log(w_j + f), with a ridge penalty", "Liu et al. 2024 (RegMix), arXiv:2407.01492"),
    "exponential": ("L = c + exp(sum_j t_j w_j)", "Ye et al. 2024, arXiv:2403.16952"),
    "linear": ("L = c + sum_j b_j w_j", "Liu et al. 2024 (RegMix), arXiv:2407.01492"),
}
OFFSETS = tuple(float(f"{value:.2g}") for value in np.geomspace(1e-4, 0.5, 12))
PENALTIES = (1e-6, 0.1, 1.0, 10.0)
MARGINS = (0.02, 0.1, 0.3, 1.0, 3.0)  # starts of c below the least loss, in ranges of the losses
ROUNDS = 60
LARGEST = 50.0  # of an exponent


@dataclass(frozen=True)
class Form:
    """A form with what is chosen before its parameters: the floor of the logs and the ridge penalty.

    domains  number of the columns that are weights
    """

    name: str
    domains: int
    offset: float = 0.0
    penalty: float = 1e-9

    def columns(self, inputs: Array) -> Array:
        """Returns the columns of the design (..., columns) of weights and further inputs."""
        if self.name != "ridge":
            return inputs
        logs = np.log(inputs[..., : self.domains] + self.offset)
        return np.concatenate([logs, inputs[..., self.domains :]], axis=-1)

    def predict(self, params: Array, inputs: Array) -> Array:
        """Predicts the loss (..., rows) for parameters (..., params) at inputs (..., rows, columns)."""
        parts = (self.columns(inputs) * params[..., None, 1:]).sum(-1)
        return params[..., :1] + (np.exp(np.minimum(parts, LARGEST)) if self.name == "exponential" else parts)


def fit_form(name: str, inputs: Array, targets: Array, domains: int) -> tuple[Form, Array]:
    """Fits a form to targets (fits, rows); returns it with its parameters (fits, params).

    The floor of the logs and the penalty have the smallest leave-one-out error over all targets.
    """
    if name == "exponential":
        form = Form(name, domains)
        return form, refine(inputs, targets, _exponential_start(inputs, targets))
    if name == "linear":
        form = Form(name, domains)
    else:
        candidates = [Form(name, domains, offset, penalty) for offset, penalty in product(OFFSETS, PENALTIES)]
        form = min(candidates, key=lambda each: _left_out_error(each, inputs, targets))
    return form, solve(form, inputs, targets)


def refit(form: Form, inputs: Array, targets: Array, start: Array) -> Array:
    """Fits the parameters of a form to other targets (fits, rows), from parameters (fits, params)."""
    return refine(inputs, targets, start) if form.name == "exponential" else solve(form, inputs, targets)


def _decompose(form: Form, inputs: Array) -> tuple[Array, Array, Array, Array]:
    """Returns the means of the columns of the design, and U, the singular values and V of the centered design."""
    columns = form.columns(inputs)
    center = columns.mean(0)
    left, size, right = np.linalg.svd(columns - center, full_matrices=False)
    size = np.where(size > 1e-9 * size[0], size, 0.0)
    return center, left, size, right


def solve(form: Form, inputs: Array, targets: Array) -> Array:
    """Returns the least-squares parameters with the ridge penalty, (fits, params)."""
    center, left, size, right = _decompose(form, inputs)
    mean = targets.mean(1, keepdims=True)
    slopes = ((targets - mean) @ left * (size / (size**2 + form.penalty))) @ right
    return np.concatenate([mean - slopes @ center[:, None], slopes], axis=1)


def _left_out_error(form: Form, inputs: Array, targets: Array) -> float:
    """Returns the mean squared leave-one-out error."""
    _, left, size, _ = _decompose(form, inputs)
    leverage = (left**2 * (size**2 / (size**2 + form.penalty))).sum(1) + 1 / len(inputs)
    errors = (targets - form.predict(solve(form, inputs, targets), inputs)) / np.maximum(1 - leverage, 1e-3)
    return float(np.mean(errors**2))


def degrees(form: Form, inputs: Array) -> float:
    """Returns the effective number of parameters; the floor of the logs and the penalty count as two more."""
    if form.name == "exponential":
        return inputs.shape[1] + 1.0
    _, _, size, _ = _decompose(form, inputs)
    return float((size**2 / (size**2 + form.penalty)).sum()) + (3.0 if form.name == "ridge" else 1.0)


def _exponential_start(inputs: Array, targets: Array) -> Array:
    """Returns starting parameters (fits, params): a constant below the losses, then weighted least squares of logs."""
    best = np.full(len(targets), np.inf)
    start = np.zeros((len(targets), inputs.shape[1] + 1))
    least, span = targets.min(1), np.ptp(targets, axis=1)
    for margin in MARGINS:
        constant = least - margin * span - 1e-9
        gap = targets - constant[:, None]
        weighted = inputs[None] * gap[:, :, None]
        slopes = np.stack([
            np.linalg.lstsq(design, goal, rcond=None)[0]
            for design, goal in zip(weighted, gap * np.log(gap), strict=True)
        ])  # fmt: skip
        params = np.concatenate([constant[:, None], slopes], axis=1)
        error = ((Form("exponential", 0).predict(params, inputs) - targets) ** 2).sum(1)
        start[error < best], best = params[error < best], np.minimum(error, best)
    return start


def refine(inputs: Array, targets: Array, start: Array) -> Array:
    """Returns the least-squares parameters of the exponential form by Levenberg-Marquardt from `start`."""
    form, params = Form("exponential", 0), start.copy()
    residual = form.predict(params, inputs) - targets
    error, damping = (residual**2).sum(1), np.full(len(params), 1e-3)
    ones = np.ones((len(params), len(inputs), 1))
    for _ in range(ROUNDS):
        grown = residual + targets - params[:, :1]
        jacobian = np.concatenate([ones, grown[:, :, None] * inputs], axis=2)
        normal = jacobian.transpose(0, 2, 1) @ jacobian
        diagonal = np.arange(normal.shape[1])
        normal[:, diagonal, diagonal] *= 1 + damping[:, None]
        normal[:, diagonal, diagonal] += 1e-12
        slope = (jacobian * residual[:, :, None]).sum(1)
        trial = params - np.linalg.solve(normal, slope[:, :, None])[:, :, 0]
        moved = form.predict(trial, inputs) - targets
        after = (moved**2).sum(1)
        better = after < error
        gain = float(np.max(np.where(better, (error - after) / np.maximum(error, 1e-300), 0.0)))
        params[better], residual[better], error[better] = trial[better], moved[better], after[better]
        damping = np.where(better, damping / 5, np.minimum(damping * 6, 1e9))
        if gain < 1e-8 and (better | (damping > 1e3)).all():
            break
    return params


def best_mixtures(form: Form, params: Array) -> Array:
    """Returns the mixtures (draws, domains) with the least mean loss, for parameters (draws, losses, params)."""
    slopes = params[:, :, 1 : form.domains + 1]
    corners = np.eye(form.domains)
    if form.name == "exponential" and params.shape[1] > 1:
        return _descend_on_simplex(form, params)
    mean = slopes.mean(1)
    if form.name != "ridge":
        return corners[np.argmin(mean, axis=1)]
    inside = _fill(np.maximum(-mean, 0.0), form.offset)
    gain = (np.log(inside + form.offset) * mean).sum(1)
    corner = mean * (np.log(1 + form.offset) - np.log(form.offset)) + np.log(form.offset) * mean.sum(1, keepdims=True)
    none = mean.min(1) >= 0  # no domain helps: the loss is concave, and least at a corner
    return np.where(((corner.min(1) < gain) | none)[:, None], corners[np.argmin(corner, axis=1)], inside)


def _fill(benefit: Array, offset: float) -> Array:
    """Maximizes sum_j benefit_j log(w_j + offset) on the simplex for benefits >= 0, (draws, domains)."""
    ordered = -np.sort(-benefit, axis=1)
    count = np.arange(1, benefit.shape[1] + 1)
    level = np.maximum(np.cumsum(ordered, axis=1) / (1 + count * offset), 1e-300)
    active = np.maximum((ordered / level > offset).sum(1), 1)
    weights = np.maximum(benefit / level[np.arange(len(benefit)), active - 1, None] - offset, 0.0)
    return weights / np.maximum(weights.sum(1, keepdims=True), 1e-300)


def _descend_on_simplex(form: Form, params: Array, steps: int = 400) -> Array:
    """Minimizes the mean of several exponential losses, which is convex, by exponentiated gradients."""
    slopes = params[:, :, 1 : form.domains + 1]
    logs = np.zeros((len(params), form.domains))
    for step in range(steps):
        weights = np.exp(logs - logs.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        parts = np.exp(np.minimum(np.einsum("dlk,dk->dl", slopes, weights), LARGEST))
        gradient = np.einsum("dl,dlk->dk", parts, slopes)
        logs -= 2.0 / np.sqrt(1 + step / 10) * gradient / np.maximum(np.abs(gradient).max(1, keepdims=True), 1e-300)
    return weights
