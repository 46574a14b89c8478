"""The isoFLOP design spends equal FLOPs at every size, by the law it is planned with."""

from dataclasses import replace

import pytest

from kleiber.studies.designs.design import SweepContext
from kleiber.studies.designs.isoflop import PRIOR, IsoFLOP, best_width, planning_law


@pytest.fixture
def context(tmp_path):
    model = {"depth": 2, "context": 128}
    return SweepContext(model, 272, 1024, 0.2, True, tmp_path / "s", lambda widths: [2e10 for _ in widths])


def cost(plan, context):
    return sum(trunk.cost(context) for trunk in plan)


def test_an_isoflop_design_is_matched_centred_and_within_its_budget(context):
    design = IsoFLOP(flops=3e14, budgets=4, sizes=5)
    plan = design.plan(context)
    assert 0.9 * 3e14 < cost(plan, context) <= 3e14
    flops = {(t.width, n): n * context.size(t.width).flops_per_token for t in plan for n in t.branches}
    largest = max(flops.values())
    for k in range(4):
        budget = largest / 2**k
        here = {width: c for (width, _), c in flops.items() if abs(c / budget - 1) < 0.2}
        assert len(here) >= 4 and max(here.values()) / min(here.values()) < 1.02
        best = best_width(PRIOR, budget, context, 16)
        assert min(here) < best < max(here)


@pytest.mark.slow
def test_without_branches_every_point_is_a_run_of_its_own(context):
    plain = replace(context, branched=False)
    cells = IsoFLOP(flops=3e14).cells(plain)
    assert all(any(line.startswith("budget.tokens=") for line in cell) for cell in cells)
    assert len(cells) > len(IsoFLOP(flops=3e14).cells(context))


@pytest.mark.slow
def test_hours_are_flops_by_the_measured_speed(context, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3})
    assert cost(IsoFLOP(hours=2).plan(context), context) == pytest.approx(2 * 3600 * 2 * 2e10, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "design.flops"),
        ({"flops": 1e9, "hours": 1}, "design.hours"),
        ({"flops": 1e9}, "design.flops"),
        ({"flops": 3e21, "span": 8.0, "sizes": 8}, "2048.*increase design.head_dim"),
    ],
)
def test_a_budget_that_is_none_or_too_small_or_large_is_refused(context, options, named):
    with pytest.raises(ValueError, match=named):
        IsoFLOP(**options).cells(context)


@pytest.mark.slow
def test_the_models_of_a_design_are_as_large_as_it_believes(context):
    """Heads keep their width, and their normalisations are parameters: the model's own rule would count others."""
    from kleiber.models.transformer import Transformer

    believed = replace(context, head_dim=16)
    for cell in IsoFLOP(flops=1e14).cells(context):
        overrides = dict(line.split("=") for line in cell)
        width, heads = int(overrides["model.width"]), int(overrides["model.num_heads"])
        model = Transformer(272, depth=2, width=width, num_heads=heads, context=128)
        assert sum(parameter.numel() for parameter in model.parameters()) == believed.size(width).active
        assert heads >= 2


@pytest.mark.slow
def test_a_law_of_ones_own_is_planned_with(context, tmp_path):
    small = IsoFLOP(flops=3e14, law={"E": 1.0, "A": 20.0, "B": 400.0, "alpha": 0.5, "beta": 0.5}).plan(context)
    large = IsoFLOP(flops=3e14).plan(context)
    assert max(t.width for t in small) != max(t.width for t in large)
    with pytest.raises(ValueError, match=r"design\.law"):
        planning_law({"E": 1.0})
