"""`StageRecord`: adding scores to it, and its entry of summary.json compared with the schema."""

import json
from pathlib import Path

import jsonschema
import pytest

import kleiber
from kleiber.records.summary import StageRecord, score_matrix
from kleiber.types.score import Score

SCHEMA = json.loads((Path(kleiber.__file__).parent / "records" / "summary.schema.json").read_text())
STAGE = {"$defs": SCHEMA["$defs"], **SCHEMA["$defs"]["stage"]}
DATA = {"name": "docs", "config": "", "hash": "a", "tokenizer_hash": "b", "tokens": 10, "bytes": 10}
PARAMS = dict.fromkeys(("total", "active", "non_embedding", "embedding", "trainable"), 1)
FLOPS = {"model": 1.0, "executed": 1.0, "six_nd": 1.0}


def complete() -> StageRecord:
    return StageRecord("main", objective="clm", tasks=["docs"], data=DATA, params=PARAMS, flops=FLOPS, lr=0.1)


def test_an_entry_has_exactly_the_keys_of_the_schema():
    record = complete()
    jsonschema.validate(record.to_json(), STAGE)
    assert set(record.to_json()) == set(STAGE["properties"])


def test_scores_go_into_the_metrics_and_into_the_row_of_their_step():
    record = complete()
    record.add_row(4, {"val/docs/loss": 2.0})
    record.add_scores({"val_ema/docs/loss": Score(1.5, n=8)}, step=4)
    record.add_scores({"latency/memory_bytes/1": Score(3.0)})
    assert record.curve == [{"step": 4, "val/docs/loss": 2.0, "val_ema/docs/loss": 1.5}]
    assert record.metrics == {"val_ema/docs/loss": 1.5, "latency/memory_bytes/1": 3.0}
    entry = record.to_json()
    assert entry["metrics"] == record.metrics and entry["scores"].keys() == entry["metrics"].keys()
    assert entry["scores"]["val_ema/docs/loss"] == Score(1.5, n=8).to_json()
    assert record.scores_of(4) == {"val/docs/loss": 2.0} and record.scores_of(5) == {}
    with pytest.raises(AssertionError):
        record.add_scores({}, step=5)


@pytest.mark.parametrize(("loss", "step", "reached"), [(2.0, 4, True), (1.9, 4, False), (2.0, 3, False)])
def test_a_target_is_reached_by_the_scores_of_the_last_row_alone(loss, step, reached):
    record = complete()
    record.add_row(4, {"val/docs/loss": 2.0})
    assert record.reaches(loss, step) == reached


def test_the_matrix_has_a_row_a_stage_and_null_where_nothing_was_scored():
    stages = [
        {"name": "one", "metrics": {"val/docs/loss": 2.0}, "start_metrics": {"val/code/accuracy": 0.5}},
        {"name": "two", "metrics": {"val/docs/loss": 3.0, "val/code/accuracy": 0.9}, "start_metrics": {},
         "scores": {"val/docs/loss": {"better": "lower"}, "val/code/accuracy": {"better": "higher"}}},
    ]  # fmt: skip
    found = score_matrix({"docs": "loss", "code": "accuracy"}, stages)
    assert found["matrix"] == [[2.0, None], [3.0, 0.9]] and found["baseline"] == [None, 0.5]
    assert found["higher_is_better"] == {"docs": False, "code": True} and found["stages"] == ["one", "two"]
