"""Verdicts: the opposite of a claim is decided the other way, and the claims of a study share its error rate."""

import pytest

from kleiber.studies.compare.decision import Criterion, estimate_around, interval, level_of_each
from kleiber.studies.compare.verdicts import MeanClaim, decide_means, verdict


@pytest.mark.parametrize(("value", "half", "holds"), [(0.3, 0.1, True), (-0.3, 0.1, False), (0.05, 0.1, None)])
def test_the_opposite_of_a_claim_is_decided_the_other_way(value, half, holds):
    higher, lower = (
        verdict("code", "text", estimate_around(sign * value, half, 3, "nats"), Criterion(direction))
        for sign, direction in ((1, "higher"), (-1, "lower"))
    )
    assert higher["holds"] is lower["holds"] is holds
    turned = verdict("code", "text", estimate_around(value, half, 3, "nats"), Criterion("lower"))
    assert turned["holds"] is (None if holds is None else not holds)


def test_claims_about_means_share_the_error_rate_and_those_without_values_take_no_part():
    values = [0.14, 0.16, 0.15]
    claims = [
        MeanClaim("rises", "it rises", values, "higher", unit="nats"), MeanClaim("empty", "nothing was measured", []),
        MeanClaim("falls", "it falls", values), MeanClaim("same", "it stays", values, "within", 1.0),
    ]  # fmt: skip
    verdicts = decide_means(claims, 0.9)
    assert [(entry["code"], entry["holds"]) for entry in verdicts] == [
        ("rises", True),
        ("falls", False),
        ("same", True),
    ]
    assert all((entry["lo"], entry["hi"]) == interval(values, level_of_each(0.9, 3, 1)) for entry in verdicts)
    assert verdicts[0]["text"].endswith(" nats") and verdicts[0]["value"] == pytest.approx(0.15)
    assert decide_means(claims[1:2], 0.9) == []
