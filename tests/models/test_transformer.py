"""Properties of the whole model: causality, packing, padding, roles, no sharing between layers, refusals."""

from functools import partial

import pytest
import torch

from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.delta import GatedDeltaNet
from kleiber.nn.latent import LatentAttention
from kleiber.nn.mlp import GELU, LayerNorm, RMSNorm, SwiGLU
from kleiber.nn.moe import interleaved_moe
from kleiber.nn.mup import MuP, StandardParametrization
from kleiber.nn.patterns import NoMixing, layer_pattern
from kleiber.nn.routers.topk import Switch
from kleiber.nn.window import WindowAttention
from kleiber.types.batch import Batch, Role

VOCAB = 23
MLPS = {"swiglu": SwiGLU, "gelu": GELU, "moe": partial(interleaved_moe, num_experts=4, num_shared=1)}
ATTENTIONS = {"full": FullAttention, "window": partial(WindowAttention, window=3), "none": NoMixing}
LAYERS = {  # other choices, in a model of two layers
    "alibi": {"positions": "alibi"},
    "learned": {"positions": "learned"},
    "soft cap": {"attention": partial(FullAttention, soft_cap=1.0)},
    "value residual": {"attention": partial(FullAttention, value_residual=True)},
    "latent": {"attention": partial(LatentAttention, rank=6)},
    "pattern": {"attention": partial(layer_pattern, window=ATTENTIONS["window"])},
    "layernorm": {"norm_type": "layernorm"},
}
COMPILED = LAYERS | {"plain": {"depth": 1}, "delta": {"attention": GatedDeltaNet}}


def build(**options) -> Transformer:
    """A small model in fp64 with a random head, and gains that are not 1."""
    torch.manual_seed(0)
    model = Transformer(VOCAB, **{"depth": 2, "width": 32, "context": 16} | options).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter)
    return model


def logits(model, batch) -> torch.Tensor:
    return model.head(model(batch).hidden)


@pytest.mark.parametrize("mlp", MLPS)
def test_no_logit_depends_on_a_later_token(mlp):
    model, tokens = build(mlp=MLPS[mlp]), torch.randint(VOCAB, (1, 9))
    inputs = []
    model.embedding.register_forward_hook(lambda _m, _i, out: inputs.append(out.requires_grad_()) or out)
    out = logits(model, Batch(tokens))
    for t in range(9):
        (grad,) = torch.autograd.grad(out[0, t].square().sum(), inputs[0], retain_graph=True)
        assert float(grad[0, t + 1 :].abs().sum()) == 0
        assert float(grad[0, : t + 1].abs().sum(-1).min()) > 0


@pytest.mark.parametrize("norm", ["pre", "post", "sandwich"])
def test_a_block_normalizes_where_it_says(norm):
    """Against the formulas, with gains that are not 1."""
    model, tokens = build(norm=norm, depth=1), torch.randint(VOCAB, (2, 7))
    (block,), batch = model.blocks, Batch(tokens)
    x = model.embedding(tokens) * model.embedding_multiplier

    def attend(x):
        return block.residual * block.attention(x)

    def transform(x):
        return block.residual * block.mlp(x, batch)[0]

    if norm == "post":
        x = block.attention_norm(x + attend(x))
        x = block.mlp_norm(x + transform(x))
    elif norm == "pre":
        x = x + attend(block.attention_norm(x))
        x = x + transform(block.mlp_norm(x))
    else:
        x = x + block.residual * block.attention_output_norm(block.attention(block.attention_norm(x)))
        x = x + block.residual * block.mlp_output_norm(block.mlp(block.mlp_norm(x), batch)[0])
    torch.testing.assert_close(model(batch).hidden, model.norm(x))


def test_layernorm_takes_the_place_of_every_norm_of_the_stream():
    """The model computes what it computes with torch's own LayerNorm, and RMSNorm gives something else."""
    model, tokens = build(norm_type="layernorm", norm="sandwich", future=1), torch.randint(VOCAB, (2, 7))
    names = [name for name, module in model.named_modules() if isinstance(module, LayerNorm)]
    assert len(names) == 4 * (len(model.blocks) + 1) + 2, "those of blocks, of the end, and of the head of later tokens"
    for name in names:
        norm = model.get_submodule(name)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    hidden = model(Batch(tokens)).hidden
    for name in names:
        own = model.get_submodule(name)
        other = torch.nn.LayerNorm(own.weight.shape[0], own.eps, dtype=torch.float64)
        other.load_state_dict(own.state_dict())
        model.set_submodule(name, other)
    torch.testing.assert_close(model(Batch(tokens)).hidden, hidden)
    for name in names:
        model.set_submodule(name, RMSNorm(model.width).double())
    assert (model(Batch(tokens)).hidden - hidden).abs().max() > 0.1


@pytest.mark.parametrize("positions", ["rotary", "alibi", "learned", "none"])
def test_without_positions_attention_does_not_see_the_order_of_earlier_tokens(positions):
    model = build(depth=1, positions=positions)
    tokens = torch.arange(8)[None]
    turned = torch.cat([tokens[:, :7].flip(1), tokens[:, 7:]], 1)
    first, second = (logits(model, Batch(each))[0, -1] for each in (tokens, turned))
    assert torch.allclose(first, second) is (positions == "none")


