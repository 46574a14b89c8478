"""Loss-to-loss lines of dense models, and mixtures at a known distance from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.ood import OOD, domain_losses, label
from kleiber.studies.study import PlannedPoint

from .ablation_runs import copied
from .ladders import write_tree

SLOPE_TABLE = "Slope of the loss out of distribution against the loss in domain"
SLOPES = {"domains/law": 0.5, "domains/genesis_german": 1.5}


def write(folder, kind: str, width: int, seed: int, inside: float, away: float = 0.0) -> None:
    """A run with an in-domain loss, and losses on the lines 1 + slope * inside + noise of the seed, `away` from it."""
    metrics = {"eval/ood/wikitext/bits_per_byte": inside}
    for data, slope in SLOPES.items():
        value = 1 + (slope + 0.01 * seed) * inside + away
        metrics |= {f"eval/ood/{data}/bits_per_byte": value, f"eval/ood/{data}/gap": value - inside}
    where = folder / f"{kind}-{width}-{seed}"
    write_tree(where, seed, 10_000 * width, 6e4 * width, {1e6: inside}, config={"model": {"width": width}})
    add(where, metrics, total=(20_000 if kind == "moe" else 10_000) * width)


def add(folder, metrics: dict[str, float], total: int) -> None:
    import json

    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    for stage in summary["stages"]:
        stage["metrics"] |= metrics
        stage["params"]["total"] = total
    path.write_text(json.dumps(summary))


@pytest.fixture
def ladder(tmp_path):
    for seed in range(3):
        for width, inside in ((32, 2.4), (64, 2.2), (96, 2.1)):
            write(tmp_path, "dense", width, seed, inside + 0.01 * seed)
        write(tmp_path, "moe", 32, seed, 2.3, -0.02 - 0.001 * seed)
        write(tmp_path, "moe", 64, seed, 2.15, -0.04)
    return tmp_path


def test_slopes_and_distances_are_those_of_the_planted_lines(ladder):
    findings = OOD().analyze(read_runs(ladder))
    slopes = {row["data"]: row for row in findings.tables[SLOPE_TABLE]}
    assert slopes["law"]["value"] == pytest.approx(0.51) and slopes["genesis german"]["value"] == pytest.approx(1.51)
    assert slopes["law"]["lo"] < 0.51 < slopes["law"]["hi"] and slopes["law"]["n"] == 3
    away = findings.tables["Mixture of experts relative to the line of dense models"]
    assert [row["value"] for row in away] == pytest.approx([-0.0305] * 2)
    assert "have a lower loss" in findings.answer and "-0.0305 [" in findings.answer
    assert {verdict["code"] for verdict in findings.verdicts} == {"slope", "robustness"}
    assert set(findings.figures) == {"ood_lines", "ood_mixtures"}
    for draw in findings.figures.values():
        assert draw()


def test_intervals_of_single_data_sets_are_wider_than_the_level_alone(ladder):
    both = OOD().analyze(read_runs(ladder))
    narrow = OOD(level=0.5).analyze(read_runs(ladder)).tables[SLOPE_TABLE][0]
    wide = both.tables[SLOPE_TABLE][0]
    assert wide["lo"] < narrow["lo"] < narrow["hi"] < wide["hi"]
    assert domain_losses(read_runs(ladder))["data"].nunique() == 2


def test_dense_models_alone_have_lines(tmp_path):
    for seed in range(2):
        for width, inside in ((32, 2.4), (64, 2.2)):
            write(tmp_path, "dense", width, seed, inside)
    findings = OOD().analyze(read_runs(tmp_path))
    assert "no mixtures of experts" in findings.answer and set(findings.figures) == {"ood_lines"}


def test_what_has_no_line_is_refused(tmp_path):
    write_tree(tmp_path / "a", 0, 100_000, 6e5, {1e6: 2.0}, config={"model": {"width": 32}})
    with pytest.raises(ValueError, match=r"evals=\[ood\]"):
        OOD().analyze(read_runs(tmp_path))
    write(tmp_path, "dense", 32, 0, 2.4)
    with pytest.raises(ValueError, match="at least two sizes"):
        OOD().analyze(read_runs(tmp_path))


def test_names_of_data_sets_are_read_as_words():
    assert label("domains/genesis_german") == "genesis german" and label("tinystories") == "tinystories"


def test_two_runs_of_a_model_and_seed_are_refused(ladder):
    runs = read_runs(ladder)
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        OOD().analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])


def test_a_second_rate_is_refused_in_the_plan_and_mixtures_of_other_experts_are_not():
    config = {"seed": 0, "optimizer": {"lr": 0.01}, "model": {"mlp": {"num_experts": 8}}}
    dense, more = ({**config, "model": {"mlp": mlp}} for mlp in ({}, {"num_experts": 16}))
    points = [PlannedPoint(Path(str(n)), each, 1e5, 1e6) for n, each in enumerate((config, dense, more))]
    assert OOD().check_plan(points) == []
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        OOD().check_plan([*points, PlannedPoint(Path("twin"), {**dense, "optimizer": {"lr": 0.02}}, 1e5, 1e6)])
