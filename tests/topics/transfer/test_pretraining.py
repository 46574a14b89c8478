"""The design of the transfer study plans bases and rates in rounds."""

from pathlib import Path

import pytest

from kleiber.config.check import check_node
from kleiber.config.errors import ConfigError
from kleiber.records.catalog import Run, read_runs
from kleiber_topics.transfer.pretraining import Pretraining, hub_name

from .transfer_runs import write

KINDS = {
    "mlm": {"model": ["model=bert"], "pretrain": ["objective=mlm"], "lrs": [0.003, 0.01], "scratch": [0.002, 0.005]},
    "hf": {"model": ["model=hf", "model.path=bert"], "pretrain": ["objective=mlm"], "lrs": [0.001]},
}


SOURCES = {"docs": ["data=builtin"], "code": ["data=builtin", "data.domain=code"]}


TASKS = {"toy": ["data=labelled", "data.path=./toy.jsonl"], "other": ["data=labelled", "data.path=./other.jsonl"]}


class FakeContext:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runs(self) -> list[Run]:
        return read_runs(self.folder) if self.folder.is_dir() else []


def design(**changes) -> Pretraining:
    by_name = {"kinds": KINDS, "sources": SOURCES, "tasks": TASKS, "sizes": ["1M"], "finetune": ["objective=classify"]}
    return Pretraining(**{**by_name, "seeds": 2, **changes})


def base(kind: str, source: str, seed: int) -> list[str]:
    overrides = [*KINDS[kind]["model"], *KINDS[kind]["pretrain"], *SOURCES[source], "data.max_bytes=1M"]
    return [*overrides, f"study.kind={kind}", f"study.start={source}/1M", f"seed={seed}"]


def test_bases_come_first_then_tuning_at_one_seed_then_every_seed_and_share_at_the_best_rate(tmp_path):
    plan = design(shares=[0.1, 1])
    rounds = plan.rounds(FakeContext(tmp_path))
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
        overrides = dict(line.split("=", 1) for line in lines)
        rate = (
            "0.002"
            if overrides["study.start"] == "scratch"
            else "0.01"
            if overrides["study.kind"] == "mlm"
            else "0.001"
        )
        assert overrides["optimizer.lr"] == rate, "texts that were not tuned take the rate of the first one"
        assert ("data.share" in overrides) == (overrides["study.share"] == "0.1") and overrides.get(
            "data.seed", overrides["seed"]
        ) == overrides["seed"]
        if overrides["study.start"] == "code/1M":
            assert overrides["init.path"] == str(
                folders[tuple(base(overrides["study.kind"], "code", int(overrides["seed"])))]
            )


def test_a_common_tokenizer_is_trained_first_and_used_by_all_texts_and_the_control(tmp_path):
    pretrain = ["data.tokenizer=bpe", "data.vocab_size=300"]
    plan = design(tokenizer="docs/1M", pretrain=pretrain, only=["mlm", "toy"], control=["evals=[reference]"])
    rounds = plan.rounds(FakeContext(tmp_path))
    (first,) = next(rounds)
    assert "data.tokenizer=bpe" in first and "study.start=docs/1M" in first and "seed=0" in first
    tokenizer = f"data.tokenizer={write(tmp_path, first, loss=1.0)}/tokenizer"
    bases = next(rounds)
    assert first in bases and len(bases) == 4
    for lines in bases:
        own = "study.start=docs/1M" in lines
        assert ("data.tokenizer=bpe" in lines, tokenizer in lines, "data.vocab_size=300" in lines) == (
            own,
            not own,
            own,
        )
    for lines in bases[1:]:
        write(tmp_path, lines, loss=1.0)
    cells = next(rounds)
    for lines in cells:
        control = "study.start=scratch" in lines
        assert (tokenizer in lines) == control == ("evals=[reference]" in lines)
    with pytest.raises(ValueError, match=r"design\.tokenizer: docs/2M must be .*docs/1M"):
        design(tokenizer="docs/2M")


def test_a_tokenizer_that_no_run_trains_is_refused(tmp_path):
    rounds = design(tokenizer="docs/1M", only=["mlm"]).rounds(FakeContext(tmp_path))
    (first,) = next(rounds)
    folder = write(tmp_path, first, loss=1.0)
    (folder / "tokenizer").rmdir()
    with pytest.raises(ValueError, match=r"design\.tokenizer=docs/1M.*data\.tokenizer=bpe"):
        next(rounds)


def test_fewer_labels_are_planned_for_the_named_sizes_and_more_points_for_the_control(tmp_path):
    sizes = {"sizes": ["2M", "1M"], "shares": [0.1, 1], "share_sizes": ["2M"], "scratch_shares": [0.3]}
    plan = design(**sizes, only=["mlm", "docs", "toy"], seeds=1)
    shares = {start.name: plan.shares_of(start) for start in plan.starts()}
    assert shares == {"scratch": [1, 0.3, 0.1], "docs/2M": [1, 0.1], "docs/1M": [1]}
    numbers = design(**(sizes | {"sizes": [2000, 1000], "share_sizes": [2000]}), only=["mlm", "docs", "toy"], seeds=1)
    assert {start.name: numbers.shares_of(start) for start in numbers.starts()}["docs/2000"] == [1, 0.1]
    assert design(shares=[1 / 3]).shares == [0.333333], "as runs record it, so that the tuned rate is recognized"
    with pytest.raises(ValueError, match=r"design\.share_sizes: 4M must be one of 2M, 1M"):
        design(**(sizes | {"share_sizes": ["4M"]}))


def test_parts_are_named_and_what_is_not_there_is_refused(tmp_path, monkeypatch):
    part = design(only=["mlm", "docs", "toy"])
    assert [(start.kind, start.name) for start in part.starts()] == [("mlm", "scratch"), ("mlm", "docs/1M")]
    assert list(part.tasks) == ["toy"]
    for changes, words in (
        ({"only": ["mml"]}, "design.only: mml .*mlm"),
        ({"kinds": {"a": {"model": [], "pretrain": [], "lrs": []}}}, "design.kinds.*lrs"),
        ({"kinds": {"a": {**KINDS["mlm"], "learning_rates": [0.1]}}}, "design.kinds.a.*lrs.*learning_rates"),
        ({"tasks": {}}, "design.tasks"),
    ):
        with pytest.raises(ValueError, match=words):
            design(**changes)
    assert hub_name(["data=glue/sst2"]) == "nyu-mll/glue" and hub_name(["data=builtin"]) is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("kleiber_topics.transfer.pretraining.reachable", lambda: False)
    monkeypatch.setenv("KLEIBER_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"nyu-mll/glue for sst2.*KLEIBER_DATA.*design\.only"):
        next(design(tasks={"sst2": ["data=glue/sst2"]}).rounds(FakeContext(tmp_path)))
    (tmp_path / "glue").mkdir()
    assert next(design(tasks={"sst2": ["data=glue/sst2"]}).rounds(FakeContext(tmp_path)))


def test_a_share_of_no_labels_is_outside_of_the_range():
    node = {"_target_": "kleiber_topics.transfer.Pretraining", "kinds": KINDS, "sources": SOURCES, "tasks": TASKS}
    with pytest.raises(ConfigError, match=r"design\.shares=\[0\.0\] must "):
        check_node("design", {**node, "shares": [0.0]})
