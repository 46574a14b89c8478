"""The standing attack, for a minute and a half a kind: no case ends in a way that no rule explains."""

import time

import pytest

KINDS = ("configs", "folders", "tables", "hostile")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_case_ends_unexplained(kind):
    from faults import fuzz  # imports hypothesis, for a second

    assert set(fuzz.KINDS) == set(KINDS)
    cases = fuzz.attack(kind, cases=2000, number=0, until=time.monotonic() + 90)
    unexplained = [(case.failure, case.words, case.output[-1000:]) for case in cases if case.failure]
    assert len(cases) > 20 and not unexplained
