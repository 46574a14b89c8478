"""What the figures of routing are drawn from: a branch's load goes on from its trunk's."""

from fake_run import fake_run

from kleiber.evals.routing.figures import logged_loads


def test_a_branch_shows_the_load_of_its_trunk_up_to_where_it_left(tmp_path):
    rows = [{"stage": "trunk", "step": step, "moe/load/0/0": 0.5, "moe/load/0/1": 0.5} for step in (10, 20, 30)]
    rows += [{"stage": "1M", "step": 15, "moe/load/0/0": 0.1, "moe/load/0/1": 0.9}]
    rows += [{"stage": "2M", "step": step, "moe/load/0/0": 0.2, "moe/load/0/1": 0.8} for step in (25, 28)]
    stages = [{"name": "trunk"}, *({"name": name, "trunk": "trunk"} for name in ("1M", "2M"))]
    fake_run(tmp_path, stages, rows=rows)
    shown = logged_loads(tmp_path)
    one = shown[shown["expert"] == 0]
    assert list(one["step"]) == [10, 20, 25, 28] and list(one["share"]) == [0.5, 0.5, 0.2, 0.2]
    # A stage of a chain starts its steps anew: what came before is not on its axis.
    fake_run(tmp_path, [{"name": "2M"}], rows=rows)
    assert list(logged_loads(tmp_path)["step"].unique()) == [25, 28]
