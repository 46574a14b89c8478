"""The law of data mixtures: the loss as a function of the weights of the domains that a model is trained on.

Three forms (`forms`): ridge on log weights, exponential, and linear as the baseline. Unless the user names one,
the form with the smallest error in ten-fold cross-validation is recorded. Several losses are averaged: their mean is
what the best mixture minimizes. Refits are fits to the law plus resampled residuals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from kleiber.records import Run
from kleiber.studies import (
    Array,
    Rows,
    Settings,
    TableLaw,
    Verdict,
    check_range,
    numbers,
    parameter_lines,
    required,
    row_of,
)
from kleiber.types import Json, Row
from kleiber_topics.mixtures.forms import FORMS, degrees, fit_form, refit
from kleiber_topics.mixtures.prediction import (
    MixtureRecord,
    design,
    predict_point,
    predict_rows,
    prediction_lines,
    read_weights,
)

SPARE = 3  # rows above the number of domains that a fit needs
FOLDS = 10
CORNER = 0.99  # weight of a mixture of practically one domain
MOST_DRAWS = 400  # recorded; the record of 17 domains has then 150 kB


def domains_of(frame: pd.DataFrame, roles: Mapping[str, str]) -> dict[str, str]:
    """Returns the columns of the weights by domain. Raises ValueError for fewer than two."""
    if "w" not in roles:
        raise ValueError("law 'mixture' needs the columns of the weights: add --map 'w=w_*,loss=COL'")
    before, star, after = roles["w"].partition("*")
    columns = [str(name) for name in frame.columns if fnmatchcase(str(name), roles["w"])]
    if not star or len(columns) < 2:
        raise ValueError(
            f"--map w={roles['w']} must be a pattern such as w_* that matches the columns of at least two domains; it "
            f"matches {', '.join(columns) or 'none'}"
        )
    return {name[len(before) : len(name) - len(after)]: name for name in columns}


def losses_of(frame: pd.DataFrame, roles: Mapping[str, str]) -> list[str]:
    """Returns the columns of the losses, of which there may be several. Raises ValueError for none."""
    pattern = roles.get("loss", "loss")
    if "*" in pattern:
        columns = [str(name) for name in frame.columns if fnmatchcase(str(name), pattern)]
        if not columns:
            raise ValueError(f"--map loss={pattern} matches no column")
        return columns
    return [required(frame, roles, "loss")]


def fit(frame: pd.DataFrame, roles: Mapping[str, str], settings: Settings) -> tuple[Json, list[Verdict]]:
    """Fits the law to a table; returns its record and verdicts. Raises ValueError for unusable rows."""
    if settings.form not in (None, *FORMS):
        raise ValueError(f"--form {settings.form!r} of law 'mixture' must be one of {', '.join(FORMS)}")
    domains, losses = domains_of(frame, roles), losses_of(frame, roles)
    weights = read_weights(frame, domains.values())
    extra = [role for role in ("N", "D") if role in roles]
    inputs = design(frame, roles, weights, extra)
    targets = np.stack([numbers(frame, name) for name in losses])
    for name, column in zip(losses, targets, strict=True):
        check_range(frame, name, column, "a loss must be > 0", column > 0)
    _check_fittable(frame, list(domains.values()), weights, inputs)
    errors = {name: cross_validate(name, inputs, targets, len(domains)) for name in FORMS}
    name = settings.form or min(errors, key=errors.__getitem__)
    form, params = fit_form(name, inputs, targets, len(domains))
    residuals = targets - form.predict(params, inputs)
    count, spare = settings.bootstrap, len(frame) - degrees(form, inputs)
    residuals *= len(frame) / max(spare, 1.0)  # those of rows left out, on average over the rows
    rng = np.random.default_rng(settings.seed)
    scale = np.sqrt(max(spare, 1.0) / rng.chisquare(max(spare, 1.0), size=count))
    drawn = rng.integers(len(frame), size=(count, len(frame)))
    draws = np.stack([
        refit(form, inputs, fitted + row[drawn] * scale[:, None], np.repeat(start[None], count, 0))
        for fitted, row, start in zip(form.predict(params, inputs), residuals, params, strict=True)
    ], axis=1)[:MOST_DRAWS] if count else np.zeros((0, *params.shape))  # fmt: skip
    record: Json = {
        "schema": "kleiber.mixture/1", "law": "mixture", "form": name,
        "chosen_by": "user" if settings.form else "cross-validation", "formula": FORMS[name][0],
        "source": FORMS[name][1], "n": len(frame), "level": settings.level, "columns": domains, "losses": losses,
        "inputs": {role: float(numbers(frame, roles[role]).max()) for role in extra}, "offset": form.offset,
        "penalty": form.penalty, "cross_validation": errors, "params": params.tolist(), "draws": draws.tolist(),
        "residuals": residuals.mean(0).tolist(), "noise": scale[:MOST_DRAWS].tolist(),
        "range": dict(zip(domains, np.stack([weights.min(0), weights.max(0)], axis=1).tolist(), strict=True)),
        "proportional": dict(zip(domains, weights.mean(0).tolist(), strict=True)),
    }  # fmt: skip
    record["best"] = predict_point(record, {})
    best = np.array([[entry["value"] for entry in record["best"]["best"]["weights"].values()]])
    logs = np.log(np.array([list(record["inputs"].values())])).reshape(1, -1)
    record["other_forms"] = {}
    for other in (other for other in FORMS if other != name):
        fitted, values = fit_form(other, inputs, targets, len(domains))
        loss = fitted.predict(values, np.concatenate([best, logs], axis=1)).mean()
        record["other_forms"][other] = float(loss)
    return record, judge(record)


def _check_fittable(frame: pd.DataFrame, columns: list[str], weights: Array, inputs: Array) -> None:
    """Raises ValueError for too few rows, and for mixtures that do not vary in all directions of the simplex."""
    needed = inputs.shape[1] + SPARE
    if len(frame) < needed:
        raise ValueError(
            f"the table has {len(frame)} rows, up to {row_of(frame, len(frame) - 1)}, and columns {columns[0]!r} to "
            f"{columns[-1]!r}: {len(columns)} domains need at least {needed}"
        )
    size = np.linalg.svd(weights - weights.mean(0), compute_uv=False)
    rank = int((size > 1e-6 * max(float(size[0]), 1e-12)).sum()) if size[0] > 1e-9 else 0
    if rank < len(columns) - 1:
        where = "are all equal" if rank == 0 else "lie on a line" if rank == 1 else f"vary in {rank} directions only"
        still = columns[int(np.argmin(np.ptp(weights, axis=0)))]
        raise ValueError(
            f"the mixtures {where}, from {row_of(frame, 0)} to {row_of(frame, len(frame) - 1)}; {len(columns)} domains "
            f"vary in {len(columns) - 1} (least: column {still!r}): add mixtures, or map fewer domains"
        )


def cross_validate(name: str, inputs: Array, targets: Array, domains: int, seed: int = 0) -> float:
    """Returns the root mean square error of a form on rows that it was not fitted to."""
    order = np.random.default_rng(seed).permutation(len(inputs))
    squares = []
    for fold in range(min(FOLDS, len(inputs))):
        test = order[fold::FOLDS]
        train = np.setdiff1d(order, test)
        form, params = fit_form(name, inputs[train], targets[:, train], domains)
        squares.append(((form.predict(params, inputs[test]) - targets[:, test]) ** 2).ravel())
    return float(np.sqrt(np.concatenate(squares).mean()))


def judge(record: Row) -> list[Verdict]:
    """Returns what limits the law: best mixtures outside of those that were trained, and forms without an advantage."""
    out, best = [], record["best"]["best"]["weights"]
    outside = [name for name, entry in best.items() if entry["value"] > 1.05 * record["range"][name][1]]
    if outside:
        text = f"the best mixture has more of {', '.join(outside)} than any mixture of the table: train it before use"
        out.append(Verdict("extrapolated", "warn", text))
    if max(entry["value"] for entry in best.values()) > CORNER:
        text = "the best mixture is a single domain: the law has no cost of repeating the data of a small domain"
        out.append(Verdict("corner", "warn", text))
    loss = record["best"]["best"]["loss"]
    second = min(record["other_forms"], key=record["cross_validation"].__getitem__)
    if loss["lo"] is not None and not loss["lo"] <= (value := record["other_forms"][second]) <= loss["hi"]:
        text = f"the form {second} predicts {value:.4g} for the best mixture, outside of its interval"
        out.append(Verdict("forms_disagree", "warn", f"{text}: the gain depends on the form"))
    if (other := min(record["cross_validation"], key=record["cross_validation"].__getitem__)) != record["form"]:
        errors = record["cross_validation"]
        text = f"in cross-validation {other} has the smaller error: {errors[other]:.4g}, {record['form']} "
        out.append(Verdict("other_form", "warn", f"{text}{errors[record['form']]:.4g}"))
    if record["best"]["better"] is None and record["draws"]:
        out.append(Verdict("no_gain", "note", "the interval of the gain over the proportional mixture contains 0"))
    return out


def predicted_losses(table: Rows, runs: Sequence[Run]) -> Rows:
    """Returns a panel's table of `loss` by `arm` and `data` with further measures of each run.

    mean_loss  the mean of its losses over the domains
    predicted  that of the exponential form, fitted to the runs of the arm `fitted`; none where these are too few
    error      the absolute difference of both
    """
    losses = (
        table[table["measure"] == "loss"].pivot_table(index="run", columns="data", values="value", sort=False).dropna()
    )
    rows = table.drop_duplicates("run").set_index("run").loc[losses.index].reset_index()
    parts = {run.name: run.config["data"]["parts"] for run in runs}
    weights = pd.DataFrame([parts[name] for name in losses.index]).fillna(0.0).to_numpy(dtype=float)
    weights, targets = weights / weights.sum(1, keepdims=True), losses.to_numpy(dtype=float).T
    measures = {"mean_loss": targets.mean(0)}
    is_fitted = (rows["arm"] == "fitted").to_numpy()
    if is_fitted.sum() >= weights.shape[1] + SPARE:
        form, params = fit_form("exponential", weights[is_fitted], targets[:, is_fitted], weights.shape[1])
        measures["predicted"] = form.predict(params, weights).mean(0)
        measures["error"] = np.abs(measures["mean_loss"] - measures["predicted"])
    further = [rows.assign(measure=name, metric=name, value=values) for name, values in measures.items()]
    return pd.concat([table, *further], ignore_index=True)


def lines(record: Row) -> list[str]:
    """Returns the printed lines of a record."""
    losses = record["losses"]
    errors = ", ".join(f"{name} {error:.4g}" for name, error in record["cross_validation"].items())
    chosen = f", f = {record['offset']:g}, ridge penalty {record['penalty']:g}" if record["form"] == "ridge" else ""
    out = [
        f"mixture, {record['form']}: {record['formula']}   ({record['source']})",
        f"{record['n']} mixtures of {len(record['columns'])} domains; loss: "
        f"{losses[0] if len(losses) == 1 else f'mean of {len(losses)} columns'}{chosen}",
        f"  error in cross-validation: {errors}; form by {record['chosen_by']}",
    ]
    params = np.array(record["params"]).mean(0)
    draws = np.array(record["draws"]).reshape(-1, len(losses), len(params)).mean(1)
    names = ["constant", *record["columns"], *(f"log {role}" for role in record["inputs"])]
    out += parameter_lines(names, params.tolist(), draws, record["level"], 20)
    return [*out, *prediction_lines(record, record["best"])]


def mixture() -> TableLaw:
    """The law of `kleiber fit --law mixture`."""
    return TableLaw(
        roles=("w", "loss", "N", "D"), options=("form",), record=MixtureRecord, fit=fit, lines=lines,
        predict_rows=predict_rows, predict_point=predict_point, prediction_lines=prediction_lines,
    )  # fmt: skip
