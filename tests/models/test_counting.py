"""Parameter counts against sums by hand, and FLOPs against PyTorch's counter on a forward and backward pass."""

import math
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from kleiber.adapters.freeze import Freeze
from kleiber.adapters.lora import DoRA, LoRA
from kleiber.models.counting import count_parameters, executed_flops, six_nd, training_flops, without_weights
from kleiber.models.hf import HFModel
from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.delta import GatedDeltaNet
from kleiber.nn.latent import LatentAttention
from kleiber.nn.mlp import GELU
from kleiber.nn.moe import interleaved_moe
from kleiber.nn.patterns import NoMixing
from kleiber.nn.window import WindowAttention
from kleiber.training.recomputation import checkpoint_activations
from kleiber.types.batch import Batch

TIME = 32


def _sdpa(q, k, v, *args, out_shape=None, **kwargs):
    return sdpa_flop_count(q, (q[0], q[1], *k[2:]), (q[0], q[1], *v[2:]))


def _sdpa_backward(grad, q, k, v, *args, out_shape=None, **kwargs):
    return 2 * _sdpa(q, k, v)


def _grouped(a, b, *args, out_shape=None, **kwargs):
    # (rows, in) @ (experts, in, out) visits one expert a row; (in, rows) @ (rows, out) splits the rows.
    return 2 * a[-2] * a[-1] * b[-1]


ATEN = torch.ops.aten
# The counter takes 0 for these on a CPU.
FORMULAS = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: _sdpa,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
    ATEN._grouped_mm: _grouped,
}


def measured(model: Transformer, sequences: int = 2) -> tuple[float, float]:
    """FLOPs per token by the counter: all but attention, and attention, which it counts as the whole square."""
    batch = Batch(torch.randint(model.vocab_size, (sequences, TIME)))
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        output = model(batch)
        losses = [model.head(hidden).square().sum() for hidden in (output.hidden, *output.future)]
        (sum(losses) + output.aux.get("loss", 0)).backward()
    counts = counter.get_flop_counts()["Global"]
    attention = sum(n for op, n in counts.items() if "scaled_dot_product" in str(op))
    return (sum(counts.values()) - attention) / (sequences * TIME), attention / (sequences * TIME)


def _depthwise_backward(grad, x, weight, *args, out_shape=None, **kwargs):
    """Gradients of the input and of the weights: the counter takes those of a dense convolution."""
    return 2 * 2 * grad[0] * grad[1] * grad[2] * weight[1] * weight[2]


def _triangular(system, right, *args, out_shape=None, **kwargs):
    rows, columns = right[-2:]
    return math.prod(right[:-2]) * rows**2 * columns


@pytest.mark.parametrize("time, chunk", [(32, 64), (64, 16), (40, 16)])
def test_executed_flops_of_the_delta_rule_agree_with_the_counter(time, chunk):
    """Forward and backward, with the triangular systems and the padding of the last chunk."""
    model = Transformer(96, width=64, context=time, attention=partial(GatedDeltaNet, num_heads=2, chunk=chunk))
    formulas = {ATEN.convolution_backward: _depthwise_backward, ATEN.linalg_solve_triangular: _triangular}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        model.head(model(Batch(torch.randint(96, (2, time)))).hidden).square().sum().backward()
    assert executed_flops(model, time) == pytest.approx(counter.get_total_flops() / (2 * time), rel=1e-3)


CASES = {
    "gpt": {},
    "gqa": {"num_heads": 4, "num_kv_heads": 2},
    "untied gelu": {"tied": False, "mlp": GELU},
    "bert": {"causal": False},
    "moe": {"mlp": partial(interleaved_moe, num_experts=4, k=2)},
    "shared": {"mlp": partial(interleaved_moe, num_experts=4, k=3, num_shared=1, every=2)},
    "none": {"attention": NoMixing},
    "learned": {"positions": "learned", "attention": partial(FullAttention, value_residual=True)},
    "sandwich": {"norm": "sandwich", "attention": partial(FullAttention, positions="none")},
}


@pytest.mark.parametrize("case", CASES)
def test_flops_agree_with_the_counter_exactly(case):
    model = Transformer(96, width=64, context=TIME, **CASES[case])
    other, attention = measured(model)
    pairs = (TIME + 1) / 2 / TIME if model.causal else 1
    assert training_flops(model, TIME) == pytest.approx(other + pairs * attention, rel=1e-6)
    assert case == "none" or attention > 0


