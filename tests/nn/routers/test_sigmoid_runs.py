"""The bias of loss-free balance in whole runs: one update per step from the global batch, and exact resumption."""

import pytest
import torch
from safetensors.torch import load_file

RUN = ["model=moe", "model/router=lossfree", "trainer.max_steps=10", "budget.steps=10"]
RUN += ["callbacks.checkpoints.every=5"]


def weights(folder) -> dict[str, torch.Tensor]:
    (last,) = folder.glob("stages/main/checkpoints/step-00000010/model.safetensors")
    return load_file(last)


@pytest.mark.slow
def test_the_bias_moves_once_a_step_whatever_the_micro_batches(launch):
    whole, split = (weights(launch(*RUN, f"batch.micro={rows}", "trainer.precision=64")) for rows in (8, 2))
    bias = whole["blocks.0.mlp.router.bias"]
    assert float(bias.abs().max()) > 5 * 1e-3 and float(bias.abs().max()) <= 10 * 1e-3 + 1e-9
    assert torch.equal(bias, split["blocks.0.mlp.router.bias"])
    torch.testing.assert_close(whole["norm.weight"], split["norm.weight"], atol=1e-9, rtol=0)


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bias_and_weights(launch, interrupted):
    straight = weights(launch(*RUN, root="straight"))
    with interrupted(1):
        launch(*RUN, root="broken", code=130)
    resumed = weights(launch(*RUN, root="broken"))
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


def test_an_objective_that_reports_no_load_is_refused():
    from functools import partial

    from kleiber.models.transformer import Transformer
    from kleiber.nn.moe import interleaved_moe
    from kleiber.nn.routers.sigmoid import LossFree

    model = Transformer(20, depth=1, width=16, context=8, num_heads=1, mlp=partial(interleaved_moe, router=LossFree))
    with pytest.raises(ValueError, match="LossFree"):
        model.rebalance({"ce": torch.zeros(())})
