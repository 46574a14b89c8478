"""Contexts are compared by the gain of every kind of attention."""

import json

import numpy as np
import pytest
from fake_run import fake_run

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
        summary = json.loads(path.read_text())
        for metrics in (stage["metrics"] for stage in summary["stages"] if stage["metrics"]):
            metrics["val/docs/position/32"] = 1.9
        path.write_text(json.dumps(summary))
    findings = Context().analyze(read_runs(tmp_path))
    gains = {row["attention"]: row for row in findings.tables["Loss at the shortest context less that at the longest"]}
    assert gains["full"]["value"] == pytest.approx(0.4) and gains["window"]["value"] == pytest.approx(0.16)
    assert abs(gains["none"]["value"]) < 1e-9 and gains["full"]["lo"] < 0.4 < gains["full"]["hi"]
    assert "attention full" in findings.answer and "+0.4000 [" in findings.answer
    assert findings.tables["Loss by position, docs, context 512"][0]["position"] == 32
    assert set(findings.figures) == {"context_docs"}, "one position is no trend"
    write_tree(tmp_path / "other", 0, 10_000, 1, {2e6: 1.0}, config={"model": {**model, "width": 64}})
    with pytest.raises(ValueError, match="tokens"):
        Context().analyze(read_runs(tmp_path))


def test_domains_of_one_data_set_are_read_apart_with_their_losses_by_position(tmp_path):
    for context, gain in ((32, 0.0), (64, 0.1)):
        metrics = {
            "val/builtin/docs/loss": 2.0 - gain, "val/builtin/docs/position/32": 1.9,
            "val/builtin/docs/position/64": 1.8, "val/builtin/code/loss": 1.0 - 2 * gain,
        }  # fmt: skip
        for seed in range(2):
            config = {"model": {"context": context, "attention": {"_target_": "kleiber.nn.FullAttention"}}}
            fake_run(tmp_path / f"{context}-{seed}", [{"metrics": metrics}], config=config, seed=seed)
    findings = Context().analyze(read_runs(tmp_path))
    gains = {row["data"]: row for row in findings.tables["Loss at the shortest context less that at the longest"]}
    assert {data: row["value"] for data, row in gains.items()} == pytest.approx(
        {"builtin/docs": 0.1, "builtin/code": 0.2}
    )
    assert gains["builtin/docs"]["n"] == 2
    by_position = findings.tables["Loss by position, builtin/docs, context 64"]
    assert {row["position"]: row["loss"] for row in by_position} == pytest.approx({32: 1.9, 64: 1.8})
    assert set(findings.figures) == {"context_builtin_docs", "context_builtin_code", "position_builtin_docs"}