LOWER = ("embedding", "blocks.0.")
FROZEN = {  # what stays trainable, by the beginning or the inside of its name
    "the upper half": lambda name: not name.startswith(LOWER) and not name.startswith("head"),
    "norms alone": lambda name: "norm" in name,
    "the head alone": lambda name: name.startswith("head"),
    "one matrix in the middle": lambda name: (
        name == "blocks.1.mlp.down.weight" or name == "blocks.1.attention.out.weight"
    ),
    "the table alone": lambda name: name.startswith("embedding"),
    "routers alone": lambda name: "router" in name or name == "norm.weight",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gpt", "gqa", "moe", "shared", "none"])
@pytest.mark.parametrize("kept", FROZEN)
def test_frozen_weights_make_the_backward_pass_cheaper_exactly(case, kept):
    model = Transformer(96, width=64, context=TIME, depth=3, **{"tied": False, **CASES[case]})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(FROZEN[kept](name))
    if not any(p.requires_grad for p in model.parameters()):
        pytest.skip("nothing of that kind here")
    other, attention = measured(model)
    expected = other + (TIME + 1) / 2 / TIME * attention
    assert training_flops(model, TIME) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("case", ["untied gelu", "shared"])
def test_an_adapters_backward_pass_is_counted_as_it_is(case):
    model = Transformer(96, width=64, context=TIME, **{**CASES[case], "tied": False})
    LoRA(rank=4, targets=["attention", "mlp"] + ["experts"] * (case == "shared")).apply(model, seed=0)
    other, attention = measured(model, sequences=32)
    expected = other + (TIME + 1) / 2 / TIME * attention
    # Products of A and B alone are made once a step for stacks of experts, however many tokens there are.
    assert training_flops(model, TIME) == pytest.approx(expected, rel=0.01 if case == "untied gelu" else 0.03)
    assert (
        training_flops(model, TIME)
        < 3 * training_flops(Transformer(96, width=64, context=TIME, **CASES[case]), TIME) / 3
    )


@pytest.mark.parametrize("kind", [LoRA, DoRA])
@pytest.mark.parametrize("target", ["attention", "mlp", "experts", "router", "head"])
def test_updates_of_every_matrix_are_counted_without_weights(target, kind):
    """Plans count so: a model without weights is on the meta device, where autocast is not supported."""
    model = Transformer(
        96, width=64, context=TIME, tied=False, mlp=partial(interleaved_moe, num_experts=8, num_shared=1)
    )
    adapter, empty = kind(rank=4, targets=[target]), without_weights(model)
    for version in (model, empty):
        adapter.apply(version, seed=0)
    assert next(empty.parameters()).is_meta and count_parameters(empty) == count_parameters(model)
    for flops in (training_flops, executed_flops):
        assert flops(empty, TIME) == flops(model, TIME)


HF_TRAINED = {
    "lora": LoRA(rank=4),
    "lora of attention": LoRA(rank=4, targets=["attention"]),
    "a layer in the middle": Freeze(train=["layers.1"]),
    "norms": Freeze(train=["norms"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "bert", "mixtral"])
def test_frozen_weights_and_adapters_make_the_backward_pass_of_hugging_face_models_cheaper(kind):
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 96}
    if kind == "mixtral":
        sizes |= {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    for name, adapter in HF_TRAINED.items():
        model = HFModel(96, kind, "random", sizes, context=TIME)
        assert training_flops(model, TIME) == 3 * model.forward_flops(TIME)
        adapter.apply(model, seed=0)
        other, attention = measured(model, sequences=8)
        expected = other + attention * ((TIME + 1) / 2 / TIME if model.causal else 1)
        assert training_flops(model, TIME) == pytest.approx(expected, rel=0.04), name


def test_a_recomputed_block_and_the_whole_square_under_a_mask_are_executed_and_not_counted():
    plain = Transformer(96, width=64, context=TIME)
    assert executed_flops(plain, TIME) == training_flops(plain, TIME)
    blocks = training_flops(plain, TIME) / 3 - plain.head.flops(TIME) - 2 * 2 * plain.blocks[0].mlp.down.weight.numel()
    assert executed_flops(plain, TIME, recomputed=True) == pytest.approx(training_flops(plain, TIME) + blocks)
    dense = [partial(WindowAttention, window=5), partial(LatentAttention, query_rank=16)]
    for kind in (*dense, partial(FullAttention, soft_cap=5.0), partial(FullAttention, positions="alibi")):
        model = Transformer(96, width=64, context=TIME, attention=kind)
        other, attention = measured(model)
        assert executed_flops(model, TIME) == pytest.approx(other + attention, rel=1e-6)
        assert training_flops(model, TIME) < executed_flops(model, TIME)


def test_every_expert_is_executed_by_the_dense_backend():
    dense, grouped = (
        Transformer(96, width=64, context=TIME, mlp=partial(interleaved_moe, num_experts=4, k=2, backend=backend))
        for backend in ("dense", "grouped")
    )
    other, attention = measured(dense)
    expected = other + (TIME + 1) / 2 / TIME * attention
    assert executed_flops(dense, TIME) == pytest.approx(expected, rel=0.03)  # and the sum over experts
    assert training_flops(dense, TIME) == training_flops(grouped, TIME) == executed_flops(grouped, TIME)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["rotary", "alibi"])
@pytest.mark.parametrize("kept", ["", "blocks.1.", "blocks.2.mlp.down", "head"])
def test_recomputation_is_what_the_counter_sees_also_with_masks_and_frozen_weights(positions, kept):
    model = Transformer(96, width=64, context=TIME, depth=3, tied=False, positions=positions)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(kept))
    share = 1 if positions == "alibi" else (TIME + 1) / 2 / TIME
    other, attention = measured(model)
    assert executed_flops(model, TIME) == pytest.approx(other + share * attention, rel=1e-6)
    checkpoint_activations(model)
    other, attention = measured(model)
    assert executed_flops(model, TIME, recomputed=True) == pytest.approx(other + share * attention, rel=1e-6)


