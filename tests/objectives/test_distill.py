"""A teacher is a finished run: its distribution is learnt, it is not trained, and it is not saved."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from kleiber.data.corpus import TextCorpus
from kleiber.data.tokenizers import Bytes
from kleiber.launch.cli import main as cli
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import MoE
from kleiber.objectives.clm import CLM
from kleiber.objectives.distill import Distill
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples


def toy(identity: str) -> TextCorpus:
    """A corpus without text whose tokenizer has the hash `identity`."""
    tokenizer = Bytes()
    tokenizer.hash = identity
    return TextCorpus("toy", "", "", tokenizer, Samples(), {})


TOY = toy("bytes/1")


def teacher(**options) -> Transformer:
    torch.manual_seed(1)
    return Transformer(272, depth=1, width=32, context=32, **options).eval()


def opens(path: str) -> SimpleNamespace:
    """What the run hands over: a teacher that was never trained, under the path `RUN`."""
    if path not in ("RUN", "BERT"):
        raise ValueError(f"{path}: no run is there")
    return SimpleNamespace(model=teacher(causal=path == "RUN"), tokenizer=Bytes())


def student(**options) -> Transformer:
    torch.manual_seed(2)
    return Transformer(272, depth=1, width=64, context=32, **options)


def rows() -> Batch:
    tokens = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, weights=(torch.arange(20) % 3 > 0).float().expand(3, 20))


def test_the_auxiliary_loss_per_target_does_not_depend_on_how_many_tokens_are_targets() -> None:
    net, batch = student(mlp=lambda site: MoE(site, num_experts=4, k=2)), rows()
    objective = Distill(TOY, opens, "RUN")
    means = [
        loss.metrics["loss"] / loss.tokens for loss in (objective(net, batch), objective(net, Batch(batch.tokens)))
    ]
    assert means[0].item() == pytest.approx(means[1].item())


@pytest.mark.parametrize(("temperature", "mix"), [(1.0, 1.0), (2.0, 0.5), (4.0, 0.9)])
def test_loss_and_gradient_equal_the_formula(temperature: float, mix: float) -> None:
    objective, net, twin, batch = Distill(TOY, opens, "RUN", temperature, mix), student(), student(), rows()
    loss = objective(net, batch)
    loss.total.backward()
    taught, kept = teacher(), batch.weights[:, 1:] > 0  # type: ignore[index]
    read = Batch(batch.tokens[:, :-1])
    old = taught.head(taught(read).hidden)[kept] / temperature
    new = twin.head(twin(read).hidden)[kept]
    ce = F.cross_entropy(new, batch.tokens[:, 1:][kept], reduction="sum")
    kl = F.kl_div((new / temperature).log_softmax(-1), old.log_softmax(-1), log_target=True, reduction="sum")
    wanted = (1 - mix) * ce + mix * temperature**2 * kl
    wanted.backward()
    assert torch.allclose(loss.total, wanted, rtol=1e-5)
    assert torch.allclose(loss.metrics["ce"], ce, rtol=1e-5) and loss.tokens == kept.sum()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)  # type: ignore[arg-type]


def test_the_teacher_is_frozen_and_outside() -> None:
    objective, net = Distill(TOY, opens, "RUN"), student()
    objective(net, rows()).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    assert not isinstance(objective, torch.nn.Module)  # so no module that holds it has the teacher's parameters
    assert not objective.teacher.training


def test_a_student_that_is_the_teacher_has_nothing_to_learn() -> None:
    objective = Distill(TOY, opens, "RUN", mix=1.0)
    twin = teacher()
    loss = objective(twin, rows())
    loss.total.backward()
    assert loss.total.item() == pytest.approx(0, abs=1e-5)
    assert max(p.grad.abs().max() for p in twin.parameters() if p.grad is not None) < 1e-5


def test_a_copy_of_the_tokenizer_in_another_folder_is_the_same_one() -> None:
    copy = toy("copy/1")
    Distill(copy, opens, "RUN").check(student())


def test_what_cannot_teach_is_refused() -> None:
    other = toy("bpe/other")
    with pytest.raises(ValueError, match=r"bytes/1.*bpe/other"):
        Distill(other, opens, "RUN").check(student())
    with pytest.raises(ValueError, match=r"objective.teacher: nowhere: no run is there"):
        Distill(TOY, opens, "nowhere").check(student())
    with pytest.raises(ValueError, match=r"objective.teacher=BERT"):
        Distill(TOY, opens, "BERT").check(student())
    with pytest.raises(ValueError, match="objective=distill"):
        Distill(TOY, opens, "RUN").check(teacher(causal=False))
    long = Batch(torch.zeros(1, 60, dtype=torch.long))
    with pytest.raises(ValueError, match=r"model\.context=32"):
        Distill(TOY, opens, "RUN")(student(), long)


def test_without_gradients_it_predicts_next_tokens_without_its_teacher() -> None:
    objective, net, batch = Distill(TOY, opens, "nowhere"), student(), rows()
    with torch.no_grad():
        loss, plain = objective(net, batch), CLM()(net, batch)
        predictions, expected = objective.predictions(net, batch), CLM().predictions(net, batch)
    assert torch.equal(loss.metrics["ce"], plain.metrics["ce"]) and torch.equal(loss.tokens, plain.tokens)
    assert objective.has_predictions and objective.likelihood
    assert torch.equal(predictions.hidden, expected.hidden) and torch.equal(predictions.weights, expected.weights)


@pytest.mark.slow
def test_a_distilled_run_is_evaluated_without_its_teacher(launch, tmp_path, capsys) -> None:
    teaching = launch("budget.steps=4", root="teaching")
    run = launch("objective=distill", f"objective.teacher={teaching}", "budget.steps=4", "data.tokenizer=bytes")
    shutil.rmtree(teaching)
    assert cli(["eval", str(run), "--evals", "calibration,perplexity", "--tokens", "2000"]) == 0
    scores = json.loads((run / "evals/perplexity.json").read_text())["scores"]
    assert all(score["loss"]["lo"] < score["loss"]["value"] < score["loss"]["hi"] for score in scores.values())
    assert (run / "evals/calibration.json").is_file()


@pytest.mark.slow
def test_a_run_learns_from_a_run(launch) -> None:
    teaching = launch("budget.steps=20", root="teaching")
    options = ["objective=distill", f"objective.teacher={teaching}", "objective.mix=1.0", "model.width=32"]
    summary = json.loads((launch(*options, "callbacks.log.every=1", root="taught") / "summary.json").read_text())
    assert summary["stages"][0]["objective"] == "distill" and summary["status"] == "finished"
