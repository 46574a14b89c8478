"""Names of arms and measures as figures show them."""

import pytest

from kleiber.studies.compare.labels import readable


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_qk_norm", "no QK norm"), ("moe", "mixture of experts"), ("dense_total", "dense total"), ("mcc",
        "Matthews correlation"), ("lstm_8", "LSTM 8"), ("plain", "plain"), ("full", "full"), ("width 64", "width 64"),
    ],
)  # fmt: skip
def test_names_have_spaces_and_known_terms_and_others_stay(name, text):
    assert readable(name) == text
