"""Which token of a text is predicted, from which others."""

import pytest
import torch
from evals.routing.moe_text import Rows
from evals.small_models import subject_on_rows, tiny

from kleiber.data.tokenizers import Bytes
from kleiber.objectives.mlm import MLM
from kleiber_topics.interpretability.attribution.predictions import choose_predictions


def test_a_masked_model_hides_the_predicted_token():
    masked = subject_on_rows(tiny("masked"), Rows(0, 30), objective=MLM(Bytes()))
    chosen = choose_predictions(masked, "text", 3, 8, 4, 0)
    assert (chosen.batch.tokens[:, 4] == Bytes.mask).all() and not chosen.candidates[:, 4].any()
    assert chosen.candidates.sum(1).tolist() == [chosen.batch.tokens.shape[1] - 1] * 3
    assert (chosen.targets == torch.from_numpy(Rows(0, 30).tokens[:3, 4])).all()


def test_the_last_real_token_is_predicted():
    chosen = choose_predictions(subject_on_rows(tiny("dense"), Rows(0, 30)), "text", 12, 9, None, 0)
    assert chosen.at.tolist() == [8] * 11 + [7]  # the last row has 9 real tokens, of which the last one is predicted


def test_fewer_than_two_texts_are_refused():
    with pytest.raises(ValueError, match=r"needs >= 2 texts with a token number 9"):
        choose_predictions(subject_on_rows(tiny("dense"), Rows(0, 30, rows=1)), "text", 3, 9, 9, 0)
