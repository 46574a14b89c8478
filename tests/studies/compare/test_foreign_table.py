"""Tables of other people as arms: columns by role, folders of runs, and what a table lacks."""

import numpy as np
import pandas as pd
import pytest
from fake_run import fake_run

from kleiber.studies.compare.foreign_table import NOT_TESTABLE, Options, compare_table, read_foreign
from kleiber.studies.decision import Decision

ROLES = {"arm": "arm", "seed": "seed", "value": "loss"}


def frame(**columns) -> pd.DataFrame:
    noise = np.random.default_rng(0)
    rows = [
        {"arm": arm, "seed": seed, "loss": mean + 0.01 * noise.standard_normal()}
        for arm, mean in (("plain", 3.0), ("new", 2.9))
        for seed in range(4)
    ]
    return pd.DataFrame(rows).assign(**columns)


def decision(table: pd.DataFrame, options: Options | None = None, **roles: str) -> tuple[Decision, str]:
    findings = compare_table(read_foreign(table, {**ROLES, **roles}), options or Options())
    (claim,) = findings.claims
    return claim.decision, claim.why


def test_the_first_arm_is_the_baseline_unless_another_is_named():
    assert decision(frame())[0] == Decision.SUPPORTED
    assert decision(frame(), Options(baseline="new"))[0] == Decision.CONTRADICTED
    assert decision(frame(), Options(better="higher"))[0] == Decision.CONTRADICTED


def test_numbers_that_name_arms_and_seeds_are_equal_with_and_without_a_fraction():
    table = frame()
    table["arm"] = [1.0] * 4 + [2.0] * 4
    table["seed"] = [0, 1, 2, 3, 0.0, 1.0, 2.0, 3.0]
    findings = compare_table(read_foreign(table, ROLES), Options())
    assert findings.claims[0].claim.of == {"arm": "2"}
    assert findings.claims[0].decision == Decision.SUPPORTED


@pytest.mark.parametrize(
    "claim", [{"arm": "old", "against": "plain"}, {"arm": "new", "against": "plain", "measure": "x"}]
)
def test_claims_about_what_the_table_does_not_have_are_refused(claim):
    with pytest.raises(ValueError, match="claims"):
        decision(frame(), Options(claims=[claim]))


def test_a_claim_about_equal_tokens_needs_their_column():
    claim = {"arm": "new", "against": "plain", "equal": "tokens"}
    result, why = decision(frame(), Options(claims=[claim]))
    assert result == Decision.NOT_TESTED
    assert why.startswith(NOT_TESTABLE)


def test_arms_of_several_budgets_are_compared_at_the_largest_that_both_have():
    longer = frame(tokens=2e9)
    longer.loc[longer["arm"] == "new", "loss"] += 1.0
    table = pd.concat([frame(tokens=1e9), longer])
    assert decision(table, tokens="tokens")[0] == Decision.CONTRADICTED


def test_folders_of_runs_have_the_keys_of_their_configs_as_columns(tmp_path):
    for depth in (1, 2):
        for seed in range(3):
            config = {"seed": seed, "model": {"depth": depth}, "optimizer": {"lr": 0.01}}
            stages = [{"name": "main", "tokens": 1e6, "metrics": {"val/docs/loss": 3 - 0.1 * depth + 0.001 * seed}}]
            fake_run(tmp_path / f"depth{depth}-seed{seed}", stages, config=config, seed=seed)
    roles = {"arm": "model.depth", "seed": "seed", "value": "val/docs/loss"}
    findings = compare_table(read_foreign(tmp_path, roles), Options())
    assert findings.claims[0].claim.of == {"arm": "2"}
    assert findings.claims[0].estimate is not None
    assert findings.claims[0].estimate.value == pytest.approx(-0.1)
