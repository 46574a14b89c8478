"""The design of methods: base runs come first, and later cells start from their folders."""

import pytest
import yaml
from fake_run import write_summary

from kleiber.records.catalog import Run, read_runs
from kleiber.studies.designs.design import combine
from kleiber.studies.designs.grid import Methods

ARMS = {
    "none": {"retention": None},
    "replay": {"retention": "[replay]", "retention.replay.fraction": [0.1, 0.5]},
    "lora": {"adapter": "lora", "optimizer.lr": [0.1]},
}


class FakeContext:
    """A folder of runs, and those that a dry run has planned."""

    def __init__(self, folder, planned=()):
        self.folder, self.planned = folder, planned

    def runs(self):
        return [*(read_runs(self.folder) if self.folder.is_dir() else []), *self.planned]


def design(**options):
    return Methods({"data.domain": "docs"}, ARMS, **{"lrs": [0.01, 0.02], "seeds": 2, **options})


def finish(folder, overrides, status="finished"):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    write_summary(folder, status=status)


def test_every_base_comes_before_every_arm_and_arms_start_from_the_base_of_their_seed(tmp_path):
    rounds = design().rounds(FakeContext(tmp_path))
    first = next(rounds)
    assert first == [["data.domain=docs", "seed=0"], ["data.domain=docs", "seed=1"]]
    for number, overrides in enumerate(first):
        finish(tmp_path / f"base{number}", [*overrides, "batch.tokens=512"])
    second = next(rounds)
    assert len(second) == 2 * (2 + 4 + 1) and next(rounds, None) is None
    assert [
        "retention=null",
        "optimizer.lr=0.01",
        "seed=0",
        "init=checkpoint",
        f"init.path={tmp_path / 'base0'}",
    ] in second
    for cell in second:
        seed = next(line for line in cell if line.startswith("seed="))[-1]
        assert cell[-1] == f"init.path={tmp_path / f'base{seed}'}"
    assert sum("adapter=lora" in cell for cell in second) == 2, "an arm's own learning rates replace the common ones"


def test_a_base_that_failed_leaves_out_its_arms_and_says_so(tmp_path, capsys):
    rounds = design().rounds(FakeContext(tmp_path))
    first = next(rounds)
    finish(tmp_path / "base0", first[0], "failed")
    finish(tmp_path / "base1", first[1])
    assert {line for cell in next(rounds) for line in cell if "seed" in line} == {"seed=1"}
    assert "data.domain=docs seed=0" in capsys.readouterr().out


def test_at_equal_target_tokens_replay_comes_on_top():
    budgets = [
        line for cell in combine(design(tokens="1M", equal="target").arm_levels()) for line in cell if "budget" in line
    ]
    assert set(budgets) == {"budget.tokens=1M", f"budget.tokens={round(1e6 / 0.9)}", "budget.tokens=2000000"}
    budgets = [line for cell in combine(design(tokens="1M").arm_levels()) for line in cell if "budget" in line]
    assert set(budgets) == {"budget.tokens=1M"}


def count(plan):
    return sum(1 + len(combine(plan.arm_levels(base))) for base in plan.bases())


def test_the_plan_counts_all_cells():
    assert count(design()) == 2 + 2 * 7
    assert count(Methods({"model.width": [32, 64]}, {**ARMS, "replay": None}, lrs=[0.01])) == 4 + 4 * 2
    assert count(design(seeds=3, lrs=[0.01], tokens=[1000, 2000])) == 3 + 3 * 2 * 4


def test_an_arm_may_go_on_from_some_bases_alone(tmp_path):
    frozen = {"free": {"adapter": None}, "frozen": {"adapter": "freeze"}}
    plan = Methods({"model": ["gpt", "moe"]}, frozen, lrs=[0.01], seeds=1, only={"frozen": ["model=moe"]})
    for number, base in enumerate(plan.bases()):
        finish(tmp_path / f"base{number}", base)
    arms = plan.fine_tuning_cells(FakeContext(tmp_path))
    assert [cell[0] for cell in arms] == ["adapter=null", "adapter=null", "adapter=freeze"]
    assert arms[-1][-1] == f"init.path={tmp_path / 'base1'}"
    with pytest.raises(ValueError, match=r"design.only.frozen=\['model=bert'\]"):
        Methods({"model": ["gpt", "moe"]}, frozen, only={"frozen": ["model=bert"]})
    with pytest.raises(ValueError, match=r"design.only.cold"):
        Methods({}, frozen, only={"cold": []})


def test_arms_may_go_on_from_weights_that_are_trained_already(tmp_path):
    start = {"init": "hf", "init.path": "FOLDER", "init.upstream": ["a", "b"]}
    (arms,) = design(start=start).rounds(FakeContext(tmp_path))
    assert len(arms) == 2 * 7 and sum("seed=1" in cell for cell in arms) == 7
    assert all(cell[-3:] == ["init=hf", "init.path=FOLDER", "init.upstream=[a,b]"] for cell in arms)
    with pytest.raises(ValueError, match=r"design.start=\{'init': 'hf'\}.*init\.path"):
        design(start={"init": "hf"})


def test_what_a_dry_run_has_planned_counts_as_finished(tmp_path, capsys):
    context, bases = FakeContext(tmp_path / "none"), design().bases()
    assert design().fine_tuning_cells(context) == [] and "skipping 7 " in capsys.readouterr().out
    planned = [Run(tmp_path / f"base{n}", "finished", {"overrides": base}) for n, base in enumerate(bases)]
    context = FakeContext(tmp_path / "none", planned)
    assert next(iter(design().rounds(context))) == bases
    arms = design().fine_tuning_cells(context)
    assert len(arms) == 2 * 7 and {cell[-1] for cell in arms} == {f"init.path={row.folder}" for row in planned}


@pytest.mark.slow
def test_the_shipped_studies_have_the_size_they_tell():
    """As the line `Cost` of their files has it; and every retention method is tried at the same learning rates."""
    from hydra.utils import get_class

    from kleiber.config.compose import Composer, conf_dir, resolve_config

    sizes = {
        "forgetting": (135, "135 runs"),
        "forgetting_law": (156, "12 base runs and 144 that"),
        "moe_forgetting": (42, "42 runs"),
    }
    sizes |= {"routers": (90, "90 cells"), "sparsity": (60, "60 cells")}
    for study, (cells, by_name) in sizes.items():
        node = dict(resolve_config(Composer("train").compose([f"study={study}", "root=r"]))[0]["design"])
        design = get_class(node.pop("_target_"))(**node)
        assert (count(design) if isinstance(design, Methods) else len(design.cells())) == cells
        assert by_name in (conf_dir() / "study" / f"{study}.yaml").read_text()
        if study == "forgetting":
            assert not any("optimizer.lr" in arm for arm in design.arms.values())


@pytest.mark.parametrize(
    ("options", "key"),
    [({"equal": "time"}, "equal=time"), ({"equal": "target"}, "design.tokens")],
)
def test_plans_that_cannot_be_are_refused(options, key):
    with pytest.raises(ValueError, match=key):
        design(**options)
    with pytest.raises(ValueError, match=r"design.arms.both.*retention.replay.fraction"):
        Methods({}, {"both": {"retention": "[replay,ewc]"}}, tokens="1M", equal="target")
    with pytest.raises(ValueError, match=r"design\.base.*seed"):
        Methods({"seed": 1}, ARMS)
    with pytest.raises(ValueError, match=r"retention.KEY"):
        combine(Methods({}, {"replay": {"retention": {"replay": {"fraction": 0.1}}}}).arm_levels())
