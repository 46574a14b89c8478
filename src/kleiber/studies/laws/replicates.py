"""Replicates: the same cell trained again with another seed. They measure noise apart from the law's misfit.

It refuses to call residuals noise: without replicates the seed noise is "not measured", whatever the fit's rms.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import fdtrc

from kleiber.studies.laws.fit import Fit
from kleiber.studies.laws.law import Array


@dataclass(frozen=True)
class LackOfFit:
    """F = (SS_lof/df_lof) / (SS_pure/df_pure) on the fit's scale, its p-value, and the seed sd with its df."""

    seed_noise: float
    pure_df: int
    statistic: float
    lof_df: int
    p_value: float


def cells(inputs: Mapping[str, Array]) -> NDArray[np.intp]:
    """A cell number per row: rows with the same inputs (to 1e-9) are replicates of one cell."""
    units = {name: 10.0 ** (_magnitude(column) - 9) for name, column in inputs.items()}
    stacked = np.column_stack([np.round(column / units[name]) * units[name] for name, column in inputs.items()])
    _, member = np.unique(stacked, axis=0, return_inverse=True)
    return member.reshape(-1)


def _magnitude(column: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.where(column != 0, np.floor(np.log10(np.abs(np.where(column == 0, 1, column)))), 0)


def lack_of_fit(fit: Fit) -> LackOfFit | None:
    """The classical lack-of-fit test from replicates; None without any, or with too few cells."""
    member = cells({name: fit.problem.inputs[name] for name in fit.law.inputs})
    sizes = np.bincount(member)
    pure_df, lof_df = len(member) - len(sizes), len(sizes) - fit.problem.num_params
    if pure_df < 1 or lof_df < 1:
        return None
    scale = np.ones(len(member)) if fit.problem.scale is None else fit.problem.scale
    residuals = fit.residuals * scale
    weights = np.bincount(member, scale**-2)
    means = np.bincount(member, residuals * scale**-2) / weights
    pure = float((((residuals - means[member]) / scale) ** 2).sum())
    misfit = float((weights * means**2).sum())
    statistic = (misfit / lof_df) / max(pure / pure_df, 1e-300)
    return LackOfFit(
        float(np.sqrt(pure / pure_df)), pure_df, statistic, lof_df, float(fdtrc(lof_df, pure_df, statistic))
    )


@dataclass(frozen=True)
class TrunkNoise:
    """Sd of ln L between the trunks of a size, and within one trunk over D; `df` trunks measured it."""

    between: float
    within: float
    df: int

    @property
    def correlation(self) -> float:
        """Of two D values of one trunk."""
        return self.between**2 / max(self.between**2 + self.within**2, 1e-300)


def trunk_noise(inputs: Mapping[str, Array], loss: Array, clusters: NDArray, along: str = "D") -> TrunkNoise | None:
    """Variance components of ln L = a_D + u_trunk + e within a size, pooled over sizes; None without two seeds of one.

    Mean squares of the balanced part (the D values that all trunks of a size reached): E[MS_trunk] = m var_u + var_e.
    """
    others = {name: column for name, column in inputs.items() if name != along}
    size = cells(others) if others else np.zeros(len(loss), dtype=int)
    between = within = lengths = 0.0
    df = spare = 0
    for number in np.unique(size):
        rows = np.flatnonzero(size == number)
        _, trunk = np.unique(clusters[rows], return_inverse=True)
        _, length = np.unique(cells({along: inputs[along][rows]}), return_inverse=True)
        table = np.full((trunk.max() + 1, length.max() + 1), np.nan)
        table[trunk, length] = np.log(loss[rows])
        table = table[:, np.isfinite(table).all(0)]
        trunks, num = table.shape
        if trunks < 2 or num < 2:
            continue
        means = table.mean(1, keepdims=True) - table.mean()
        rest = table - table.mean(0) - means
        between += num * float((means**2).sum())
        within += float((rest**2).sum())
        df, spare, lengths = df + trunks - 1, spare + (trunks - 1) * (num - 1), lengths + num * (trunks - 1)
    if df < 1:
        return None
    error = within / spare
    return TrunkNoise(float(np.sqrt(max(between / df - error, 0.0) / (lengths / df))), float(np.sqrt(error)), df)


def two_way_means(
    inputs: Mapping[str, Array], loss: Array, clusters: NDArray, along: str = "D"
) -> tuple[dict[str, Array], Array, NDArray]:
    """Average seeds within a size before fitting: ln L = a_D + u_seed, the mean over seeds of a_D + u_seed.

    A seed that reached only some D would otherwise drag those D along with its own offset. Rows of one size are those
    that agree in every input but `along`; trunks of a size that share no value of it, not even through others, have
    nothing to be compared by and are averaged apart. Returns the averaged inputs, losses, and the number of each row's
    group of trunks, which is the cluster that remains: the D values of one group share its trunks' noise.
    """
    others = {name: column for name, column in inputs.items() if name != along}
    size = cells(others) if others else np.zeros(len(loss), dtype=int)
    kept: dict[str, list[float]] = {name: [] for name in inputs}
    means: list[float] = []
    groups: list[int] = []
    for rows in _comparable(size, inputs[along], clusters):
        _, first, at = np.unique(cells({along: inputs[along][rows]}), return_index=True, return_inverse=True)
        _, seed = np.unique(clusters[rows], return_inverse=True)
        num_d, num_seeds = len(first), int(seed.max()) + 1
        design = np.zeros((len(rows), num_d + num_seeds))
        design[np.arange(len(rows)), at] = 1.0
        design[np.arange(len(rows)), num_d + seed] = 1.0
        effects = np.linalg.lstsq(design, np.log(loss[rows]), rcond=None)[0]
        means += list(effects[:num_d] + effects[num_d:].mean())
        groups += [len(set(groups))] * num_d
        for name in inputs:
            kept[name] += list(inputs[name][rows][first])
    return {name: np.array(column) for name, column in kept.items()}, np.exp(np.array(means)), np.array(groups)


def _comparable(size: NDArray, values: Array, clusters: NDArray) -> list[NDArray[np.intp]]:
    """The rows of each size whose trunks are linked by values that they share, in the order of sizes."""
    found = []
    for number in np.unique(size):
        rows = np.flatnonzero(size == number)
        at, (_, trunk) = cells({"": values[rows]}), np.unique(clusters[rows], return_inverse=True)
        links = coo_array((np.ones(len(rows)), (trunk, trunk.max() + 1 + at)), shape=(trunk.max() + at.max() + 2,) * 2)
        _, component = connected_components(links, directed=False)
        found += [rows[component[trunk] == one] for one in np.unique(component[trunk])]
    return found
