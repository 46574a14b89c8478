"""The optimal design: bounds, budget, and rounds that are planned from the runs before."""

from dataclasses import replace

import numpy as np
import pytest

from kleiber.studies.designs.optimal import Optimal, points
from kleiber.studies.designs.plan import PRIOR, SweepContext, Trunk, loss
from kleiber.studies.designs.search import half_width

from ..ladders import noisy, write_tree


@pytest.fixture
def context(tmp_path):
    model = {"depth": 2, "context": 128}
    return SweepContext(model, 272, 1024, 0.2, True, tmp_path / "s", lambda widths: [2e10 for _ in widths])


def cost(plan, context):
    return sum(trunk.cost(context) for trunk in plan)


def test_an_optimal_design_keeps_its_bounds_and_its_budget(context):
    design = Optimal(flops=2e14, rounds=1)
    (cells,) = design.rounds(context)
    plan = design.plan(context, 2e14, [], design.laws)
    built = points(plan, context)
    pairs = np.unique(np.column_stack([built.N, built.D]), axis=0, return_counts=True)[1]
    assert cost(plan, context) <= 2e14
    assert len(built) >= 12 and len(np.unique(built.N)) >= 6 and (pairs >= 2).sum() >= 2
    assert (built.D / built.N).min() > 1.9 and (built.D / built.N).max() < 301 and built.D.min() >= 0.99e6
    assert len(cells) == len(plan)


def train(plan, context, law):
    for trunk in plan:
        row = context.size(trunk.width)
        ends = np.array(trunk.branches, dtype=float)
        losses = noisy(loss(law, np.full(len(ends), float(row.active)), ends), [trunk.width, trunk.seed], 0.002)
        folder = context.folder / f"w{trunk.width}-s{trunk.seed}"
        params = {"total": row.total, "active": row.active, "non_embedding": row.non_embedding}
        write_tree(folder, trunk.seed, params, row.flops_per_token, dict(zip(trunk.branches, losses, strict=True)))


def test_what_greedy_elimination_leaves_too_dear_is_exchanged_for_less(context):
    """Elimination alone ended at 1.5 of this budget here, and without dear trunks at an interval of +-4.7 %."""
    design = Optimal(flops=2e13, target_flops=9e13)
    context = replace(context, head_dim=16)
    plan = design.plan(context, 2e13, [], design.laws)
    assert 0.9 * 2e13 < cost(plan, context) <= 2e13
    built = points(plan, context)
    twins = np.unique(np.column_stack([built.N, built.D]), axis=0, return_counts=True)[1]
    assert len(built) >= 12 and len(np.unique(built.N)) >= 6 and (twins >= 2).sum() >= 2
    assert half_width(built, design.laws[0], 9e13, design.noise) < 0.040


def test_each_third_is_planned_from_what_was_trained_and_a_second_start_repeats_it(context, capsys):
    true = {**PRIOR, "alpha": 0.40, "A": PRIOR["A"] * 1.2e5**-0.107}

    def run(design, train_too):
        cells = []
        for round_cells in design.rounds(context):
            cells.append(round_cells)
            if train_too:
                for cell in round_cells:
                    output = dict(line.split("=") for line in cell)
                    branches = tuple(map(int, output["stages.branches"].strip("[]").split(",")))
                    heads = int(output["model.width"]) // int(output["model.num_heads"])
                    trained = replace(context, head_dim=heads)
                    train([Trunk(int(output["model.width"]), int(output["seed"]), branches)], trained, true)
        return cells

    first = run(Optimal(flops=3e14), True)
    output = capsys.readouterr().out
    assert len(first) == 3 and output.count("prior law") == 1, "only the first round knows no run"
    assert output.count("fitted to") == 2
    assert run(Optimal(flops=3e14), False) == first
    whole = Optimal(flops=3e14, rounds=1)
    assert sum(map(len, first)) > 3 and [cell for part in first for cell in part] != next(
        whole.rounds(replace(context, folder=context.folder / "b"))
    )
    names = [
        tuple(line for line in cell if "branches" not in line) for cell in [cell for part in first for cell in part]
    ]
    assert len(set(names)) == len(names), "a width never trains a seed twice"
