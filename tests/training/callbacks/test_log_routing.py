"""Routing health: formulas of its metrics, and alarms that name layer and expert once."""

import json
import math

import pytest
import torch

from kleiber.training.callbacks.log import RoutingHealth, statistics


def step(health: RoutingHealth, balance: float = 1.0, tokens: float = 1000.0, **loads) -> tuple[dict, list[str]]:
    last = {"tokens": torch.tensor(tokens)}
    for layer, load in loads.items():
        load = torch.tensor(load)
        for sums in (health.loads, health.windows):
            sums[layer[1:]] = sums[layer[1:]] + load if layer[1:] in sums else load
        last[f"balance/{layer[1:]}"] = torch.tensor(balance)
    health.tokens += tokens
    return health.report(last)


def test_statistics_are_their_formulas():
    share = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)
    uneven = statistics(share)
    assert uneven["load_entropy"] == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.1)) / math.log(4))
    assert uneven["cv"] == pytest.approx((0.75 * 0.15**2 + 0.25 * 0.45**2) ** 0.5 / 0.25)
    assert uneven["max_violation"] == pytest.approx(1.8)
    even = statistics(torch.full((4,), 0.25, dtype=torch.float64))
    assert even == pytest.approx({"load_entropy": 1.0, "cv": 0.0, "max_violation": 0.0}, abs=1e-9)


def test_a_collapse_raises_one_alarm_and_another_after_it_recovered():
    health = RoutingHealth(patience=3)
    alarms = [step(health, l0=[500.0] * 4, l1=[1.0, 1.0, 1997.0, 1.0])[1] for _ in range(5)]
    assert [len(words) for words in alarms] == [0, 0, 1, 0, 0]
    assert "layer 1" in alarms[2][0] and "expert 2" in alarms[2][0]
    step(health, l1=[500.0] * 4)
    again = [step(health, l1=[1.0, 1.0, 1997.0, 1.0])[1] for _ in range(3)]
    assert [len(words) for words in again] == [0, 0, 1]


def test_an_expert_is_dead_after_two_windows_and_not_for_one_poor_step():
    health = RoutingHealth(window=4000)
    rows = [step(health, l0=[660.0, 660.0, 660.0, 20.0]) for _ in range(8)]
    assert [words for _, words in rows[:7]] == [[]] * 7
    (alarm,) = rows[7][1]
    assert "layer 0" in alarm and "expert 3" in alarm
    assert [row.get("moe/dead/0") for row, _ in rows] == [None] * 3 + [1.0] + [None] * 3 + [1.0]
    alive = RoutingHealth(window=4000)
    alarms = [step(alive, l0=[660.0, 660.0, 660.0, 20.0 if i % 4 else 400.0])[1] for i in range(16)]
    assert alarms == [[]] * 16


def test_a_balance_loss_below_one_raises_an_alarm():
    health = RoutingHealth(patience=2)
    alarms = [step(health, balance=0.4, l0=[500.0] * 4)[1] for _ in range(3)]
    assert [len(words) for words in alarms] == [0, 1, 0] and "layer 0" in alarms[1][0] and "0.400" in alarms[1][0]


def test_loads_and_alarms_are_resumed():
    unbroken, resumed = RoutingHealth(window=4000), RoutingHealth(window=4000)
    for _ in range(6):
        step(unbroken, l0=[660.0, 660.0, 660.0, 20.0])
    resumed.load_state_dict(unbroken.state_dict())
    after = [[step(health, l0=[660.0, 660.0, 660.0, 20.0]) for _ in range(2)] for health in (unbroken, resumed)]
    assert after[0] == after[1] and after[0][1][1]


@pytest.mark.slow
def test_shares_of_a_real_run_are_logged_and_a_healthy_one_raises_no_alarm(launch, capsys):
    options = ["model=moe", "trainer.max_steps=20", "budget.steps=20", "callbacks.routing.every=2"]
    folder = launch(*options, "callbacks.routing.window=2000", "optimizer.lr=0.002")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "moe/cv/0" in row]
    assert [row["step"] for row in rows] == list(range(2, 21, 2))
    for row in rows:
        shares = [row[f"moe/load/0/{expert}"] for expert in range(8)]
        assert sum(shares) == pytest.approx(1) and row["moe/max_violation/0"] == pytest.approx(8 * max(shares) - 1)
    assert any("moe/dead/0" in row for row in rows)
    assert "routing at step" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the balance loss")
def test_a_router_that_was_made_to_collapse_raises_the_alarm(launch, capsys, monkeypatch):
    from kleiber.nn.routers.topk import Switch

    monkeypatch.setattr(Switch, "priority", lambda self, logits: logits + 100 * torch.eye(8)[3])
    launch("model=moe", "model/router=switch", "model.mlp.k=1", "callbacks.routing.every=1", "trainer.max_steps=8")
    alarms = [line for line in capsys.readouterr().err.splitlines() if "routing at step" in line]
    assert len(alarms) == 1 and "step 5" in alarms[0] and "layer 0" in alarms[0] and "expert 3" in alarms[0]


def test_a_dense_model_has_no_row(launch):
    folder = launch("model=gpt", "trainer.max_steps=2")
    assert "moe/" not in (folder / "metrics.jsonl").read_text()