def test_a_bidirectional_model_reads_both_sides():
    model, tokens = build(causal=False), torch.randint(VOCAB, (1, 9))
    other = tokens.clone()
    other[0, -1] = (other[0, -1] + 1) % VOCAB
    change = (logits(model, Batch(tokens)) - logits(model, Batch(other))).detach().abs().amax(-1)[0]
    assert float(change.min()) > 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("mlp", MLPS)
def test_packed_documents_give_the_logits_they_give_alone(causal, attention, mlp):
    model = build(causal=causal, attention=ATTENTIONS[attention], mlp=MLPS[mlp])
    first, second = torch.randint(VOCAB, (1, 5)), torch.randint(VOCAB, (1, 8))
    segments = torch.tensor([[0] * 5 + [1] * 8])
    packed = logits(model, Batch(torch.cat([first, second], 1), segments=segments))
    alone = torch.cat([logits(model, Batch(part)) for part in (first, second)], 1)
    # RoPE depends on distance only, up to the fp32 of its tables.
    torch.testing.assert_close(packed, alone, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layers", LAYERS)
def test_other_layers_have_an_effect_and_keep_documents_and_padding_apart(causal, layers):
    """Packed documents and a padded row have the logits of each document alone; a plain model has other ones."""
    model, tokens = build(causal=causal, **LAYERS[layers]), torch.randint(VOCAB, (1, 13))
    segments, real = torch.tensor([[0] * 5 + [1] * 8]), torch.arange(13)[None] < 8
    alone = [logits(model, Batch(part)) for part in tokens.split([5, 8], 1)]
    torch.testing.assert_close(
        logits(model, Batch(tokens, segments=segments)), torch.cat(alone, 1), atol=1e-6, rtol=1e-6
    )
    padded = logits(model, Batch(tokens.roll(-5, 1), real=real))[:, :8]
    torch.testing.assert_close(padded, alone[1], atol=1e-6, rtol=1e-6)
    plain = build(causal=causal)
    plain.load_state_dict(model.state_dict(), strict=False)
    assert (
        float((logits(plain, Batch(tokens[:, :8])) - logits(model, Batch(tokens[:, :8]))).detach().abs().max()) > 1e-3
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mlp", MLPS)
def test_padding_changes_neither_logits_nor_auxiliary_sums(causal, mlp):
    model, tokens = build(causal=causal, mlp=MLPS[mlp]), torch.randint(VOCAB, (2, 6))
    padded = torch.cat([tokens, torch.randint(VOCAB, (2, 4))], 1)
    real = (torch.arange(10) < 6).expand(2, 10)
    plain, wide = model(Batch(tokens)), model(Batch(padded, real=real))
    torch.testing.assert_close(wide.hidden[:, :6], plain.hidden)
    torch.testing.assert_close(wide.aux, plain.aux)
    wide.hidden.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p is not model.head.weight)


def test_auxiliary_sums_add_over_micro_batches_and_carry_the_layer():
    model, tokens = build(mlp=MLPS["moe"]), torch.randint(VOCAB, (4, 7))
    whole = model(Batch(tokens)).aux
    parts = [model(Batch(part)).aux for part in tokens.split([1, 3])]
    assert set(whole) == {"loss"} | {
        f"{name}/{layer}" for name in ("balance", "z", "load", "margin") for layer in (0, 1)
    }
    torch.testing.assert_close(whole, {name: parts[0][name] + parts[1][name] for name in whole})
    layers = [0.01 * whole[f"balance/{layer}"] + 1e-3 * whole[f"z/{layer}"] for layer in (0, 1)]
    torch.testing.assert_close(whole["loss"], layers[0] + layers[1])
    assert "loss" not in build()(Batch(tokens)).aux


@pytest.mark.parametrize("mlp", MLPS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_parameter_has_one_role_and_is_in_one_block(mlp, tied, attention):
    model = build(mlp=MLPS[mlp], tied=tied, attention=ATTENTIONS[attention])
    roles = model.roles()
    assert list(roles) == [name for name, _ in model.named_parameters()]
    assert sum(len(list(module.parameters(recurse=False))) for module in model.modules()) == len(roles) + tied
    first, second = (dict(block.named_parameters()) for block in model.blocks)
    assert first.keys() == second.keys() and not {id(p) for p in first.values()} & {id(p) for p in second.values()}
    assert all(roles[n].kind == "vector" for n, p in model.named_parameters() if p.ndim == 1)
    assert roles["embedding.weight"] == Role("embedding", 1)
    assert tied or roles["head.weight"] == Role("output", 32)


def test_roles_of_experts_count_the_fan_in_of_one_expert():
    roles = build(mlp=MLPS["moe"]).roles()
    assert roles["blocks.0.mlp.experts.gate_up"] == Role("hidden", 32, depth=2)
    assert roles["blocks.0.mlp.experts.down"].fan_in == build(mlp=MLPS["moe"]).blocks[0].mlp.hidden
    assert roles["blocks.1.mlp.router.linear.weight"] == Role("output", 32, depth=2)
    assert roles["blocks.1.attention.out.weight"] == Role("hidden", 32, depth=2)


def test_width_follows_depth_and_the_stream_starts_at_one():
    assert Transformer(VOCAB, depth=3).width == 192 and Transformer(VOCAB, depth=3, aspect=32).width == 96
    for tied in (True, False):
        model = Transformer(4096, width=128, tied=tied)
        x = model.embedding(torch.arange(4096)) * model.embedding_multiplier
        assert float(x.detach().square().mean().sqrt()) == pytest.approx(1, abs=0.02)
    first = logits(Transformer(VOCAB, tied=False), Batch(torch.zeros(1, 3, dtype=torch.long)))
    assert not first.any()


@pytest.mark.slow
def test_the_same_seed_makes_the_same_model_and_multipliers_are_one_when_standard():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(Transformer(VOCAB, mlp=MLPS["moe"]).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    model = Transformer(VOCAB, parametrization=StandardParametrization(), mlp=MLPS["moe"])
    assert model.embedding_multiplier == model.head.multiplier == model.blocks[1].residual == 1
    assert Transformer(VOCAB, depth=8, parametrization=MuP()).blocks[0].residual == 0.5


def test_soft_cap_bounds_the_logits():
    model = build(soft_cap=0.5)
    assert float(logits(model, Batch(torch.randint(VOCAB, (2, 5)))).detach().abs().max()) < 0.5


def test_state_dict_holds_no_tables_and_loads_back():
    model = build(mlp=MLPS["moe"])
    assert not any("rope" in name for name in model.state_dict())
    other = Transformer(VOCAB, width=32, context=16, mlp=MLPS["moe"]).double()
    other.load_state_dict(model.state_dict())
    tokens = torch.randint(VOCAB, (1, 5))
    torch.testing.assert_close(logits(other, Batch(tokens)), logits(model, Batch(tokens)))


def test_long_rows_and_options_nothing_reads_are_refused():
    with pytest.raises(ValueError, match="qk_norm=True"):
        Transformer(VOCAB, attention=NoMixing, qk_norm=True)
    with pytest.raises(ValueError, match=r"17 .*model\.context=16"):
        build()(Batch(torch.zeros(1, 17, dtype=torch.long)))


def test_switch_at_k_1_teaches_the_router_by_the_task():
    model = build(mlp=partial(interleaved_moe, num_experts=4, k=1, router=Switch))
    model(Batch(torch.randint(VOCAB, (2, 5)))).hidden.square().sum().backward()
    assert float(model.blocks[0].mlp.router.linear.weight.grad.abs().max()) > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.slow
@pytest.mark.parametrize("layers", ["plain", "value residual", "soft cap", "alibi", "latent", "delta"])
def test_compiled_in_place_it_gives_the_same_loss_gradient_and_names(unchecked, layers):
    model = build(**COMPILED[layers]).float()
    tokens, names = torch.randint(VOCAB, (2, 8)), list(model.state_dict())
    plain = model(Batch(tokens)).hidden
    model.compile(backend="aot_eager")
    fast = model(Batch(tokens)).hidden
    assert list(model.state_dict()) == names
    torch.testing.assert_close(fast, plain)
    gradients = [torch.autograd.grad(h.sin().sum(), model.blocks[0].attention.out.weight)[0] for h in (fast, plain)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_dropout_zeroes_its_share_of_every_layers_output_in_training_alone():
    """Slow reference: the stream is built again from the outputs that hooks see, each kept entry divided by 1 - p."""
    p, batch = 0.25, Batch(torch.randint(VOCAB, (4, 16)))
    model, plain = build(dropout=p), build()
    torch.testing.assert_close(model.eval()(batch).hidden, plain(batch).hidden, rtol=0, atol=0)
    torch.manual_seed(1)
    streams, outputs = [], []
    for block in model.train().blocks:
        block.register_forward_pre_hook(lambda _m, args: streams.append(args[0]))
        block.attention.register_forward_hook(lambda _m, _i, out: outputs.append(out))
        block.mlp_norm.register_forward_pre_hook(lambda _m, args: streams.append(args[0]))
    model(batch)
    kept = (streams[1] - streams[0]) / (model.blocks[0].residual * outputs[0])
    dropped = kept.abs() < 1e-9
    torch.testing.assert_close(kept[~dropped], torch.full_like(kept[~dropped], 1 / (1 - p)))
    assert float(dropped.double().mean()) == pytest.approx(p, abs=0.03)
    embedded = streams[0] / (plain.embedding(batch.tokens) * plain.embedding_multiplier)
    assert float((embedded == 0).double().mean()) == pytest.approx(p, abs=0.03)


def test_dropout_follows_the_seed_of_a_step():
    model, batch = build(dropout=0.5), Batch(torch.randint(VOCAB, (2, 8)))
    states = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        states.append(model(batch).hidden)
    assert torch.equal(states[0], states[2])
    assert not torch.equal(states[0], states[1])
