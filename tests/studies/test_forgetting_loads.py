"""How the load of experts moves, by text, layer and arm."""

from pathlib import Path

import pytest

from kleiber.records.catalog import Run, read_runs
from kleiber.studies import forgetting
from kleiber.studies.claims import decide_together
from kleiber.studies.compare.rows import DENSE, FROZEN, MIXTURE, label
from kleiber.studies.forgetting import Forgetting

from .mixture_runs import OPTIONS, write_study


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "moe_forgetting"
    write_study(home)
    return Forgetting(**OPTIONS).compare(read_runs(home))


@pytest.mark.slow
def test_loads_have_a_row_for_each_text_layer_and_arm_with_experts(record):
    rows = {(row["arm"], row["text"], row["distance"], row["layer"]): row for row in record["loads"]}
    entry = rows[label(FROZEN), "docs", "before to after", 1]
    assert entry["value"] == pytest.approx(0.121) and entry["lo"] < 0.121 < entry["hi"] and entry["n"] == 3
    assert rows[label(MIXTURE), "docs", "to the new text, after", 0]["value"] == pytest.approx(0.25)
    assert len(rows) == 2 * 2 * 4 and label(DENSE) not in {arm for arm, *_ in rows}


def test_shifts_of_a_task_with_a_slash_in_its_name_are_read():
    metrics = {"drift/builtin/docs/load_shift/1": 0.5, "drift/weights": 1.0, "drift/builtin/docs/kl": 0.1}
    run = Run(Path(), "finished", {"stages": [{"metrics": metrics}]})
    assert forgetting.shifts(run) == {("load_shift", "builtin/docs", 1): 0.5}


def test_only_earlier_texts_count_when_the_router_is_judged(record):
    """The load of the new text moves by .5 in both arms; that of the earlier text by .2 less with a frozen router."""
    (result,) = decide_together(forgetting.frozen_load(record["rows"]), 0.9)
    assert result.estimate is not None and result.estimate.value == pytest.approx(-0.2)
    assert result.decision == "supported" and result.claim.direction == "lower"
    assert forgetting.frozen_load(record["rows"][record["rows"]["method"] != FROZEN]) == []
    distances = {("load_shift", "docs", 0): 0.1, ("load_shift", "code", 0): 0.9, ("load_gap_before", "docs", 0): 0.2}
    assert forgetting.earlier_shift(distances) == pytest.approx(0.1)
