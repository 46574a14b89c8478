"""The LSTM is PyTorch's, step by step and from a cache; its size is that of model=gpt; what it cannot do is refused."""

import pytest
import torch
from torch import nn

from kleiber.models.counting import count_parameters, training_flops
from kleiber.models.generation import generate, left_padded
from kleiber.models.lstm import LSTM
from kleiber.models.transformer import Transformer
from kleiber.nn.mup import StandardParametrization
from kleiber.types.batch import Batch

TIME = 12


def small(**options: object) -> LSTM:
    torch.manual_seed(0)
    return LSTM(40, width=16, context=TIME, **options).eval()


def step_by_step(model: LSTM, tokens: torch.Tensor) -> torch.Tensor:
    """Hidden states from cells of PyTorch, one token at a time."""
    cells = []
    for block in model.blocks:
        cell = nn.LSTMCell(block.lstm.input_size, block.lstm.hidden_size)
        cell.load_state_dict({name.removesuffix("_l0"): value for name, value in block.lstm.state_dict().items()})
        cells.append(cell)
    states, outputs = [None] * len(cells), []
    for time in range(tokens.shape[1]):
        x = model.embedding(tokens[:, time]) * model.embedding_multiplier
        for layer, (block, cell) in enumerate(zip(model.blocks, cells, strict=True)):
            normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.norm.weight
            states[layer] = cell(normed, states[layer])
            x = x + block.residual * (states[layer][0] @ block.out.weight.T)
        outputs.append(model.norm(x))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("options", [{}, {"depth": 3, "hidden": 10}, {"parametrization": StandardParametrization()}])
def test_it_equals_a_loop_over_cells_of_pytorch(options):
    model = small(**options)
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    tokens = torch.randint(40, (3, TIME))
    assert torch.allclose(model(Batch(tokens)).hidden, step_by_step(model, tokens), atol=1e-5)


def test_a_row_read_in_pieces_has_the_hidden_states_of_one_pass_also_behind_padding():
    model, tokens = small(), torch.randint(40, (2, 9))
    expected = model(Batch(tokens)).hidden
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), tokens], 1)
    real = torch.arange(TIME).expand(2, TIME) >= 3
    caches = model.new_caches(TIME)
    pieces = [model(Batch(padded[:, :7], real=real[:, :7]), caches).hidden, model(Batch(padded[:, 7:]), caches).hidden]
    assert torch.allclose(torch.cat(pieces, 1)[:, 3:], expected, atol=1e-6)
    assert len(caches) == TIME and len(caches.tensors()) == 4


def test_a_prompt_is_continued_in_the_same_way_alone_and_beside_a_longer_one():
    model = small()
    prompts, real = left_padded([[1, 2], [3, 4, 5, 6, 7]])
    together = generate(model, prompts, 4, temperature=0.0, real=real)
    alone = generate(model, torch.tensor([[1, 2]]), 4, temperature=0.0)
    assert together[0, 5:].tolist() == alone[0, 2:].tolist()


def test_padding_on_the_right_changes_nothing_before_it():
    model, tokens = small(), torch.randint(40, (2, TIME))
    real = torch.arange(TIME).expand(2, TIME) < 8
    changed = torch.where(real, tokens, 0)
    hidden = model(Batch(changed, real=real)).hidden
    assert torch.equal(hidden[:, :8], model(Batch(tokens)).hidden[:, :8])


@pytest.mark.parametrize("width", [16, 32, 64, 96, 128, 256])
@pytest.mark.parametrize("depth", [1, 2, 6])
def test_it_has_the_parameters_of_a_transformer_of_equal_width_and_depth(width, depth):
    recurrent, attention = (count_parameters(kind(272, depth, width)) for kind in (LSTM, Transformer))
    assert recurrent.non_embedding == pytest.approx(attention.non_embedding, rel=0.05)
    assert recurrent.embedding == attention.embedding


def test_flops_are_two_for_each_weight_of_a_matrix_and_three_passes():
    model = small()
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)  # the tied embedding once: as the head
    assert training_flops(model, TIME) == training_flops(model, 5) == 6 * matrices


def test_the_keys_have_their_effect():
    assert small(hidden=10).blocks[0].lstm.hidden_size == 10 and LSTM(40, depth=3, aspect=8).width == 24
    biases = small(forget_bias=3.0).blocks[0].lstm.bias_ih_l0.detach().chunk(4)
    assert [gate.mean().item() for gate in biases] == [0, 3, 0, 0]
    untied = small(tied=False)
    untied.freeze_head()
    assert not untied.head.weight.requires_grad and count_parameters(untied).embedding == 2 * 40 * 16
    assert small(soft_cap=0.1).head(torch.randn(5, 16)).abs().max() <= 0.1
    model = small()
    model.add_head("task", 3)
    assert model.heads["task"](torch.randn(2, 16)).shape == (2, 3)
    roles = model.roles()
    assert roles["blocks.0.lstm.weight_hh_l0"].fan_in == model.blocks[0].lstm.hidden_size
    assert roles["blocks.0.lstm.weight_ih_l0"].fan_in == 16 and roles["blocks.0.lstm.bias_hh_l0"].kind == "vector"


def test_long_rows_and_packed_documents_are_refused():
    with pytest.raises(ValueError, match=r"13 tokens.*model\.context=12"):
        small()(Batch(torch.zeros(1, TIME + 1, dtype=torch.long)))
    with pytest.raises(ValueError, match=r"data\.pack=false"):
        small()(Batch(torch.zeros(1, 4, dtype=torch.long), segments=torch.zeros(1, 4, dtype=torch.long)))


@pytest.mark.slow
def test_a_run_trains_is_opened_and_continued_and_what_needs_a_transformer_is_refused(launch, tmp_path, capsys):
    from kleiber.launch.cli import main as kleiber

    folder = launch("model=lstm", "model.width=16", "trainer.max_steps=2")
    assert kleiber(["generate", str(folder), "--prompt", "The", "--tokens", "3"]) == 0
    assert kleiber(["export", str(folder), str(tmp_path / "hf")]) == 2
    assert "only model=gpt, bert, moe and hf can be exported" in capsys.readouterr().err
    later = ["init=checkpoint", f"init.path={folder}", "trainer.max_steps=2", "optimizer.lr=0.001"]
    launch(*later, root="later")
    launch(*later, "adapter=lora", root="lora", code=2)
    assert (
        "adapter=lora and adapter=dora add updates to a Transformer, and this model is a LSTM"
        in capsys.readouterr().err
    )
    launch("model=moe", "init=upcycle", f"init.path={folder}", root="up", code=2)
    assert "LSTM" in capsys.readouterr().err
