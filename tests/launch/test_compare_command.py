"""kleiber compare on tables that kleiber did not write: intervals equal to scipy's, guards, and exit codes."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from kleiber.launch.cli import main

LEVEL = 0.9


def table(gaps: dict[str, float], seeds: int, spread: float = 0.02, **columns: float) -> pd.DataFrame:
    """Losses of arms around 3 nats; equal seeds have no noise in common."""
    noise = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"method": arm, "run seed": seed, "val loss": 3 + gap + spread * noise.standard_normal(), **columns}
            for arm, gap in gaps.items()
            for seed in range(seeds)
        ]
    )


def compared(path, tmp_path, *options: str, roles: str = "") -> tuple[int, dict]:
    """Exit code and findings of `kleiber compare`."""
    out = tmp_path / "findings.json"
    command = ["compare", str(path), "--map", f"arm=method,seed=run seed,value=val loss{roles}", *options]
    code = main([*command, "--json", str(out)])
    return code, json.loads(out.read_text()) if out.exists() else {}


def values(frame: pd.DataFrame, arm: str) -> np.ndarray:
    return frame[frame["method"] == arm]["val loss"].to_numpy()


def test_two_arms_of_a_csv_have_scipys_paired_interval(tmp_path):
    frame = table({"plain": 0.0, "new": -0.05}, 5)
    frame.to_csv(tmp_path / "t.csv", index=False)
    code, findings = compared(tmp_path / "t.csv", tmp_path)
    test = stats.ttest_rel(values(frame, "new"), values(frame, "plain")).confidence_interval(LEVEL)
    (claim,) = findings["claims"]
    assert [claim["lo"], claim["hi"]] == pytest.approx([test.low, test.high], abs=1e-9)
    assert (code, claim["decision"], claim["n"], claim["tuned"]) == (0, "supported", 5, None)
    assert {caveat["code"] for caveat in findings["caveats"]} == {"rates", "budgets"}


@pytest.mark.parametrize(("suffix", "separator"), [("tsv", "\t"), ("parquet", None)])
def test_three_arms_of_other_forms_have_bonferronis_intervals(tmp_path, suffix, separator):
    frame = table({"plain": 0.0, "new": 0.05, "other": -0.001}, 4)
    path = tmp_path / f"t.{suffix}"
    frame.to_csv(path, index=False, sep=separator) if separator else frame.to_parquet(path)
    code, findings = compared(path, tmp_path, "--variance", "separate")
    for claim in findings["claims"]:
        sides = (values(frame, claim[side]["arm"]) for side in ("of", "against"))
        test = stats.ttest_rel(*sides).confidence_interval(1 - (1 - LEVEL) / 2)
        assert [claim["lo"], claim["hi"]] == pytest.approx([test.low, test.high], abs=1e-9)
    assert (code, findings["claims"][0]["decision"]) == (5, "contradicted")


def test_arms_of_a_jsonl_share_their_variance_as_an_independent_computation_does(tmp_path):
    """Moderated t of two unpaired arms with 16 degrees of freedom: Smyth's prior, a standard error on the safe side."""
    frame = table({"plain": 0.0, "new": -0.01}, 9)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    _, findings = compared(tmp_path / "t.jsonl", tmp_path)
    ours, theirs = values(frame, "new"), values(frame, "plain")
    s2, d = np.array([ours.var(ddof=1), theirs.var(ddof=1)]), 8.0
    logs = np.log(s2) - special.digamma(d / 2) + np.log(d / 2)
    chance = special.polygamma(1, d / 2)
    error = math.sqrt(special.polygamma(3, d / 2) / 2 + 2 * chance**2)
    assert logs.var(ddof=1) - chance + error > 0, "the variances agree only roughly: they have a finite prior"
    prior_df = 2 * inverse_trigamma(logs.var(ddof=1) - chance + error)
    prior = s2.mean() if logs.var(ddof=1) <= chance else math.nan
    shrunk = (prior_df * prior + d * s2) / (prior_df + d)
    df = min(prior_df + d, 16.0)
    parts = shrunk / 9
    total = parts.sum()
    half = stats.t.ppf(0.5 + LEVEL / 2, total**2 / (parts**2 / df).sum()) * math.sqrt(total)
    gap = ours.mean() - theirs.mean()
    (claim,) = findings["claims"]
    assert "unpaired" in claim["method"]
    assert [claim["lo"], claim["hi"]] == pytest.approx([gap - half, gap + half], abs=1e-9)


def inverse_trigamma(value: float) -> float:
    low, high = 1e-3, 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if special.polygamma(1, middle) > value else (low, middle)
    return low


