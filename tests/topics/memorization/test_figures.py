"""Charts of canaries and of samples, with what a run without canaries has."""

from __future__ import annotations

from kleiber_topics.memorization.memorization import Memorization

CANARY = {"exposure": 3.0, "extracted": False, "exact": True, "log_prob": -2.0}
SCORE = {"value": 3.0, "lo": 2.0, "hi": 4.0, "n": 2}
LOSSES = {"docs": {"train": [1.0, 1.5, 2.0], "held_out": [1.2, 2.5]}}


def test_there_is_a_chart_of_canaries_and_a_chart_of_each_data_set() -> None:
    canaries = [{"repetitions": n, **CANARY} for n in (0, 10)]
    scores = {"canaries": {"exposure/0": SCORE, "exposure/10": SCORE, "extracted/0": SCORE}}
    results = {"scores": scores, "details": {"samples": LOSSES | {"code": LOSSES["docs"]}, "canaries": canaries}}
    charts = Memorization().figures(results, None)
    assert list(charts) == ["exposure", "losses", "losses_1"]
    exposure, losses = str(charts["exposure"].to_dict()), charts["losses"].to_dict()
    assert "repetitions in the training text" in exposure and "1.44" in exposure
    (rows,) = losses["datasets"].values()
    for kind in ("training samples", "held-out samples"):
        assert abs(sum(row["value"] for row in rows if row["kind"] == kind) - 1) < 1e-9
    assert list(Memorization().figures({"scores": {}, "details": {"samples": LOSSES}}, None)) == ["losses"]
