"""The study `ood`: lines of dense models, and mixtures at a planted distance from them."""

from pathlib import Path

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.study import PlannedPoint

from .ablation_runs import copied
from .panels import LOSS, claim, declared, draw_all, plant, row

SLOPES_BY_DATA, AWAY = (
    "Slope of the loss on other text against the loss in domain",
    "Mixture of experts relative to the line of dense models",
)
SLOPES = {"domains/law": 0.5, "domains/genesis_german": 1.5}


def write(folder, experts, width, seed, inside, away=0.0):
    """A run with a loss in domain, and losses on the lines 1 + slope * inside + noise of the seed, `away` from it."""
    metrics = {"eval/ood/wikitext/bits_per_byte": inside}
    for data, slope in SLOPES.items():
        value = 1 + (slope + 0.01 * seed) * inside + away
        metrics |= {f"eval/ood/{data}/bits_per_byte": value, f"eval/ood/{data}/gap": value - inside}
    mlp = {"num_experts": experts} if experts else {}
    params = {"active": 10_000 * width, "total": 10_000 * width * (experts or 1)}
    plant(folder, f"{experts}-{width}", metrics, seed, stage={"params": params}, model={"width": width, "mlp": mlp})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ood")
    for seed in range(3):
        for width, inside in ((32, 2.4), (64, 2.2), (96, 2.1)):
            write(folder, 0, width, seed, inside + 0.01 * seed)
        write(folder, 8, 32, seed, 2.3, -0.02 - 0.001 * seed)
        write(folder, 8, 64, seed, 2.15, -0.04)
    return read_runs(folder)


@pytest.mark.slow
def test_slopes_and_distances_are_those_of_the_planted_lines(runs):
    findings = declared("ood").analyze(runs)
    law, german = (row(findings, SLOPES_BY_DATA, data=name) for name in ("law", "German"))
    assert law["value"] == pytest.approx(0.51) and german["value"] == pytest.approx(1.51)
    assert law["lo"] < 0.51 < law["hi"] and law["n"] == 3
    assert [each["value"] for each in findings.tables[AWAY]] == pytest.approx([-0.0305] * 2)
    distance = claim(findings, "distance")
    assert distance.decision == "supported" and distance.estimate.value == pytest.approx(-0.0305)
    assert distance.estimate.n == 3, "a seed is one sample, over sizes and data sets"
    assert list(draw_all(findings)) == ["ood_lines", "ood_mixtures"]


@pytest.mark.slow
def test_intervals_of_single_data_sets_hold_together(runs):
    narrow, wide = (declared("ood", level=level).analyze(runs) for level in (0.8, 0.9))
    first, other = (row(findings, SLOPES_BY_DATA, data="law") for findings in (narrow, wide))
    assert other["hi"] - other["lo"] > first["hi"] - first["lo"]
    single = declared("ood", means=[{"title": SLOPES_BY_DATA, "measures": "slope", "by": ["data"]}], figures=[])
    assert row(single.analyze(runs), SLOPES_BY_DATA, data="law")["hi"] < other["hi"]


def test_the_text_of_the_domain_itself_is_no_other_text(runs):
    losses = declared("ood").analyze(runs).tables["Losses in bits per byte"]
    assert {each["data"] for each in losses} == {"law", "German"}
    inside = [each["value"] for each in losses if each["measure"] == "loss in domain" and each["model"] != "dense"]
    assert sorted({round(value, 9) for value in inside}) == [2.15, 2.3]


def test_dense_models_alone_have_lines_and_no_claim_is_tested(tmp_path):
    for seed in range(2):
        for width, inside in ((32, 2.4), (64, 2.2)):
            write(tmp_path, 0, width, seed, inside)
    findings = declared("ood").analyze(read_runs(tmp_path))
    assert [str(result.decision) for result in findings.claims] == ["not tested"]
    assert list(findings.figures) == ["ood_lines"]


def test_what_has_no_line_is_refused(tmp_path):
    plant(tmp_path, "plain", {LOSS: 2.0}, model={"width": 32})
    with pytest.raises(ValueError, match="eval/ood"):
        declared("ood").analyze(read_runs(tmp_path))
    write(tmp_path, 0, 32, 0, 2.4)
    with pytest.raises(ValueError, match="at least two sizes"):
        declared("ood").analyze(read_runs(tmp_path))


def test_two_runs_of_a_model_and_seed_are_refused(runs):
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        declared("ood").analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])


def test_a_second_rate_is_refused_in_the_plan_and_mixtures_of_other_experts_are_not():
    config = {"seed": 0, "optimizer": {"lr": 0.01}, "model": {"mlp": {"num_experts": 8}}}
    dense, more = ({**config, "model": {"mlp": mlp}} for mlp in ({}, {"num_experts": 16}))
    points = [PlannedPoint(Path(str(n)), each, 1e5, 1e6) for n, each in enumerate((config, dense, more))]
    assert declared("ood").check_plan(points) == []
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        twin = PlannedPoint(Path("twin"), {**dense, "optimizer": {"lr": 0.02}}, 1e5, 1e6)
        declared("ood").check_plan([*points, twin])
