"""The penalty against a direct loop over pairs, the same in every split of a batch, and only while training."""

import numpy as np
import pytest
import torch

from kleiber.data.text import Text
from kleiber.launch.main import main
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch
from kleiber_topics.bias import equalized
from kleiber_topics.bias.counterfactual import Counterfactual
from kleiber_topics.bias.equalized import Equalized
from kleiber_topics.bias.occupations import Occupations


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Counterfactual(Occupations(documents=60), share=0.0).prepare(48, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(272, depth=1, width=16, context=48, num_heads=2)


def batch(count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randint(0, 256, (count, 49), generator=generator), samples=torch.arange(count) + 100)


def log_prob(model: Transformer, row: torch.Tensor) -> torch.Tensor:
    logs = model.head(model(Batch(row[None, :-1])).hidden)[0].log_softmax(-1)
    return logs.gather(1, row[1:, None]).sum()


def test_the_penalty_is_the_mean_squared_gap_of_the_drawn_pairs(corpus, model):
    objective, plain = Equalized(corpus, strength=0.3, rate=1.5), CLM()
    rows = batch()
    numbers = objective.draw(rows)
    gaps = []
    for number in numbers:
        pair = objective.pairs.gather(np.array([number]))
        sides = [side.tokens[0][side.real[0]] for side in (pair, pair.counterpart)]
        gaps.append((log_prob(model, sides[0]) - log_prob(model, sides[1])) ** 2)
    loss, without = objective(model, rows), plain(model, rows)
    mean = (sum(gaps) / (1.5 * len(rows))).detach()
    assert len(numbers) > 8
    assert float((loss.total - without.total).detach() / loss.tokens) == pytest.approx(0.3 * float(mean), rel=1e-4)
    assert float(loss.metrics["equalization"] / loss.tokens) == pytest.approx(float(mean), rel=1e-4)
    assert float(loss.metrics["ce"]) == pytest.approx(float(without.metrics["ce"]), rel=1e-6)


def test_micro_batches_have_the_penalty_of_the_batch(corpus, model):
    objective = Equalized(corpus, rate=0.5)
    whole, parts = objective(model, batch()), [objective(model, part) for part in batch().split(3)]
    totals = [part.total.detach() for part in parts]
    assert float(sum(totals)) == pytest.approx(float(whole.total.detach()), rel=1e-5)
    assert sum(len(objective.draw(part)) for part in batch().split(3)) == len(objective.draw(batch()))


@pytest.mark.parametrize(
    ("is_divided", "is_counted", "passes"), [(False, False, 1), (True, False, 2), (False, True, 2)]
)
def test_a_rank_that_draws_no_pair_makes_as_many_passes_as_others(
    corpus, model, monkeypatch, is_divided, is_counted, passes
):
    """Where ranks hold parts of the weights, or count together, each waits for the passes of all."""
    objective, rows = Equalized(corpus, rate=1e-9), batch()
    expected = CLM()(model, rows)
    monkeypatch.setattr(equalized, "needs_other_ranks", lambda _: is_divided)
    monkeypatch.setattr(equalized, "counts_over_ranks", lambda _: is_counted)
    counted: list[int] = []
    model.register_forward_hook(lambda *_: counted.append(1))
    loss = objective(model, rows)
    assert len(objective.draw(rows)) == 0 and len(counted) == passes
    assert loss.total == expected.total and loss.metrics["equalization"] == 0


def test_a_step_makes_a_text_and_its_counterfactual_more_alike(corpus, model):
    objective = Equalized(corpus, strength=5.0, rate=1.0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    before = float(objective(model, batch()).metrics["equalization"])
    for _ in range(3):
        optimizer.zero_grad()
        loss = objective(model, batch())
        (loss.total / loss.tokens).backward()
        optimizer.step()
    assert float(objective(model, batch()).metrics["equalization"]) < before


def test_each_key_has_its_effect_and_held_out_loss_has_no_penalty(corpus, model):
    totals = [
        float(Equalized(corpus, **options)(model, batch()).total.detach())
        for options in ({}, {"strength": 0.5}, {"rate": 2.0}, {"seed": 1}, {"z_loss": 0.1})
    ]
    assert len(set(totals)) == len(totals)
    with torch.no_grad():
        loss = Equalized(corpus)(model, batch())
        assert float(loss.total) == float(CLM()(model, batch()).total) and [*loss.metrics] == ["ce"]


def test_a_corpus_without_pairs_is_refused(tmp_path):
    plain = Occupations(documents=60).prepare(16, tmp_path)
    with pytest.raises(ValueError, match=r"objective=equalized needs pairs of counterfactual texts"):
        Equalized(plain)
    rain = tmp_path / "rain.jsonl"
    rain.write_text("\n".join(f'{{"text": "It rained for long on day {n}, and he slept."}}' for n in range(60)))
    late = Counterfactual(Text(str(rain))).prepare(8, tmp_path)
    with pytest.raises(ValueError, match=r"no training document of rain has a word of data\.words within"):
        Equalized(late)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        ["data=counterfactual", "data.share=0.5", "objective=equalized"],
        ["data=reweighted", "data.attributes=occupations"],
    ],
)
def test_an_interrupted_run_resumes_bit_identically(method, tmp_path, cache_dir, interrupted):
    command = ["trainer=smoke", "trainer.threads=1", "logger=csv", "callbacks.checkpoints.every=5", *method]
    assert main([*command, f"root={tmp_path / 'whole'}"]) == 0
    with interrupted(2):
        assert main([*command, f"root={tmp_path / 'again'}"]) == 130
    assert main([*command, f"root={tmp_path / 'again'}"]) == 0
    weights = [
        sorted((tmp_path / place).glob("*/*/stages/main/checkpoints/step-*/model.safetensors"))[-1].read_bytes()
        for place in ("whole", "again")
    ]
    assert weights[0] == weights[1]


def test_pairs_of_any_documents_couple_the_samples():
    assert Equalized.couples_samples, "which differentially private training refuses"
