"""The record of a finished stage counts what was trained, from the root of the tree, and points to its checkpoint."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from kleiber.data.mixture import Mixture
from kleiber.data.order import poisson_sample
from kleiber.optimizers.privacy import PrivateSteps
from kleiber.retention.replay import mix_earlier
from kleiber.runs import stage as stages
from kleiber.runs.stage import unique_tokens
from kleiber.training.callbacks import evaluate
from kleiber.types.contracts import Samples


class Rows(Samples):
    """A number of samples of three tokens each."""

    def __init__(self, count: int) -> None:
        self.count, self.num_tokens, self.num_bytes = count, 3 * count, 3 * count

    def __len__(self) -> int:
        return self.count


@pytest.mark.slow
def test_tokens_samples_and_flops_follow_from_the_steps(once):
    folder = once()
    stage = json.loads((folder / "summary.json").read_text())["stages"][0]
    assert stage["status"] == "finished" and stage["tokens"] == stage["steps"] * stage["batch_tokens"]
    assert stage["samples"] * 64 == stage["tokens"] and stage["params"]["total"] > 0
    assert 0 < stage["flops"]["model"] <= stage["flops"]["executed"]
    assert stage["flops"]["six_nd"] == 6 * stage["params"]["active"] * stage["tokens"]
    assert (folder / stage["checkpoint"] / "meta.json").is_file()


@pytest.mark.slow
def test_passes_that_methods_against_forgetting_add_are_executed(once, launch, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    options = ("init=checkpoint", f"init.path={once()}", f"data.path={text}", "trainer.max_steps=2", "batch.tokens=512")
    flops = {}
    for method in ("null", "[agem]", "[lwf]"):
        folder = launch(*options, f"retention={method}")
        stage = json.loads((folder / "summary.json").read_text())["stages"][-1]
        flops[method] = stage["flops"]
        rows = stage["batch_tokens"] * stage["samples"] / stage["tokens"]
    assert len({values["model"] for values in flops.values()}) == 1
    plain = flops["null"]["executed"]
    assert flops["[agem]"]["executed"] == pytest.approx(plain * (1 + 8 / rows))
    assert flops["[lwf]"]["executed"] == pytest.approx(plain * (1 + 1 + 1 / 3))


def test_energy_and_price_are_those_of_the_device_seconds_and_change_no_folder(once, launch):
    priced = launch("cost.watts=50", "cost.price=2", "cost.currency=EUR", "trainer.max_steps=2")
    stage = json.loads((priced / "summary.json").read_text())["stages"][0]
    cost, seconds = stage["cost"], stage["device_seconds"]
    assert (cost["watts"], cost["source"], cost["joules"]) == (50.0, "cost.watts", 50.0 * seconds)
    assert (cost["price"], cost["currency"]) == (2 * seconds / 3600, "EUR")
    assert launch("cost.watts=60", "trainer.max_steps=2") == priced
    unstated = json.loads((once() / "summary.json").read_text())["stages"][0]["cost"]
    assert unstated["source"] in ("assumed", "RAPL") and unstated["price"] is None


@pytest.mark.parametrize("rows", [7, 130, 600])
@pytest.mark.parametrize("replay", [False, True])
def test_unique_tokens_are_those_of_the_samples_of_its_own_data_that_a_stage_reads(rows, replay):
    """Of a small part of a mixture that is read again, and with half of the samples replayed."""
    train = Mixture([Rows(20), Rows(300), Rows(50)], [0.9, 0.1, 0.0])
    samples = mix_earlier(train, [Rows(400)], 0.5) if replay else train
    corpus = SimpleNamespace(train=train)
    plan = SimpleNamespace(corpus=corpus, stop_step=1, rows=rows, epochs=rows / len(train), privacy=None)
    ids, _ = samples.order(5).samples_at(np.arange(rows))
    own = np.unique(ids[ids < 320])
    assert unique_tokens(plan, samples, 5) == 3 * len(own)
    corpus = SimpleNamespace(train=Rows(370))
    plain = SimpleNamespace(corpus=corpus, stop_step=1, rows=rows, epochs=rows / 370, privacy=None)
    assert unique_tokens(plain, plain.corpus.train, 5) == 3 * min(rows, 370)


def test_unique_tokens_of_private_steps_are_those_of_the_samples_that_they_draw():
    samples, rate, steps = Rows(2000), 0.02, 50
    privacy, corpus = PrivateSteps(1.0, 1.0, 1e-5, rate, 2000), SimpleNamespace(train=samples)
    plan = SimpleNamespace(corpus=corpus, stop_step=steps, rows=40, epochs=1.0, privacy=privacy)
    drawn = set().union(*(poisson_sample(2000, rate, 0, step).tolist() for step in range(steps)))
    assert unique_tokens(plan, samples, 0) == pytest.approx(3 * len(drawn), rel=0.05) != 6000


@pytest.mark.slow
def test_a_stage_has_the_peak_memory_of_its_training_alone(launch, monkeypatch):
    """With a device whose peak can be reset, as that of a GPU, and a second stage of smaller steps."""
    peak = {"bytes": 100}  # of preparing the data
    monkeypatch.setattr(evaluate, "peak_memory_bytes", lambda _: peak["bytes"])
    monkeypatch.setattr(evaluate, "score_tasks", lambda *_: peak.update(bytes=90) or {})
    for module in (stages, evaluate):
        monkeypatch.setattr(module, "reset_peak_memory", lambda _: peak.update(bytes=1))
    step = stages.LitLM.training_step

    def training_step(self, batch, index):
        step(self, batch, index)
        peak["bytes"] = max(peak["bytes"], 10 * len(batch))

    monkeypatch.setattr(stages.LitLM, "training_step", training_step)
    chain = "stages.chain={first:{budget:{steps:2}},second:{budget:{steps:2},batch:{tokens:256}}}"
    folder = launch("stages=chain", chain, "callbacks.samples=null")
    records = json.loads((folder / "summary.json").read_text())["stages"]
    assert [record["peak_memory_bytes"] for record in records] == [80, 40]
