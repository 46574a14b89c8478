"""The forgetting study on runs with known differences between retention methods."""

import json

import numpy as np
import pytest

from kleiber.launch.cli import main
from kleiber.records.catalog import read_runs
from kleiber.studies.compare import frontier
from kleiber.studies.forgetting import Forgetting

from .comparisons import truth, write_arm, write_base, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "forgetting"
    write_study(home)
    return home


@pytest.fixture(scope="module")
def record(study):
    return Forgetting().compare(read_runs(study))


def about(record, measure, **of):
    """The first claim about a measure of the group with these values."""
    return next(r for r in record["results"] if r.claim.measure == measure and of.items() <= r.claim.of.items())


@pytest.mark.slow
def test_methods_are_compared_where_they_learned_equally_much(record):
    best = truth("none", 0, 0.03)[1]
    assert record["matched"][0]["at"] == pytest.approx(1.02 * best, abs=0.01)
    order = [method["method"] for method in record["matched"]]
    assert order[0] == "replay"
    result = {method["method"]: method for method in record["matched"]}
    assert result["replay"]["hi"] < result["none"]["lo"] and result["replay"]["reached"] == 3
    exact = frontier.read_off(
        *map(np.array, zip(*[truth("none", 0, lr)[::-1] for lr in (0.003, 0.01, 0.03)], strict=True)),
        record["matched"][0]["at"],
    )
    assert result["none"]["lo"] < exact < result["none"]["hi"]
    assert record["seed_noise"]["F"] == pytest.approx(0.004, rel=0.3)


@pytest.mark.slow
def test_claims_are_judged_with_intervals(record):
    steps = [result for result in record["results"] if result.claim.measure == "F" and "replayed" in result.claim.of]
    assert steps and {result.decision for result in steps} == {"supported"}
    assert about(record, "F", method="none").decision == "supported", "a high rate forgets more"
    cheap = about(record, "target", replayed=0.05)
    assert cheap.decision == "supported" and cheap.estimate.value == pytest.approx(0.0025, abs=0.004)
    half_way = -0.25 * np.mean([truth("none", 0, lr)[0] for lr in (0.003, 0.01, 0.03)])
    assert about(record, "F", alpha=0.5).estimate.value == pytest.approx(half_way, abs=0.01)
    replay = about(record, "F", arm="replay")
    assert replay.decision == "supported" and replay.estimate.value < 0 and replay.claim.equal == "target_loss"


@pytest.mark.slow
def test_the_intervals_of_all_claims_of_a_study_hold_at_once(study, record):
    """Each further question widens them: a study has a level, not a question."""
    runs = read_runs(study)
    others = {"of": {}, "each": {"arm": {"not": ["none"]}}, "against": {"arm": "none"}}
    further = Forgetting(claims=[{**others, "equal": "target_loss"}, others]).compare(runs)
    widths = [
        about(compared, "F", **of).estimate.hi - about(compared, "F", **of).estimate.lo
        for of in ({"arm": "replay"}, {"method": "none"})
        for compared in (record, further)
    ]
    assert widths[0] < widths[1] and widths[2] < widths[3]


@pytest.mark.slow
def test_a_method_that_learns_less_is_not_ranked_by_what_it_forgets(tmp_path):
    write_study(tmp_path / "s", seeds=2)
    for seed in range(2):
        write_arm(tmp_path / "s" / f"strong{seed}", "l2sp", 5.0, 0.003, seed)
    for path in (tmp_path / "s").glob("l2sp*"):
        (path / "summary.json").unlink()
    result = Forgetting().compare(read_runs(tmp_path / "s"))["matched"]
    assert result[-1]["method"] == "l2sp" and result[-1]["reached"] == 0


@pytest.mark.slow
def test_one_seed_gives_no_interval_and_no_verdict(tmp_path):
    write_study(tmp_path / "s", seeds=1)
    findings = Forgetting().analyze(read_runs(tmp_path / "s"))
    rows = findings.tables["At equal target loss"]
    assert {(row["lo"], row["hi"]) for row in rows if isinstance(row["F"], float)} == {(None, None)}
    assert {result.decision for result in findings.claims} == {"not tested"}
    assert "(no interval: 1 seed)" in findings.answer


@pytest.mark.slow
def test_the_report_has_figures_tables_and_what_is_missing(tmp_path, capsys):
    write_study(tmp_path / "s", seeds=2)
    write_arm(tmp_path / "s" / "unlucky", "l2sp", 0.7, 0.01, 0, status="failed")
    assert main(["report", str(tmp_path / "s")]) == 3, "a run that failed leaves every claim untested"
    output = capsys.readouterr().out
    findings = json.loads((tmp_path / "s" / "findings.json").read_text())
    assert (
        findings["answer"] in output
        and "replay forgets least of the compared arms" in findings["answer"]
        and "not tested" in findings["answer"]
    )
    assert findings["missing"] == ["unlucky (failed)"] and "unlucky (failed)" in output
    for name in ("pareto", "matched", "differences", "trajectory", "tuning", "matrix"):
        assert (tmp_path / "s" / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "s" / "report.html").read_text()
    assert "fraction=0.05" in page and 'src="http' not in page


def test_without_anything_to_compare_it_says_so(tmp_path):
    write_base(tmp_path / "s" / "base0", 0)
    with pytest.raises(ValueError, match="no fine-tuning run"):
        Forgetting().compare(read_runs(tmp_path / "s"))
    write_arm(tmp_path / "s" / "one", "replay", 0.1, 0.01, 0)
    with pytest.raises(ValueError, match="plain fine-tuning"):
        Forgetting().compare(read_runs(tmp_path / "s"))


@pytest.mark.parametrize(
    ("options", "offending"),
    [
        ({"arms": "rank"}, "study.arms=rank"),
        ({"equal": "tokens"}, "study.equal=tokens"),
        ({"claims": [{"arm": "dense"}]}, r"study\.claims\[0\]"),
        ({"claims": [{"arm": "x", "against": "y", "measure": "z"}]}, r"study\.claims\[0\]"),
        (
            {"claims": [{"arm": "x", "against": "y", "measure": "target", "equal": "target_loss"}]},
            r"study\.claims\[0\]",
        ),
    ],
)
def test_an_option_that_is_no_choice_is_refused_by_its_key(options, offending):
    with pytest.raises(ValueError, match=offending):
        Forgetting(**options)


@pytest.mark.slow
def test_claims_ask_about_the_arms_that_they_name(study):
    """Whoever the reference is: a claim of two arms is minus that of the arms exchanged."""
    claims = [
        {"arm": "replay", "against": "l2sp", "equal": "target_loss"},
        {"arm": "l2sp", "against": "replay", "equal": "target_loss"},
    ]
    first, second = Forgetting(claims=claims).compare(read_runs(study))["between_arms"]
    assert first.claim.of == second.claim.against == {"arm": "replay"}
    assert first.estimate.value == pytest.approx(-second.estimate.value)
    assert first.estimate.lo == pytest.approx(-second.estimate.hi)


@pytest.mark.slow
def test_a_claim_about_an_arm_that_nobody_trained_is_not_tested(study):
    record = Forgetting(claims=[{"arm": "l3sp", "against": "none", "equal": "target_loss"}]).compare(read_runs(study))
    (result,) = record["between_arms"]
    assert result.decision == "not tested" and "l3sp" in result.why and result.estimate is None