@pytest.mark.parametrize("kept", ["", "blocks.1.", "head"])
def test_later_tokens_cost_a_block_and_a_product_with_the_head_each(kept):
    model = Transformer(96, width=64, context=TIME, tied=False, attention=NoMixing, future=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(kept))
    assert training_flops(model, TIME) == pytest.approx(measured(model)[0], rel=1e-6)


def test_flops_of_a_window_count_the_pairs_inside_it():
    for causal in (True, False):
        window = Transformer(96, width=64, context=TIME, attention=partial(WindowAttention, window=5), causal=causal)
        none = Transformer(96, width=64, context=TIME, attention=partial(WindowAttention, window=1), causal=causal)
        i = torch.arange(TIME)
        near = (i[:, None] - i).abs() < 5
        pairs = int((near & (i[:, None] >= i) if causal else near).sum())
        extra = 3 * 2 * 4 * 64 * (pairs - TIME) / TIME
        assert training_flops(window, TIME) - training_flops(none, TIME) == pytest.approx(extra)


def test_parameters_of_a_dense_model_by_hand():
    counts = count_parameters(Transformer(96, depth=2, width=64, qk_norm=False))
    blocks = 2 * (4 * 64 * 64 + 3 * 64 * 176 + 2 * 64) + 64
    assert (counts.non_embedding, counts.embedding) == (blocks, 96 * 64)
    assert counts.total == counts.active == counts.trainable == blocks + 96 * 64
    assert count_parameters(Transformer(96, width=64, tied=False)).embedding == 2 * 96 * 64


def test_active_parameters_leave_out_the_experts_not_visited():
    model = Transformer(96, width=64, mlp=partial(interleaved_moe, num_experts=8, k=2, num_shared=1))
    counts = count_parameters(model)
    assert counts.total - counts.active == 2 * 6 * 3 * 64 * model.blocks[0].mlp.hidden
    assert six_nd(counts) == 6 * counts.active


def test_updates_of_experts_that_are_not_visited_are_not_active():
    model = Transformer(96, width=64, mlp=partial(interleaved_moe, num_experts=8, k=2))
    before = count_parameters(model)
    DoRA(rank=4, targets=["experts"]).apply(model, seed=0)
    after = count_parameters(model)
    assert after.active - before.active == (after.total - before.total) / 4


def test_frozen_parameters_are_not_trainable():
    model = Transformer(96, width=64)
    model.embedding.requires_grad_(False)
    counts = count_parameters(model)
    assert counts.trainable == counts.total - 96 * 64


def test_equal_active_flops_dense_and_mixture():
    dense, mixture = Transformer(256, width=128), Transformer(256, width=128, mlp=interleaved_moe)
    assert training_flops(mixture, 256) == pytest.approx(training_flops(dense, 256), rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_that_the_objective_leaves_alone_costs_nothing(tied):
    """A run without a head of tokens would cost that much; heads of other tasks add nothing to anybody."""
    model = Transformer(96, width=64, context=TIME, tied=tied)
    plain, head = training_flops(model, TIME), 3 * 2 * 96 * 64
    model.add_head("topic", 5)
    assert training_flops(model, TIME) == plain
    if not tied:
        model.freeze_head()
    head_flops = 3 * 2 * 5 * 64 / TIME
    assert training_flops(model, TIME, ["topic"]) == pytest.approx(plain - head + head_flops, rel=1e-9)
    assert executed_flops(model, TIME, read=["topic"]) == training_flops(model, TIME, ["topic"])
