"""Sequences of tasks in balanced orders, as chains and as runs of single tasks."""

from collections import Counter
from itertools import pairwise

import pytest

from kleiber.config.check import check
from kleiber.config.compose import Composer, conf_dir, resolve_config
from kleiber.config.stages import stage_configs
from kleiber.runs.inherit import complete_config
from kleiber.studies.designs.sequences import Sequences, hydra_literal, orders_of, stage_node, williams
from kleiber.studies.sequence_metrics import AGAIN

TASKS = {"docs": {"data.domain": "docs"}, "trec": {"data": "topic/trec", "objective": "classify", "data.path": "x y"}}
ARMS = {"none": {}, "replay": {"retention": "replay", "retention.replay.fraction": [0.1, 0.2]}}


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_orders_are_balanced_for_place_and_for_what_came_before(n):
    rows = williams(n)
    assert rows[0] == list(range(n)) and len(rows) == (n if n % 2 == 0 else 2 * n)
    assert set(Counter((place, row[place]) for row in rows for place in range(n)).values()) == {len(rows) // n}
    followed = Counter(pair for row in rows for pair in pairwise(row))
    assert len(followed) == n * (n - 1) and len(set(followed.values())) == 1


def test_every_seed_has_every_task_alone_and_every_order_by_every_arm():
    plan = Sequences(TASKS, ARMS, lrs=[0.01, 0.03], seeds=2, starts={"scratch": {}, "base": {"init.path": "r/{seed}"}})
    cells = plan.cells()
    assert len(cells) == 2 * 2 * (2 * 2 + 2 * 3 * 2)
    alone = [cell for cell in cells if "stages=chain" not in cell]
    assert ["data=topic/trec", "objective=classify", "data.path=x y", "optimizer.lr=0.01", "seed=0",
            "study.start=scratch"] in alone  # fmt: skip
    assert [line for line in cells[-1] if "init" in line] == ["init.path=r/1"]
    assert len(Sequences(TASKS, ARMS, orders=1, seeds=1, alone=False).cells()) == 3
    combined = Sequences(TASKS, {"none": {"optimizer.lr": 1}}, orders=1, seeds=1, starts={"hf": {"optimizer.lr": 2}})
    assert all("optimizer.lr=2" in cell for cell in combined.cells()[2:]), "a start's own rate is for what starts there"


def test_a_cell_is_a_config_that_passes_the_check(tmp_path):
    """The last stage trains the first task again, without a method; the others after the first have the arm's."""
    arms = {**ARMS, "both": {"retention": "replay", "adapter": "lora"}}
    plan = Sequences(TASKS, arms, orders=[["trec", "docs"]], seeds=1)
    cell = next(cell for cell in plan.cells() if "adapter=lora" in cell)
    lines = [line for line in cell if not line.startswith("study.")]
    config, _ = resolve_config(Composer("train").compose(["root=r", *lines]))
    check(config)
    stages = stage_configs(config)
    assert list(stages) == ["trec", "docs", AGAIN]
    assert [bool(row["retention"]) for row in stages.values()] == [False, True, False]
    assert [bool(row["adapter"]) for row in stages.values()] == [False, True, False]
    assert stages[AGAIN]["data"] == stages["trec"]["data"] and stages["trec"]["data"]["path"] == "x y"
    assert stages["docs"]["data"]["domain"] == "docs" and "Labelled" in stages["trec"]["data"]["_target_"]


def test_every_stage_has_the_budget_of_the_reference_runs():
    cell = Sequences(TASKS, {"none": {}}, orders=1, seeds=1).cells()[-1]
    lines = [line for line in cell if not line.startswith("study.")]
    config, _ = resolve_config(Composer("train").compose(["root=r", "budget.tokens=120K", *lines]))
    assert [stage["budget"]["tokens"] for stage in stage_configs(config).values()] == ["120K"] * 3


def test_a_stage_with_data_of_its_own_reads_the_tokenizer_of_the_start():
    chain = {"one": {"data": {"domain": "docs"}}, "two": {"data": stage_node("two", TASKS["trec"])["data"]},
             "three": {"data": {**stage_node("t", TASKS["trec"])["data"], "tokenizer": "bpe"}}}  # fmt: skip
    plain, _ = resolve_config(
        Composer("train").compose(["root=r", "stages=chain", f"stages.chain={hydra_literal(chain)}"])
    )
    assert "tokenizer" not in plain["stages"]["chain"]["two"]["data"]
    from kleiber.runs.inherit import _with_tokenizer

    result = _with_tokenizer(plain, "hub/name", set())
    by_name = {name: row["data"].get("tokenizer") for name, row in stage_configs(result).items()}
    assert by_name == {"one": "hub/name", "two": "hub/name", "three": "bpe"}
    check(result)
    assert complete_config(plain, []) == plain, "without a start point nothing is taken over"


TOPICS = "{trec:{data:topic/trec,objective:classify},imdb:{data:topic/imdb,objective:classify},code:{data.domain:code}}"


@pytest.mark.parametrize(
    ("lines", "names", "count"),
    [
        ([], ["docs", "code"], 28),
        (["~design.tasks", f"+design.tasks={TOPICS}"], ["trec", "imdb", "code"], 2 * (3 + 2 * 6)),
    ],
)
def test_the_shipped_sequence_has_the_size_it_tells_and_other_tasks_replace_its_own(lines, names, count):
    node = dict(resolve_config(Composer("train").compose(["study=continual", "root=r", *lines]))[0]["design"])
    assert list(node["tasks"]) == names
    assert node.pop("_target_").endswith("Sequences") and len(Sequences(**node).cells()) == count
    assert "28 runs" in (conf_dir() / "study/continual.yaml").read_text()


def test_text_is_quoted_as_hydra_reads_it():
    value = {"a": "it's, {b}", "n": None, "t": True, "x": [1, 2.5, "4M"]}
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"k={hydra_literal(value)}").value() == value


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ({"tasks": {"docs": {}}}, "at least two tasks"),
        ({"tasks": {**TASKS, AGAIN: {}}}, "design.tasks=.*again"),
        ({"tasks": {**TASKS, "x": {"datum": "y"}}}, "design.tasks.x.datum.*Did you mean"),
        ({"tasks": {**TASKS, "x": {"data": "topic/tree"}}}, "data=topic/tree.*topic/trec"),
        ({"tasks": {**TASKS, "x": {"retention": "ewc"}}}, "design.tasks.x.retention"),
        ({"arms": {"wise": {"retention": "wise"}}}, "design.arms.*retention=wise"),
        ({"arms": {"none": None}}, r"design.arms=\[\]"),
        ({"tasks": {**TASKS, **dict.fromkeys([*TASKS][1:])}}, "at least two tasks"),
        ({"orders": 3}, "design.orders=3.*1 and 2"),
        ({"orders": [["docs"]]}, "design.orders.*docs, trec"),
    ],
)
def test_plans_that_cannot_be_are_refused(named, why):
    with pytest.raises(ValueError, match=why):
        Sequences(**{"tasks": TASKS, "arms": ARMS, **named})


def test_orders_may_be_named_and_each_is_there_once():
    assert orders_of(["a", "b"], [["b", "a"]]) == [["b", "a"]]
    with pytest.raises(ValueError, match=r"design\.orders="):
        orders_of(["a", "b"], [["b", "a"], ["b", "a"]])
