"""Contexts are compared by the gain of every kind of attention."""

import numpy as np
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.context import Context

from .ladders import write_tree


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
    gains = {row["attention"]: row for row in findings.tables["Loss at the shortest context less that at the longest"]}
    assert gains["full"]["value"] == pytest.approx(0.4) and gains["window"]["value"] == pytest.approx(0.16)
    assert abs(gains["none"]["value"]) < 1e-9 and gains["full"]["lo"] < 0.4 < gains["full"]["hi"]
    assert "attention full" in findings.headline and "+0.4000 [" in findings.headline
    assert findings.tables["Loss by position, docs, context 512"][0]["position"] == 32
    write_tree(tmp_path / "other", 0, 10_000, 1, {2e6: 1.0}, config={"model": {**model, "width": 64}})
    with pytest.raises(ValueError, match="tokens"):
        Context().analyze(read_runs(tmp_path))
