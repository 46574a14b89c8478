"""LitLM calls each hook of each retention method once a step, in order, and without any changes no bit."""

import logging
import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from retention.toys import NEW, TASKS, learned

from kleiber.data.sampler import stream
from kleiber.lit import LitLM
from kleiber.objectives.clm import CLM
from kleiber.optim import AdamW, Constant
from kleiber.retention.ewc import EWC
from kleiber.retention.l2sp import L2SP
from kleiber.types import Retention


class Endless:
    def __iter__(self):
        return stream(NEW, 0, 0, 8)


def fitted(methods, steps=3):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    net = learned()
    lit = LitLM(net, CLM(), AdamW(), Constant(0), total_steps=steps, micro_batch=4, retention=methods)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(lit, train_dataloaders=Endless())
    return lit


class Watch(Retention):
    def __init__(self):
        super().__init__()
        self.calls = []

    def penalty(self, model, batch, step):
        self.calls.append(("penalty", step, len(batch)))

    def gradients(self, model, step):
        self.calls.append(("gradients", step))
        return {}

    def after_step(self, model, step, lr):
        self.calls.append(("after", step, round(lr, 6)))


def test_hooks_come_once_a_step_in_order_and_cost_no_bit():
    watch = Watch()
    plain, watched = fitted([]), fitted([watch])
    expected = []
    for step in range(3):
        expected += [("penalty", step, 4)] * 2 + [("gradients", step), ("after", step, 0.02)]
    assert watch.calls == expected
    for one, two in zip(plain.model.state_dict().values(), watched.model.state_dict().values(), strict=True):
        assert torch.allclose(one, two, atol=1e-6), "hooks that do nothing change nothing"


def test_what_a_method_tells_is_logged_beside_the_loss():
    methods = [EWC(5.0, samples=8), L2SP(5.0)]
    for method in methods:
        method.begin_stage(learned(), TASKS, 0)
    lit = fitted(methods)
    assert lit.last["retention/ewc"] > 0 and set(fitted([]).last) == set(lit.last) - {"retention/ewc"}
    assert [name for name, _ in lit.named_parameters() if name.startswith("retention")] == []


@pytest.mark.parametrize("kind", [torch.float64])
def test_what_is_remembered_moves_with_the_module(kind):
    method = L2SP()
    method.begin_stage(learned(), TASKS, 0)
    method.memory["seed"] = 3
    method.to(kind)
    assert {value.dtype for value in method.memory["start"].values()} == {kind} and method.memory["seed"] == 3
