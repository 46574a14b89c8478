"""Objectives are compared by the slopes of their losses, and contexts by the gain of every kind of attention."""

import numpy as np
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.objective_and_context import ClmVsMlm, Context

from .ladders import write_tree
from .trunk_runs import SIZES, stages_of, trees


def test_objectives_compare_slopes_and_not_levels(tmp_path):
    for kind, level in (("clm", 0.0), ("mlm", 3.0)):
        place = tmp_path / kind
        trees(place, SIZES[:3], [1e6, 2e6, 4e6], 2, tag=kind, shift=lambda D, level=level, **_: level)
        stages_of(place, objective=kind)
    findings = ClmVsMlm().analyze(read_runs(tmp_path))
    gap = {row["along"]: row for row in findings.tables["Difference"]}
    assert gap["N"]["difference"] < 0 and "less steeply" in gap["N"]["in words"], "a floor of 3 nats flattens logs"
    assert all(row["lo"] < row["exponent"] < row["hi"] for row in findings.tables["Local exponents"])
    part = ClmVsMlm().analyze(read_runs(tmp_path / "clm"))
    assert "no comparison yet" in part.headline


def test_context_tells_what_each_attention_gains(tmp_path):
    kinds = {"FullAttention": -0.1, "WindowAttention": -0.04, "NoMixing": 0.0}
    for kind, slope in kinds.items():
        for context in (32, 128, 512):
            for seed in range(2):
                model = {"context": context, "width": 64, "attention": {"_target_": f"kleiber.nn.{kind}"}}
                value = 2.0 + slope * np.log2(context / 32) + 0.001 * seed
                where = tmp_path / f"{kind}-{context}-{seed}"
                write_tree(where, seed, 100_000, 6e5, {1e6: value}, config={"model": model})
    for path in tmp_path.glob("*/summary.json"):
        text = path.read_text().replace('"val/docs/loss"', '"val/docs/position/32": 1.9, "val/docs/loss"')
        path.write_text(text)
    findings = Context().analyze(read_runs(tmp_path))
    gains = {row["attention"]: row for row in findings.tables["What context is worth"]}
    assert gains["full"]["gain"] == pytest.approx(0.4) and gains["window"]["gain"] == pytest.approx(0.16)
    assert abs(gains["none"]["gain"]) < 1e-9 and gains["full"]["half"] > 0
    assert "full attention gains 0.4000 +- " in findings.headline
    assert findings.tables["Loss by position, docs, context 512"][0]["position"] == 32
    write_tree(tmp_path / "other", 0, 10_000, 1, {2e6: 1.0}, config={"model": {**model, "width": 64}})
    with pytest.raises(ValueError, match="tokens"):
        Context().analyze(read_runs(tmp_path))
