"""Clipped sums equal a direct loop, and without noise and clipping a step is that of ordinary training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import TINY
from torch import Tensor

from kleiber.data.mixture import Mixture
from kleiber.data.token_files import TokenFile, TrainWindows
from kleiber.launch.main import main
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import MoE
from kleiber.nn.routers.sigmoid import LossFree
from kleiber.nn.routers.topk import TopK
from kleiber.objectives.clm import CLM
from kleiber.objectives.dpo import DPO
from kleiber.objectives.kto import KTO
from kleiber.optimizers.privacy import PrivateSteps
from kleiber.training.private_step import check_private, noise_generator, poisson_stream, private_gradients
from kleiber.training.step import accumulate
from kleiber.types.batch import Batch, Penalty
from kleiber.types.model import Model
from kleiber.types.retention import Retention

NOTHING = PrivateSteps(noise=0.0, clip=1e9, delta=1e-5, rate=0.5, samples=12)


def model(**options: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(64, depth=1, width=32, num_heads=2, context=16, **options).double()  # type: ignore[arg-type]


def batch(rows: int = 6) -> Batch:
    return Batch(torch.randint(0, 64, (rows, 13), generator=torch.Generator().manual_seed(1)))


def gradients(privacy: PrivateSteps, rows: Batch, net: Transformer | None = None, seed: int = 0) -> list[torch.Tensor]:
    net = model() if net is None else net
    generator = noise_generator(seed, 3, torch.device("cpu"))
    private_gradients(net, CLM(), rows, torch.Tensor.backward, privacy, generator)
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def test_without_noise_and_clipping_the_gradients_are_those_of_ordinary_training() -> None:
    net = model()
    sums = accumulate(net, CLM(), batch().split(2), torch.Tensor.backward)
    expected = [p.grad / sums.values["tokens"] for p in net.parameters() if p.grad is not None]
    for ours, theirs in zip(gradients(NOTHING, batch()), expected, strict=True):
        assert torch.allclose(ours / NOTHING.rows, theirs, atol=1e-12)


def test_the_clipped_sum_is_that_of_a_direct_loop() -> None:
    net, rows = model(), batch()
    clip, total, norms = 0.4, None, []
    for i in range(len(rows)):
        net.zero_grad()
        tokens = rows.tokens[i : i + 1]
        logits = net.head(net(Batch(tokens[:, :-1])).hidden).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
        flat = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        norms.append(float(flat.norm()))
        flat = flat * min(1.0, clip / norms[-1])
        total = flat if total is None else total + flat
    assert max(norms) > clip
    ours = torch.cat([g.flatten() for g in gradients(replace(NOTHING, clip=clip), rows)])
    assert total is not None and torch.allclose(ours, total, atol=1e-7)
    assert float(ours.norm()) <= clip * len(rows) + 1e-9


def test_one_sample_changes_the_sum_by_at_most_the_clip() -> None:
    rows = batch()
    privacy = replace(NOTHING, clip=0.1)
    whole, without = gradients(privacy, rows), gradients(privacy, rows.map(lambda t: t[1:]))
    difference = torch.cat([(a - b).flatten() for a, b in zip(whole, without, strict=True)])
    assert float(difference.norm()) <= 0.1 + 1e-9


def test_the_noise_has_its_size_and_follows_from_seed_and_step() -> None:
    noisy = replace(NOTHING, noise=2.0, clip=0.5)
    first, again, other = (torch.cat([g.flatten() for g in gradients(noisy, batch(), seed=s)]) for s in (0, 0, 1))
    quiet = torch.cat([g.flatten() for g in gradients(replace(noisy, noise=0.0), batch())])
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float((first - quiet).std()) == pytest.approx(1.0, rel=0.03)
    assert not torch.equal(
        torch.empty(9).normal_(generator=noise_generator(0, 1, torch.device("cpu"))),
        torch.empty(9).normal_(generator=noise_generator(0, 2, torch.device("cpu"))),
    )


def test_an_empty_batch_is_noise_alone() -> None:
    noisy = replace(NOTHING, noise=1.0, clip=1.0)
    empty = torch.cat([g.flatten() for g in gradients(noisy, batch().map(lambda t: t[:0]))])
    assert float(empty.std()) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("rows", [replace(batch(), weights=torch.zeros(6, 13)), batch().map(lambda t: t[:0])])
def test_a_batch_without_targets_is_noise_alone_and_has_no_loss(rows: Batch) -> None:
    net = model()
    sums = private_gradients(
        net, CLM(), rows, torch.Tensor.backward, replace(NOTHING, noise=1.0), torch.Generator().manual_seed(0)
    )
    assert sums.values["tokens"] == 0 and sums.means()["ce"].isnan()
    assert all(p.grad is not None for p in net.parameters())


def test_padding_does_not_change_the_gradient_of_a_sample() -> None:
    rows = batch(2)
    real = torch.ones_like(rows.tokens, dtype=torch.bool)
    real[1, 8:] = False
    padded = gradients(NOTHING, Batch(rows.tokens, real=real))
    alone = [gradients(NOTHING, Batch(rows.tokens[:1])), gradients(NOTHING, Batch(rows.tokens[1:, :8]))]
    for ours, a, b in zip(padded, *alone, strict=True):
        assert torch.allclose(ours, a + b, atol=1e-12)


def windows(count: int = 400) -> TrainWindows:
    return TrainWindows(TokenFile(np.arange(count * 4 + 1, dtype=np.uint16), count, count, "x"), 4)


def test_the_gradient_of_a_pair_of_answers_is_its_own() -> None:
    def answers(seed: int) -> Batch:
        tokens = torch.randint(0, 64, (5, 13), generator=torch.Generator().manual_seed(seed))
        return Batch(tokens, torch.ones(5, 13, dtype=torch.bool), weights=(torch.arange(13) > 7).expand(5, 13).double())

    pairs = replace(answers(1), counterpart=answers(2), reference=torch.full((5, 2), -9.0, dtype=torch.float64))
    net, objective = model(), DPO.__new__(DPO)
    objective.beta, objective.adapter_off, objective._steps, objective._checked = 0.1, False, 0, False
    objective.loss, objective.noise = "sigmoid", 0.0
    check_private(net, objective, windows())
    sums = accumulate(net, objective, [pairs], torch.Tensor.backward)
    expected = [p.grad.clone() / sums.values["tokens"] * len(pairs) for p in net.parameters()]  # type: ignore[union-attr]
    net.zero_grad()
    private_gradients(net, objective, pairs, torch.Tensor.backward, NOTHING, torch.Generator())
    for parameter, theirs in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, theirs, atol=1e-12)  # type: ignore[arg-type]


def test_the_penalty_of_a_retention_method_is_clipped_with_the_loss_of_each_sample() -> None:
    class Decay(Retention):
        def penalty_counts(self, model: Model, batch: Batch, step: int) -> list[float | Tensor]:
            return [len(batch)]

        def penalty(self, model: Model, batch: Batch, step: int, counts: Tensor) -> Penalty:
            squares = sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
            return Penalty(squares * len(batch) / counts[0])

    net, rows = model(), batch()
    plain = gradients(NOTHING, rows)
    private_gradients(net, CLM(), rows, torch.Tensor.backward, NOTHING, torch.Generator(), [Decay()])
    for parameter, loss in zip(net.parameters(), plain, strict=True):
        assert torch.allclose(parameter.grad, loss + len(rows) * 2 * parameter, atol=1e-9)  # type: ignore[operator]
    net.zero_grad()
    private_gradients(
        net, CLM(), rows, torch.Tensor.backward, replace(NOTHING, clip=0.01), torch.Generator(), [Decay()]
    )
    norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])  # type: ignore[misc]
    assert norm <= len(rows) * 0.01 + 1e-9


def test_what_couples_samples_is_refused() -> None:
    check_private(model(mlp=lambda site: MoE(site, num_experts=4, k=2, router=TopK)), CLM(), windows())
    with pytest.raises(ValueError, match="router LossFree"):
        check_private(model(mlp=lambda site: MoE(site, num_experts=4, k=2, router=LossFree)), CLM(), windows())
    with pytest.raises(ValueError, match="objective=kto "):
        check_private(model(), KTO.__new__(KTO), windows())
    with pytest.raises(ValueError, match="data=mixture"):
        check_private(model(), CLM(), Mixture([windows(), windows()], [0.5, 0.5]))
    net = model()
    net.add_module("extra", torch.nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="statistics of extra"):
        check_private(net, CLM(), windows())


REFUSED = [
    (["stages=trunk_and_cooldowns"], "stages does not work with privacy=dp_sgd"),
    (["trainer=ddp"], "trainer.devices=2 does not work"),
    (["retention=ewc"], "retention=[ewc] does not work"),
    (["callbacks.stability.policy=skip"], "callbacks.stability.policy does not work"),
    (["callbacks.stability.nonfinite=skip"], "callbacks.stability.nonfinite=skip does not work"),
    (["privacy.epsilon=1", "privacy.noise_multiplier=1"], "exclude each other"),
    (["privacy.delta=0.5"], "must be < 1 / "),
    (["batch.tokens=1M"], "set a smaller batch.tokens"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_a_run_whose_epsilon_would_be_wrong_is_refused(
    overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "privacy=dp_sgd", *overrides, f"root={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def numbered_windows(count: int = 400) -> TrainWindows:
    return TrainWindows(TokenFile(np.arange(count * 4 + 1, dtype=np.uint16), count, count, "x"), 4)


def test_every_sample_is_drawn_with_the_rate_at_every_step_alike() -> None:
    samples, rate = numbered_windows(), 0.05
    stream = poisson_stream(samples, 3, 0, rate)
    batches = [next(stream) for _ in range(300)]
    sizes = np.array([len(rows) for rows in batches])
    assert sizes.mean() == pytest.approx(20, abs=1) and sizes.var() == pytest.approx(20 * 0.95, rel=0.25)
    times = np.bincount(np.concatenate([rows.tokens[:, 0].numpy() // 4 for rows in batches]), minlength=400)
    assert times.mean() == pytest.approx(15, abs=0.6) and times.var() == pytest.approx(15 * 0.95, rel=0.25)
    assert len({int(n) for rows in batches for n in rows.samples}) == sizes.sum()  # type: ignore[union-attr]
    resumed = next(poisson_stream(samples, 3, 200, rate))
    assert torch.equal(resumed.tokens, batches[200].tokens) and torch.equal(resumed.samples, batches[200].samples)  # type: ignore[arg-type]
    assert len(next(poisson_stream(samples, 3, 0, 1.0))) == 400
    assert min(len(next(poisson_stream(samples, seed, 0, 0.0005))) for seed in range(20)) == 0