def test_without_seeds_nothing_is_testable(tmp_path):
    table({"plain": 0.0, "new": -1.0}, 5).to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "out.json"
    command = ["compare", str(tmp_path / "t.csv"), "--map", "arm=method,value=val loss", "--json", str(out)]
    assert main(command) == 3
    (claim,) = json.loads(out.read_text())["claims"]
    assert claim["decision"] == "not tested"
    assert claim["why"].startswith("not testable: ")
    assert "seed=COL" in claim["why"]
    assert claim["lo"] is None


def unequal_tokens(frame):
    return frame.assign(tokens=np.where(frame["method"] == "new", 2e9, 1e9)), ",tokens=tokens"


def few_rates(frame):
    return frame.assign(lr=0.01), ",lr=lr"


def one_seed(frame):
    return frame[frame["run seed"] == 0], ""


def other_seeds(frame):
    return frame.assign(**{"run seed": range(len(frame))}), ""


def no_value(frame):
    return frame.assign(**{"val loss": frame["val loss"].where(frame.index != 7)}), ""


def crashed(frame):
    return frame.assign(State=np.where(frame.index == 7, "crashed", "finished")), ""


def no_tokens(frame):
    return frame.assign(tokens=np.where(frame.index == 7, np.nan, 1e9)), ",tokens=tokens"


FLAWS = [unequal_tokens, few_rates, one_seed, other_seeds, no_value, crashed, no_tokens]


@pytest.mark.parametrize("flaw", FLAWS, ids=lambda flaw: flaw.__name__)
def test_what_a_table_cannot_show_is_not_testable(tmp_path, flaw):
    frame, roles = flaw(table({"plain": 0.0, "new": -1.0}, 5))
    frame.to_csv(tmp_path / "t.csv", index=False)
    code, findings = compared(tmp_path / "t.csv", tmp_path, roles=roles)
    (claim,) = findings["claims"]
    assert (code, claim["decision"]) == (3, "not tested")
    assert claim["why"].startswith("not testable: ")


def test_tuned_arms_of_equal_tokens_are_compared_at_their_best_rates(tmp_path):
    rows = [
        {"method": arm, "run seed": seed, "lr": lr, "tokens": 1e9,
         "val loss": gap + abs(math.log2(lr / 0.02)) + 0.001 * ((7 * seed + round(1e4 * lr)) % 5)}
        for arm, gap in {"plain": 3.0, "new": 2.5}.items()
        for lr in (0.005, 0.01, 0.02, 0.04, 0.08)
        for seed in range(3)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    code, findings = compared(tmp_path / "t.csv", tmp_path, roles=",lr=lr,tokens=tokens")
    (claim,) = findings["claims"]
    assert (code, claim["decision"], claim["tuned"], claim["equal"]) == (0, "supported", True, "tokens")


def test_claims_of_a_file_are_decided_at_each_size(tmp_path):
    frames = [table({"plain": 0.0, "new": gap}, 5, params=size) for size, gap in ((1e6, -0.1), (1e7, 0.1))]
    pd.concat(frames).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "claims.yaml").write_text("- {arm: new, against: plain, each: {size: all}}\n")
    code, findings = compared(
        tmp_path / "t.csv", tmp_path, "--claims", str(tmp_path / "claims.yaml"), roles=",size=params"
    )
    assert code == 5
    assert [claim["decision"] for claim in findings["claims"]] == ["supported", "contradicted"]


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        (["--baseline", "old"], ""),
        (["--better", "smaller"], ""),
        (["--equal", "toknes"], ""),
        (["--arm", "model"], ""),
        ([], ",rate=lr"),
        ([], ",lr=missing"),
        ([], ",lr=method"),
        (["--variance", "none"], ""),
    ],
)
def test_options_that_do_not_fit_the_table_are_refused(tmp_path, options, roles):
    table({"plain": 0.0, "new": -1.0}, 5).to_csv(tmp_path / "t.csv", index=False)
    assert compared(tmp_path / "t.csv", tmp_path, *options, roles=roles)[0] == 2


def test_two_rows_of_one_run_are_refused(tmp_path):
    frame = table({"plain": 0.0, "new": -1.0}, 5)
    pd.concat([frame, frame[:1]]).to_csv(tmp_path / "t.csv", index=False)
    assert compared(tmp_path / "t.csv", tmp_path)[0] == 2


@pytest.mark.slow
def test_the_page_has_the_decision_and_the_figure(tmp_path):
    table({"plain": 0.0, "new": -1.0}, 5).to_csv(tmp_path / "t.csv", index=False)
    page = tmp_path / "page.html"
    assert compared(tmp_path / "t.csv", tmp_path, "--out", str(page))[0] == 0
    text = page.read_text()
    assert "val loss is lower with new than with plain" in text
    assert "vega" in text
