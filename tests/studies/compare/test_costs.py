"""Costs stand beside each other with their ratios, and those of an arm follow from its best run."""

from kleiber.studies.compare.costs import (
    LATENCY,
    arms_without_latency,
    cost_table,
    costs_of_leaf,
    facts_of_arm,
    uneven_speeds,
)
from kleiber.studies.compare.measures import Measures

DECODE = f"{LATENCY}decode_tokens_per_s"
FACTS = {
    "moe": {
        "speed": 5e3,
        "memory": 9e5,
        f"{LATENCY}decode_tokens_per_s/1": 300.0,
        f"{LATENCY}decode_tokens_per_s/8": 2e3,
    },
    "dense": {"speed": 1e4, "memory": 4e5, f"{LATENCY}decode_tokens_per_s/1": 400.0},
    "old": {"speed": 1e4},
}


def test_costs_stand_beside_each_other_with_their_ratios_for_the_pairs_that_have_them():
    table = {row["cost"]: row for row in cost_table(FACTS, [("moe", "dense"), ("moe", "old")])}
    assert set(table) == {
        "training tokens/s", "bytes of weights and one full context", "decode tokens/s, 1 at once"
    }  # fmt: skip
    assert table["training tokens/s"]["moe / dense"] == table["training tokens/s"]["moe / old"] == 0.5
    assert table["decode tokens/s, 1 at once"] == {
        "cost": "decode tokens/s, 1 at once", "moe": 300.0, "dense": 400.0, "moe / dense": 0.75,
    }  # fmt: skip


def test_energy_and_price_of_an_arm_are_those_of_its_tokens_at_its_speed():
    stage = {"seconds": 100.0, "cost": {"joules": 2000.0, "price": 0.5}, "tokens_per_s": 50.0}
    facts = facts_of_arm([{"tokens": 18e4, **costs_of_leaf({}, stage)}] * 3, Measures())
    assert facts["watts"] == 20.0 and facts["watt_hours"] == 20.0 and facts["price"] == 18.0  # an hour of training
    table = {
        row["cost"]: row for row in cost_table({"moe": facts, "dense": {**facts, "price": 9.0}}, [("moe", "dense")])
    }
    assert table["price of training"]["moe / dense"] == 2.0 and table["watt-hours of training"]["moe"] == 20.0


def test_arms_without_latency_are_named_where_others_have_it():
    (note,) = arms_without_latency(FACTS)
    assert note["code"] == "latency" and " old;" in note["text"]
    assert arms_without_latency({"old": FACTS["old"]}) == arms_without_latency({"moe": FACTS["moe"]}) == []


def test_an_arm_whose_fastest_run_is_far_above_its_median_run_is_named():
    speeds = {"lion": [4300.0, 3800.0, 10_000.0], "adamw": [4200.0, 4000.0, 4100.0], "foreign": []}
    (note,) = uneven_speeds(speeds)
    assert note["code"] == "speed" and "(lion 2.3)" in note["text"] and "adamw" not in note["text"]
    assert uneven_speeds({"adamw": speeds["adamw"]}) == []
