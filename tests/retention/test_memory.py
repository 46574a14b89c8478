"""Every retention method resumes bit for bit from its state_dict, has an effect, and forgets less of a language."""

import io

import pytest
import torch

from kleiber.retention.agem import AGEM
from kleiber.retention.ewc import EWC
from kleiber.retention.l2sp import L2SP
from kleiber.retention.lwf import LwF
from kleiber.retention.replay import Replay
from kleiber.retention.wise import WiSE

from .toys import NEW, OLD, TASKS, Letters, adam, learned, loss, train

METHODS = {
    "replay": lambda: Replay(0.25),
    "replay-generated": lambda: Replay(0.25, "generated", 3000, vocabulary=Letters()),
    "ewc": lambda: EWC(3.0, samples=32),
    "l2sp": lambda: L2SP(2.0),
    "lwf": lambda: LwF(3.0, source="real"),
    "lwf-new": lambda: LwF(3.0),
    "lwf-generated": lambda: LwF(3.0, source="generated", generated_tokens=3000, vocabulary=Letters()),
    "agem": lambda: AGEM(8),
    "wise": lambda: WiSE([0.5]),
}


def begun(name, net):
    method = METHODS[name]()
    method.begin_stage(net, TASKS, seed=3)
    return method, method.data(NEW, TASKS, TASKS[0].objective)


def saved(value):
    """As a checkpoint keeps it: loaded with weights_only."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


GENERATED = ("replay-generated", "lwf-generated", "lwf-new")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in GENERATED)) for n in METHODS])
def test_a_resumed_stage_ends_with_the_same_bits(name):
    net = learned()
    method, data = begun(name, net)
    train(net, data, 8, [method])

    half = learned()
    method, data = begun(name, half)
    optimizer = adam(half)
    train(half, data, 4, [method], optimizer=optimizer)
    kept = saved({"model": half.state_dict(), "optimizer": optimizer.state_dict(), "method": method.state_dict()})

    again = learned()
    again.load_state_dict(kept["model"])
    optimizer = adam(again)
    optimizer.load_state_dict(kept["optimizer"])
    method = METHODS[name]()
    method.load_state_dict(kept["method"])
    data = method.data(NEW, TASKS, TASKS[0].objective)
    train(again, data, 8, [method], start=4, optimizer=optimizer)
    for one, two in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)


@pytest.fixture(scope="module")
def forgetful():
    net = learned()
    train(net, NEW, 40)
    return loss(net, OLD)


SLOW = ("lwf", "lwf-generated", "replay-generated")
KEEPING = [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in METHODS if n not in ("wise", "lwf-new")]


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.slow
def test_less_is_forgotten_than_without(name, forgetful):
    kept = learned()
    assert forgetful - loss(kept, OLD) > 0.3, "there is something to forget"
    method, data = begun(name, kept)
    train(kept, data, 40, [method])
    assert loss(kept, OLD) < forgetful - 0.03
    assert loss(kept, NEW) < loss(learned(), NEW), "and something is learned"


@pytest.mark.slow
def test_methods_compose():
    net = learned()
    pairs = [begun(name, net) for name in ("replay", "l2sp", "lwf-new", "ewc")]
    told = train(net, pairs[0][1], 20, [method for method, _ in pairs])
    assert told["ewc"] > 0 and told["retention/lwf"] > 0


@pytest.mark.parametrize("name", ["replay", "ewc", "agem", "lwf"])
def test_a_method_that_needs_earlier_text_refuses_to_do_without(name):
    with pytest.raises(ValueError, match=f"retention.{name} needs training samples"):
        method = METHODS[name]()
        method.begin_stage(learned(), [], 0)
        method.data(NEW, [], TASKS[0].objective)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Replay(source="generated", memory="64K"), "replay.memory=64K.*generated_tokens"),
        (lambda: WiSE([0.5, 0.5]), "alphas=.*0.5"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(make, key):
    with pytest.raises(ValueError, match=f"retention.*{key}"):
        make()


KNOBS = {
    "replay-fraction": (lambda: Replay(0.25), lambda: Replay(0.5)),
    "replay-source": (lambda: Replay(0.25), METHODS["replay-generated"]),
    "replay-tokens": (METHODS["replay-generated"], lambda: Replay(0.25, "generated", 2000, vocabulary=Letters())),
    "replay-temperature": (
        METHODS["replay-generated"], lambda: Replay(0.25, "generated", 3000, temperature=0.5, vocabulary=Letters())
    ),
    "ewc-strength": (lambda: EWC(3.0, 8), lambda: EWC(1.0, 8)),
    "ewc-samples": (lambda: EWC(3.0, 8), lambda: EWC(3.0, 16)),
    "l2sp-strength": (lambda: L2SP(2.0), lambda: L2SP(1.0)),
    "lwf-strength": (METHODS["lwf"], lambda: LwF(1.0, source="real")),
    "lwf-temperature": (METHODS["lwf"], lambda: LwF(3.0, 2.0, source="real")),
    "lwf-source": (METHODS["lwf"], METHODS["lwf-new"]),
    "lwf-tokens": (
        METHODS["lwf-generated"], lambda: LwF(3.0, source="generated", generated_tokens=800, vocabulary=Letters())
    ),
    "agem-rows": (lambda: AGEM(2), lambda: AGEM(16)),
}  # fmt: skip


OF_GENERATED = ("replay-tokens", "replay-temperature", "lwf-tokens", "lwf-source")


@pytest.mark.slow
@pytest.mark.parametrize("knob", [pytest.param(n, marks=[pytest.mark.slow] * (n in OF_GENERATED)) for n in KNOBS])
def test_every_setting_has_an_effect(knob):
    """Beside these, gamma of ewc in test_ewc.py and alphas of wise in test_wise.py."""
    found = []
    for make in KNOBS[knob]:
        net, method = learned(), make()
        method.begin_stage(net, TASKS, 3)
        train(net, method.data(NEW, TASKS, TASKS[0].objective), 6, [method])
        found.append(torch.cat([parameter.detach().flatten() for parameter in net.parameters()]))
    assert not torch.equal(*found)
