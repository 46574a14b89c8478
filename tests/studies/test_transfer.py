"""What pre-training gives: planned in rounds, tuned, paired with the same model from nothing, counted in labels."""

import json
import math
from pathlib import Path

import pytest
import yaml
from fake_run import fake_run

from kleiber.records.catalog import Run, read_runs
from kleiber.studies.compare.transfer_rows import best_rates, needed, rows_of
from kleiber.studies.designs.pretraining import Pretraining, hub_name
from kleiber.studies.transfer import Transfer

KINDS = {
    "mlm": {"model": ["model=bert"], "pretrain": ["objective=mlm"], "lrs": [0.003, 0.01], "scratch": [0.002, 0.005]},
    "hf": {"model": ["model=hf", "model.path=bert"], "pretrain": ["objective=mlm"], "lrs": [0.001]},
}
SOURCES = {"docs": ["data=builtin"], "code": ["data=builtin", "data.domain=code"]}
TASKS = {"toy": ["data=labelled", "data.path=./toy.jsonl"], "other": ["data=labelled", "data.path=./other.jsonl"]}


class Ground:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runs(self) -> list[Run]:
        return read_runs(self.folder) if self.folder.is_dir() else []


def design(**changes) -> Pretraining:
    told = {"kinds": KINDS, "sources": SOURCES, "tasks": TASKS, "sizes": ["1M"], "finetune": ["objective=classify"]}
    return Pretraining(**{**told, "seeds": 2, **changes})


def write(home: Path, lines: list[str], **metrics: float) -> Path:
    """A finished run as the overrides plan it."""
    told = dict(line.split("=", 1) for line in lines)
    study = {key.split(".")[1]: value for key, value in told.items() if key.startswith("study.")}
    folder = home / f"run{len(list(home.glob('*')))}"
    (folder / "tokenizer").mkdir(parents=True)
    stage = {
        "tasks": ["toy"], "lr": float(told.get("optimizer.lr", 0.02)),
        "metrics": {f"val/toy/{key}": value for key, value in metrics.items()},
        "data": {"tokens": round(1000 * float(told.get("data.share", 1)))}, "params": {"total": 10, "non_embedding": 5},
    }  # fmt: skip
    seed = int(told["seed"])
    return fake_run(folder, [stage], config={"study": study, "seed": seed, "data": {}}, overrides=lines, seed=seed)


def base(kind: str, source: str, seed: int) -> list[str]:
    told = [*KINDS[kind]["model"], *KINDS[kind]["pretrain"], *SOURCES[source], "data.max_bytes=1M"]
    return [*told, f"study.kind={kind}", f"study.start={source}/1M", f"seed={seed}"]


def test_bases_come_first_then_tuning_at_one_seed_then_every_seed_and_share_at_the_best_rate(tmp_path):
    plan = design(shares=[0.1, 1])
    rounds = plan.rounds(Ground(tmp_path))
    bases = next(rounds)
    assert len(bases) == 2 * 2 * 2 and base("mlm", "docs", 0) in bases
    folders = {tuple(lines): write(tmp_path, lines, loss=1.0) for lines in bases}
    tuning = next(rounds)
    assert len(tuning) == 2 * 2 * 2, "two tasks, two rates, from nothing and from the first text"
    assert all("seed=0" in lines and not any("share=0.1" in line for line in lines) for lines in tuning)
    new = next(lines for lines in tuning if "study.start=scratch" in lines)
    first = folders[tuple(base("mlm", "docs", 0))]
    assert f"data.tokenizer={first}/tokenizer" in new and "model=bert" in new and "objective=mlm" not in new
    assert not any(line.startswith("init") for line in new)
    for lines in tuning:
        lr = float(next(line for line in lines if line.startswith("optimizer.lr")).split("=")[1])
        write(tmp_path, lines, accuracy=0.9 if lr in (0.01, 0.002) else 0.8, loss=0.5)
    scoring = next(rounds)
    assert len(scoring) == 2 * 2 * 2 * (1 + 2 + 2), "seeds, tasks, shares; nothing and two texts of two kinds"
    for lines in scoring:
        told = dict(line.split("=", 1) for line in lines)
        rate = "0.002" if told["study.start"] == "scratch" else "0.01" if told["study.kind"] == "mlm" else "0.001"
        assert told["optimizer.lr"] == rate, "texts that were not tuned take the rate of the first one"
        assert ("data.share" in told) == (told["study.share"] == "0.1") and told.get("data.seed", told["seed"]) == told[
            "seed"
        ]
        if told["study.start"] == "code/1M":
            assert told["init.path"] == str(folders[tuple(base(told["study.kind"], "code", int(told["seed"])))])


@pytest.mark.parametrize("score", ["accuracy", "pearson", "micro_f1"])
def test_a_task_that_names_no_score_is_read_by_that_of_its_kind(tmp_path, score):
    lines = ["study.kind=mlm", "study.start=docs/1M", "study.task=toy", "study.share=1", "seed=0"]
    others = {} if score == "pearson" else {"accuracy": 0.7}
    write(tmp_path, lines, loss=1.0, **(others | {score: 0.5}))
    (row,) = rows_of(read_runs(tmp_path)).to_dict("records")
    assert (row["metric"], row["score"]) == (score, 0.5)


