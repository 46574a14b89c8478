"""Rows come back from their columns as they were."""

import json
import math

import numpy as np

from kleiber.records.archive import pack_rows, unpack_rows


def test_packed_rows_are_equal_to_the_last_digit_in_their_order_and_that_of_their_keys():
    rng = np.random.default_rng(0)
    single = np.array([*rng.normal(size=50), 1e-45, 3.4e38, -0.0, math.inf], dtype=np.float32).tolist()
    rows = []
    for step, value in enumerate(single):
        rows += [{"step": step, "stage": "a", "loss": value, "time": value / 3}, {"loss": value, "step": step}]
        rows += [{"step": step, "stage": None, "note": "text", "mixed": value if step % 2 else 1}] * (step % 3)
    packed = json.loads(json.dumps(pack_rows(rows)))
    assert json.dumps(unpack_rows(packed)) == json.dumps(rows)
    columns = packed["kinds"][0]
    assert columns["loss"].keys() == {"single"} and isinstance(columns["time"], list)
    assert max(len(str(value)) for value in columns["loss"]["single"]) < max(len(str(value)) for value in single)
    assert unpack_rows(pack_rows([])) == [] and unpack_rows(pack_rows([{"step": 1, "x": math.nan}]))[0]["step"] == 1
