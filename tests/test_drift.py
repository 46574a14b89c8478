"""How far expert loads move, against distances worked out by hand."""

import pytest
import torch

from kleiber.evals.drift import shifts, variation


def shares(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_total_variation_is_half_the_sum_of_differences():
    assert variation(shares(0.5, 0.5, 0.0), shares(0.5, 0.0, 0.5)) == pytest.approx(0.5)
    assert variation(shares(1.0, 0.0), shares(0.0, 1.0)) == 1.0
    assert variation(shares(0.3, 0.7), shares(0.3, 0.7)) == 0.0


def test_shifts_compare_before_with_after_and_earlier_text_with_new():
    before = {"docs": {"0": shares(0.5, 0.5)}, "code": {"0": shares(0.9, 0.1)}, "law": {"0": shares(0.5, 0.5)}}
    after = {"docs": {"0": shares(0.2, 0.8)}, "code": {"0": shares(0.9, 0.1)}, "law": {"0": shares(0.7, 0.3)}}
    found = shifts(before, after, ["docs"], ["code", "law"])
    assert found == pytest.approx({
        "drift/docs/load_shift/0": 0.3, "drift/code/load_shift/0": 0.0, "drift/law/load_shift/0": 0.2,
        "drift/docs/load_gap_before/0": 0.2, "drift/docs/load_gap_after/0": 0.6,
    })  # fmt: skip
    assert set(shifts(before, after, ["docs"], [])) == {"drift/docs/load_shift/0"}