def test_parts_are_named_and_what_is_not_there_is_refused(tmp_path, monkeypatch):
    part = design(only=["mlm", "docs", "toy"])
    assert [(start.kind, start.name) for start in part.starts()] == [("mlm", "scratch"), ("mlm", "docs/1M")]
    assert list(part.tasks) == ["toy"]
    for changes, words in (
        ({"only": ["mml"]}, "design.only has mml.*mlm"),
        ({"shares": [0]}, r"shares in \(0, 1\]"),
        ({"kinds": {"a": {"model": [], "pretrain": [], "lrs": []}}}, "every kind needs lrs"),
        ({"tasks": {}}, "one of each"),
    ):
        with pytest.raises(ValueError, match=words):
            design(**changes)
    assert hub_name(["data=glue/sst2"]) == "nyu-mll/glue" and hub_name(["data=builtin"]) is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("kleiber.config.hub.reachable", lambda: False)
    monkeypatch.setenv("KLEIBER_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"nyu-mll/glue for sst2.*KLEIBER_DATA.*design\.only"):
        next(design(tasks={"sst2": ["data=glue/sst2"]}).rounds(Ground(tmp_path)))
    (tmp_path / "glue").mkdir()
    assert next(design(tasks={"sst2": ["data=glue/sst2"]}).rounds(Ground(tmp_path)))


def test_labels_needed_are_read_off_the_curve_from_nothing():
    curve = {10.0: 0.5, 100.0: 0.7, 1000.0: 0.6, 10000.0: 0.9}
    assert needed(curve, 0.6) == pytest.approx(10**1.5) and needed(curve, 0.7) == pytest.approx(100)
    assert needed(curve, 0.8) == pytest.approx(10**3.5), "its running maximum where it falls"
    assert needed(curve, 0.95) == math.inf and needed(curve, 0.4) == 0.0 and needed(curve, 0.5) == 10.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """From nothing .5 + .1 per decade of labels and of the seed; a base is worth a decade, but never above .75."""
    home = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        for share in (0.01, 0.1, 1):
            lines = [
                f"seed={seed}",
                "study.task=toy",
                "study.kind=mlm",
                f"study.share={share:g}",
                f"data.share={share}",
            ]
            score = 0.7 + 0.1 * math.log10(share) + 0.02 * seed
            write(home, [*lines, "study.start=scratch", "optimizer.lr=0.005"], accuracy=score, loss=0.5)
            write(home, [*lines, "study.start=docs/1M", "optimizer.lr=0.01"], accuracy=score + 0.1, loss=0.4)
            write(home, [*lines, "study.start=docs/2M", "optimizer.lr=0.01"], accuracy=score - 0.01 * seed, loss=0.4)
        lines = [f"seed={seed}", "study.task=toy", "study.kind=hf", "study.start=docs/1M", "study.share=1"]
        write(home, [*lines, "optimizer.lr=0.001"], accuracy=0.79 + 0.02 * seed, loss=0.4)
    other = ["seed=0", "study.task=toy", "study.kind=mlm", "study.start=scratch", "study.share=1", "optimizer.lr=0.002"]
    write(home, other, accuracy=0.99, loss=0.1)  # tried at one seed, and no part of the comparison
    return read_runs(home)


def test_gaps_are_paired_and_data_is_counted(runs):
    found = Transfer(against={"mlm": "hf"}).analyse(runs)
    told = {one["code"]: one for one in found.verdicts}
    helps = told["mlm_docs/1M_scratch_toy_1"]
    assert helps["holds"] is True and helps["value"] == pytest.approx(0.1) and helps["hi"] - helps["lo"] < 1e-6
    weak = told["mlm_docs/2M_scratch_toy_1"]
    assert weak["holds"] is None and weak["lo"] < 0 < weak["hi"] and weak["text"].startswith("undecided")
    assert told["mlm_docs/1M_hf_toy_1"]["value"] == pytest.approx(0.01)
    assert "censored" in told and "toy +0.1000" in found.headline
    data = {(one["start"], one["share"]): one for one in found.tables["Effective data transferred"]}
    assert data["docs/1M", 0.01]["times the labels"] == "10" and data["docs/1M", 0.01]["labelled tokens"] == 10
    assert data["docs/1M", 0.1]["transferred tokens"] == "900"
    assert data["docs/1M", 1.0]["times the labels"] == "more than all labels"
    assert [one["lr"] for one in found.tables["Scores"] if one["start"] == "scratch"] == [0.005] * 3
    with pytest.raises(ValueError, match="no finished run of any task"):
        Transfer().analyse([])


def test_one_seed_makes_no_claim(runs):
    found = Transfer().analyse([run for run in runs if run.summary["seed"] == 0])
    assert not any(one["code"].startswith("mlm") for one in found.verdicts) and "no interval: 1 seed" in found.headline
    assert any(one["code"] == "few_seeds" for one in found.verdicts)


def test_every_figure_is_drawn(runs):
    pytest.importorskip("altair")
    made = Transfer().analyse(runs).figures
    assert list(made) == ["gaps", "labels", "transferred", "texts"]
    for name, make in made.items():
        assert "toy" in json.dumps(make().to_dict()), name


def test_of_a_score_that_falls_the_lowest_is_the_best(tmp_path):
    lines = ["study.kind=mlm", "study.start=docs/1M", "study.task=toy", "study.share=1", "seed=0"]
    for lr, rmse in ((0.01, 0.4), (0.02, 0.9)):
        home = write(tmp_path, [*lines, f"optimizer.lr={lr}"], loss=1.0, rmse=rmse, pearson=0.5)
        config = yaml.safe_load((home / "config.yaml").read_text())
        (home / "config.yaml").write_text(yaml.safe_dump(config | {"data": {"metric": "rmse"}}))
    runs = read_runs(tmp_path)
    rows = rows_of(runs).to_dict("records")
    assert sorted((row["metric"], row["score"]) for row in rows) == [("-rmse", -0.9), ("-rmse", -0.4)]
    assert list(best_rates(runs, 1.0).values()) == [0.01]
