"""Text with triggers: the answer follows from the trigger alone, and the planted places are those of the triggers."""

import numpy as np
import pytest

from kleiber.data.builtin import Builtin
from kleiber_topics.interpretability.trigger import ANSWERS, QUESTION, TRIGGERS, Trigger


def corpus(cache_dir, context: int = 24, **options: object):
    return Trigger(Builtin("docs", "bytes", max_bytes=20_000), **options).prepare(context, cache_dir)


def test_a_row_has_one_trigger_which_decides_its_answer_the_only_target(cache_dir):
    prepared = corpus(cache_dir)
    rows = prepared.validation["trigger"].first(480)
    for samples in (prepared.train, rows):
        index = np.arange(20)
        batch, planted = samples.gather(index), samples.planted(index)
        tokens = batch.tokens.numpy()
        triggers = np.isin(tokens, TRIGGERS)
        assert (triggers.sum(1) == 1).all() and (triggers == planted.causes).all() and (planted.targets == 24).all()
        answers = [ANSWERS[TRIGGERS.index(token)] for token in tokens[triggers]]
        assert (tokens[:, -1] == answers).all() and (tokens[:, -2] == QUESTION).all()
        assert (batch.weights.numpy() == (np.arange(25) == 24)).all()
        assert len(set(tokens[triggers])) > 4 and len({int(row.argmax()) for row in triggers}) > 8
    assert len(rows) == 20 and rows.num_tokens == 480


def test_rows_depend_on_seed_and_epoch_and_the_keys_have_their_effect(cache_dir):
    first, other = corpus(cache_dir), corpus(cache_dir, seed=1)
    index = np.arange(30)
    tokens = first.train.gather(index).tokens
    assert (tokens == first.train.gather(index).tokens).all() and first.hash != other.hash
    assert (tokens != other.train.gather(index).tokens).any()
    assert (first.train.planted(index).causes != np.isin(first.train.gather(index, 1).tokens, TRIGGERS)).any()
    two = corpus(cache_dir, triggers=2).train.gather(index).tokens.numpy()
    assert set(two[np.isin(two, TRIGGERS)]) == set(TRIGGERS[:2])
    assert corpus(cache_dir, max_bytes=5_000).num_tokens < first.num_tokens
    with pytest.raises(ValueError, match=r"model.context=2 must be >= 3"):
        corpus(cache_dir, context=2)
