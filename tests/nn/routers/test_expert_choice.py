"""Expert choice: how many tokens experts take, which ones, and the acknowledgement of the leak."""

import pytest
import torch

from kleiber.nn.mup import Site
from kleiber.nn.routers.expert_choice import ExpertChoice
from kleiber.types.batch import Batch


def batch_of(rows: int, time: int, real=None) -> Batch:
    return Batch(torch.randint(50, (rows, time)), real=real)


def test_every_expert_takes_its_share_of_each_sequence_and_the_tokens_that_score_best():
    router = ExpertChoice(Site(16, causal=False), 4, 2)
    real = torch.arange(8) < torch.tensor([[8], [5]])
    routing = router(torch.randn(16, 16), batch_of(2, 8, real))
    kept = routing.kept.view(2, 8, 4)
    assert kept.sum(1).tolist() == [[4] * 4, [3] * 4] and not bool(kept[1, 5:].any())
    scores = routing.scores.view(2, 8, 4)[0]
    for e in range(4):
        assert set(scores[:, e].topk(4).indices.tolist()) == set(kept[0, :, e].nonzero().flatten().tolist())
    alone = router(torch.randn(8, 16), batch_of(1, 8))
    assert int(alone.kept.sum()) == 16


def test_expert_choice_is_refused_in_a_causal_model_until_the_leak_is_acknowledged():
    with pytest.raises(ValueError, match="acknowledge_leak"):
        ExpertChoice(Site(16), 4, 2)
    assert ExpertChoice(Site(16), 4, 2, acknowledge_leak=True).k == 2


def test_padding_takes_no_place_and_changes_no_choice():
    router = ExpertChoice(Site(16, causal=False), 4, 2)
    x, real = torch.randn(1, 9, 16), torch.arange(9)[None] < 6
    padded = router(x.flatten(0, 1), batch_of(1, 9, real)).kept
    assert torch.equal(padded[:6], router(x[0, :6], batch_of(1, 6)).kept)
