"""The design of generations: each generation reads the runs before it, and fine-tunes start from the first."""

import pytest
import yaml
from fake_run import write_summary

from kleiber.records.catalog import read_runs
from kleiber.studies.designs.design import parse_lines
from kleiber_topics.collapse.generations import Generations

ARMS = {
    "replace": {"data": "generated", "data.models": "[{last}]"},
    "accumulate": {"data": "generated", "data.models": "{all}", "data.real": "{share}"},
}
BASE = {"data": "repeat", "data.unique": "1k", "model.width": [32, 64]}


class FakeContext:
    """A folder of runs."""

    def __init__(self, folder):
        self.folder = folder

    def runs(self):
        return read_runs(self.folder) if self.folder.is_dir() else []


def design(**options):
    return Generations(BASE, ARMS, **{"generations": 3, "seeds": 2} | options)


def finish(folder, cells, leave_out=()):
    """Writes a finished run for each cell; returns their folders by what they are."""
    folders = {}
    for overrides in cells:
        values = parse_lines(overrides)
        key = (values["study.arm"], values.get("study.generation"), values.get("model.width"), values["seed"])
        folders[key] = folder / "-".join(map(str, key))
        if key[0] not in leave_out:
            folders[key].mkdir(parents=True)
            (folders[key] / "config.yaml").write_text("seed: 0\n")
            (folders[key] / "overrides.yaml").write_text(yaml.safe_dump([*overrides, "batch.tokens=512"]))
            write_summary(folders[key], status="finished")
    return folders


def test_a_generation_reads_the_last_one_or_all_before_it(tmp_path):
    rounds = design().rounds(FakeContext(tmp_path))
    first = next(rounds)
    assert len(first) == 4
    assert first[0] == [
        "data=repeat",
        "data.unique=1k",
        "model.width=32",
        "seed=0",
        "study.arm=real",
        "study.generation=0",
    ]
    runs = finish(tmp_path, first)
    for generation in (1, 2, 3):
        cells = next(rounds)
        assert len(cells) == 2 * 4
        for cell in cells:
            values = parse_lines(cell)
            at = (values["model.width"], values["seed"])
            before = [
                str(runs["real", "0", *at]),
                *(str(runs[values["study.arm"], str(g), *at]) for g in range(1, generation)),
            ]
            assert values["study.generation"] == str(generation) and values["data"] == "generated"
            if values["study.arm"] == "replace":
                assert values["data.models"] == f"[{before[-1]}]" and "data.real" not in values
            else:
                assert values["data.models"] == f"[{','.join(before)}]"
                assert float(values["data.real"]) == pytest.approx(1 / (generation + 1), abs=1e-6)
        runs |= finish(tmp_path, cells)
    assert next(rounds, None) is None


def test_fine_tunes_start_from_each_base_with_its_seed_and_none_of_its_data(tmp_path):
    rounds = design(tuned={"narrow": {"data.domain": "code", "optimizer.lr": [0.1, 0.2]}, "none": None}).rounds(
        FakeContext(tmp_path)
    )
    runs = finish(tmp_path, next(rounds))
    tuned = [parse_lines(cell) for cell in next(rounds) if "study.arm=narrow" in cell]
    assert len(tuned) == 4 * 2
    for values in tuned:
        assert set(values) == {"seed", "init", "init.path", "data.domain", "optimizer.lr", "study.arm"}
        assert values["init.path"] in {str(runs["real", "0", width, values["seed"]]) for width in ("32", "64")}


def test_a_run_that_did_not_finish_ends_its_arm_and_says_so(tmp_path, capsys):
    rounds = design().rounds(FakeContext(tmp_path))
    finish(tmp_path, next(rounds))
    finish(tmp_path, next(rounds), leave_out=["replace"])
    assert {parse_lines(cell)["study.arm"] for cell in next(rounds)} == {"accumulate"}
    assert "study.arm=replace" in capsys.readouterr().out


def test_senseless_designs_are_refused():
    with pytest.raises(ValueError, match=r"design.arms.plain=.*reads no text.*design.tuned"):
        Generations(BASE, {"plain": {"data": "builtin"}})
    with pytest.raises(ValueError, match="both have the name replace"):
        Generations(BASE, ARMS, tuned={"replace": {}})
    with pytest.raises(ValueError, match=r"design\.arms\.a\.optimizer\.lr.*is a list"):
        Generations(BASE, {"a": {"data.models": "[{last}]", "optimizer.lr": [0.01, 0.02]}})
    with pytest.raises(ValueError, match="at least one arm"):
        Generations(BASE, {"replace": None})
