"""Reliability diagrams and risk-coverage curves of planted details."""

from kleiber_topics.calibration.figures import figures

POINT = {"items": 5, "confidence": 0.5, "accuracy": 0.4, "lo": 0.2, "hi": 0.6}
CURVE = [{"coverage": c, "error": 0.3, "lo": 0.2, "hi": 0.4} for c in (0.5, 1.0)]


def test_scaled_points_are_drawn_beside_those_as_they_are():
    details = {
        "a": {"reliability": [POINT], "coverage": CURVE, "scaled": [POINT]},
        "b<": {"reliability": [POINT], "coverage": CURVE},
    }
    charts = figures(details)
    spec = charts["reliability"].to_dict()
    points = [row for rows in spec["datasets"].values() for row in rows if "kind" in row]
    assert sorted(row["kind"] for row in points) == ["as it is", "as it is", "temperature-scaled, other half"]
    assert {row["data"] for rows in charts["risk_coverage"].to_dict()["datasets"].values() for row in rows} == {
        "a",
        "b<",
    }
    alone = figures({"a": {"reliability": [POINT], "coverage": CURVE}})["reliability"].to_dict()
    assert "temperature" not in str(alone)


def test_there_is_no_figure_without_data():
    assert figures({}) == {}
