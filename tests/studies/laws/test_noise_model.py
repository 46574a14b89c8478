"""Replicates: cells of equal inputs, two-way means on unbalanced seeds."""

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.noise_model import fit_with_noise, two_way_means
from kleiber.studies.laws.table import cells, load

from .. import ladders


def test_cells_of_equal_inputs_are_numbered_alike():
    assert cells({"N": np.array([1.0, 1.0 + 1e-12, 2.0])}).tolist() == [0, 0, 1]


def test_two_way_means_remove_an_unbalanced_seeds_offset():
    """Seed 1 is 2 % worse and stops early: plain means would put a step in the curve, two-way means do not."""
    D = np.array([1e6, 2e6, 4e6, 8e6, 1e6, 2e6])
    curve = D**-0.2
    L = curve * np.where(np.arange(6) >= 4, 1.02, 1.0)
    inputs, mean, size = two_way_means({"N": np.full(6, 1e5), "D": D}, L, np.array([0, 0, 0, 0, 1, 1]))
    assert inputs["D"].tolist() == [1e6, 2e6, 4e6, 8e6] and size.tolist() == [0] * 4
    np.testing.assert_allclose(mean, np.sqrt(1.02) * inputs["D"] ** -0.2, rtol=1e-9)


def test_trunks_that_share_no_number_of_tokens_are_averaged_apart():
    """Two seeds at 1M alone and two at 2M and 4M: nothing links them, so the first may not move the others."""
    D = np.array([1e6, 1e6, 2e6, 4e6, 2e6, 4e6])
    L = np.array([1.9, 1.8, 1.7, 1.6, 1.72, 1.62])
    inputs, mean, group = two_way_means({"N": np.full(6, 1e5), "D": D}, L, np.array([0, 1, 2, 2, 3, 3]))
    assert inputs["D"].tolist() == [1e6, 2e6, 4e6] and group.tolist() == [0, 1, 1]
    np.testing.assert_allclose(mean, [np.sqrt(1.9 * 1.8), np.sqrt(1.7 * 1.72), np.sqrt(1.6 * 1.62)])
    linked = two_way_means({"N": np.full(6, 1e5), "D": D}, L, np.array([0, 1, 0, 2, 3, 3]))[2]
    assert linked.tolist() == [0, 0, 0], "a trunk at 1M and 2M links them all"


def test_seeds_that_are_averaged_combine_their_errors():
    """Two seeds of errors s and s give s / sqrt(2), so a size with two seeds weighs more than one with one."""
    N, D = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 4), indexing="ij"))
    frame = pd.DataFrame({"N": N, "D": D, "se": 0.02, "trunk": [f"{n:g}-a" for n in N]})
    longer = frame[frame["N"] == N[0]].assign(trunk="again")
    combined = pd.concat([frame, longer], ignore_index=True)
    combined["L"] = ladders.noisy(ladders.loss(combined["N"], combined["D"]), 0, 0.002)
    law = find("chinchilla")
    even = fit_with_noise(load(combined, {"sigma": "se"}), law, None, 1e-3, "linear", "trunk").fit.problem
    scale, small = even.scale, even.inputs["N"] == N[0]
    assert scale is not None and scale[small] / scale[~small][0] == pytest.approx(1 / np.sqrt(2))
    uneven = combined.assign(se=np.where(combined["trunk"] == "again", 0.06, 0.02))
    scale = fit_with_noise(load(uneven, {"sigma": "se"}), law, None, 1e-3, "linear", "trunk").fit.problem.scale
    assert scale is not None and scale[small] / scale[~small][0] == pytest.approx(np.hypot(0.06, 0.02) / 2 / 0.02)
