"""A teacher is a finished run: its distribution is learnt, it is not trained, and it is not saved."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from kleiber.data.tokenizer import Bytes
from kleiber.models.trained import trained
from kleiber.models.transformer import Transformer
from kleiber.objectives.distill import Distill
from kleiber.types import Batch

TOY = SimpleNamespace(name="toy", tokenizer=Bytes())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run as the trainer leaves it, with a teacher that was never trained."""
    import json

    from kleiber import checkpoint

    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    teacher = Transformer(272, depth=1, width=32, context=32)
    teacher.add_head("task", 3)
    checkpoint.save(folder / "stages/main/checkpoints", 7, teacher, {}, "hash")
    config = "model: {_target_: kleiber.models.transformer.Transformer, depth: 1, width: 32, context: 32}\n"
    (folder / "config.yaml").write_text(config)
    record = {"name": "main", "data": {"tokenizer_hash": "bytes/1"}}
    (folder / "summary.json").write_text(json.dumps({"stages": [record]}))
    return folder


def student() -> Transformer:
    torch.manual_seed(2)
    return Transformer(272, depth=1, width=64, context=32)


def rows() -> Batch:
    tokens = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, weights=(torch.arange(20) % 3 > 0).float().expand(3, 20))


@pytest.mark.parametrize(("temperature", "mix"), [(1.0, 1.0), (2.0, 0.5), (4.0, 0.9)])
def test_loss_and_gradient_equal_the_formula(run: Path, temperature: float, mix: float) -> None:
    objective, net, twin, batch = Distill(TOY, str(run), temperature, mix), student(), student(), rows()
    loss = objective(net, batch)
    loss.total.backward()
    teacher, kept = trained(str(run), "path").model, batch.weights[:, 1:] > 0  # type: ignore[index]
    read = Batch(batch.tokens[:, :-1])
    old = teacher.head(teacher(read).hidden)[kept] / temperature
    new = twin.head(twin(read).hidden)[kept]
    ce = F.cross_entropy(new, batch.tokens[:, 1:][kept], reduction="sum")
    kl = F.kl_div((new / temperature).log_softmax(-1), old.log_softmax(-1), log_target=True, reduction="sum")
    wanted = (1 - mix) * ce + mix * temperature**2 * kl
    wanted.backward()
    assert torch.allclose(loss.total, wanted, rtol=1e-5)
    assert torch.allclose(loss.metrics["ce"], ce, rtol=1e-5) and loss.tokens == kept.sum()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)  # type: ignore[arg-type]


def test_the_teacher_is_frozen_and_outside(run: Path) -> None:
    objective, net = Distill(TOY, str(run)), student()
    objective(net, rows()).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    assert not isinstance(objective, torch.nn.Module)  # so no module that holds it has the teacher's parameters
    assert not objective.teacher.training


def test_a_student_that_is_the_teacher_has_nothing_to_learn(run: Path) -> None:
    objective = Distill(TOY, str(run), mix=1.0)
    twin = trained(str(run), "path").model.requires_grad_(True)
    loss = objective(twin, rows())
    loss.total.backward()
    assert loss.total.item() == pytest.approx(0, abs=1e-5)
    assert max(p.grad.abs().max() for p in twin.parameters() if p.grad is not None) < 1e-5


def test_what_cannot_teach_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"objective.mix=0.0"):
        Distill(TOY, str(run), mix=0.0)
    with pytest.raises(ValueError, match=r"objective.temperature=-1.0"):
        Distill(TOY, str(run), temperature=-1.0)
    other = SimpleNamespace(name="toy", tokenizer=SimpleNamespace(hash="bpe/other"))
    with pytest.raises(ValueError, match="reads ids of bytes/1, the data is in those of bpe/other"):
        Distill(other, str(run))
    with pytest.raises(ValueError, match="there is no run"):
        Distill(TOY, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no such finished stage; finished are main"):
        Distill(TOY, str(run / "second"))
    long = Batch(torch.zeros(1, 60, dtype=torch.long))
    with pytest.raises(ValueError, match="the teacher reads 32 tokens at most"):
        Distill(TOY, str(run))(student(), long)
