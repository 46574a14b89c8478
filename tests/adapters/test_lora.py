"""LoRA and DoRA: nothing changes until they are trained, merging gives plain weights, and the asked for is trained."""

from functools import partial

import pytest
import torch
from adapters.small_moe import ALL, KINDS, TOKENS, VOCAB, build, logits, shaken

from kleiber.adapters.lora import DoRA, LoRA
from kleiber.models.transformer import Transformer
from kleiber.nn.patterns import layer_pattern
from kleiber.nn.sharding import load_optimizer, optimizer_state
from kleiber.optimizers.adamw import AdamW
from kleiber.training import checkpoint
from kleiber.types.batch import Batch, Role


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_starts_at_the_model_and_merging_untrained_is_exact_to_the_bit(dtype, kind):
    plain, model, adapter = build(dtype), build(dtype), kind(rank=2, targets=ALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter.apply(model, seed=1)
    assert torch.equal(logits(model, TOKENS), logits(plain, TOKENS))
    assert {p.dtype for p in model.parameters()} == {dtype}
    adapter.merge(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rslora"), [(LoRA, False), (LoRA, True), (DoRA, False)])
@pytest.mark.parametrize("target", ALL)
def test_merged_equals_unmerged_and_every_target_changes_the_output(target, kind, rslora):
    model, adapter = build(), kind(rank=2, alpha=3.0, rslora=rslora, targets=[target])
    start = logits(model, TOKENS)
    adapter.apply(model, seed=1)
    unmerged = logits(shaken(model, 0.5), TOKENS)
    assert float((unmerged - start).detach().abs().max()) > 1e-3
    adapter.merge(model)
    torch.testing.assert_close(logits(model, TOKENS), unmerged, atol=1e-6, rtol=1e-6)


def test_matrices_of_every_kind_of_attention_are_adapted_and_taps_are_not():
    torch.manual_seed(0)
    model = Transformer(VOCAB, 2, 32, context=16, attention=partial(layer_pattern, pattern=["delta", "latent"]))
    adapter = LoRA(rank=2, targets=["attention"])
    expected = {f"0.attention.{name}" for name in ("qkv", "gates", "z", "out")}
    expected |= {f"1.attention.{name}" for name in ("query", "down", "up", "out")}
    assert {name[len("blocks.") : -len(".weight")] for name in adapter.matrices(model)} == expected
    adapter.apply(model, seed=1)
    shaken(model, 0.5)
    batch = Batch(torch.randint(VOCAB, (2, 9)))
    hidden = model(batch).hidden
    adapter.merge(model)
    torch.testing.assert_close(model(batch).hidden, hidden, atol=1e-5, rtol=1e-5)


def test_the_update_is_alpha_over_rank_or_over_its_root_times_b_a():
    for rslora, scale in ((False, 3 / 4), (True, 3 / 2)):
        model, adapter = build(), LoRA(rank=4, alpha=3.0, rslora=rslora, targets=["attention", "experts"])
        linear, experts = model.blocks[0].attention.qkv, model.blocks[1].mlp.experts
        old = linear.weight.detach().clone(), experts.down.detach().clone()
        adapter.apply(model, seed=0)
        shaken(model)
        a, b = linear.weight_lora_a.detach().clone(), linear.weight_lora_b.detach().clone()
        stack = torch.einsum("eir,ero->eio", experts.down_lora_a, experts.down_lora_b).detach()
        adapter.merge(model)
        torch.testing.assert_close(linear.weight.detach(), old[0] + scale * b @ a)
        torch.testing.assert_close(experts.down.detach(), old[1] + scale * stack)


def test_the_default_scale_is_2_or_falls_with_the_root_of_the_rank_for_rslora():
    for kind in (LoRA, DoRA):
        assert [kind(rank=rank).scale for rank in (4, 16)] == [2.0, 2.0]
        assert [kind(rank=rank, rslora=True).scale for rank in (4, 16)] == [8.0, 4.0]
    assert LoRA(rank=8, rslora=True).scale == LoRA(rank=8, rslora=True, alpha=16.0).scale


def test_gradients_are_those_of_the_merged_weights_through_the_update():
    """d/dA of L(W + s B A) = s B^T dL/dW, with dL/dW from the merged model."""
    model, merge, adapter = build(), build(), LoRA(rank=2, targets=ALL)
    for one in (model, merge):
        adapter.apply(one, seed=1)
        shaken(one)
    factors = {n: p.detach().clone() for n, p in model.named_parameters() if "lora" in n}
    adapter.merge(merge)
    for one in (model, merge):
        logits(one, TOKENS).sin().sum().backward()
    wanted = dict(merge.named_parameters())
    for name, parameter in model.named_parameters():
        if name.endswith("_lora_a"):
            weight = wanted[name.removesuffix("_lora_a")].grad
            b = factors[name.replace("_lora_a", "_lora_b")]
            grad = b.mT @ weight if b.ndim == 2 else weight @ b.mT
            torch.testing.assert_close(parameter.grad, adapter.scale * grad)


@pytest.mark.parametrize("kind", KINDS)
def test_only_updates_and_heads_of_tasks_train_and_each_gets_a_gradient(kind):
    model = build(tied=True)
    for name in ("task", "other"):
        model.add_head(name, 3)
    model.heads["other"].requires_grad_(False)
    kind(rank=2).apply(model.double(), seed=1)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if "lora" in n or n.startswith("heads.task.")}
    assert any("experts.gate_up_lora_a" in n for n in trained) and not any("router" in n for n in trained)
    hidden = model(Batch(TOKENS)).hidden
    (model.head(hidden).sin().sum() + model.heads["task"](hidden).sum()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_the_seed_alone_decides_and_the_random_numbers_are_left_alone():
    state, models = torch.random.get_rng_state(), []
    for seed in (1, 1, 2):
        model = build()
        torch.random.set_rng_state(state)
        LoRA().apply(model, seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        models.append(model.blocks[0].attention.qkv.weight_lora_a)
    assert torch.equal(models[0], models[1]) and not torch.equal(models[0], models[2])


def test_roles_give_a_the_rate_of_a_hidden_matrix_and_b_the_full_one():
    model = build()
    LoRA(rank=2, targets=ALL).apply(model, seed=1)
    roles, scale = model.roles(), model.parametrization.lr_scale
    assert list(roles) == [name for name, _ in model.named_parameters()]
    assert roles["blocks.0.attention.qkv.weight_lora_a"] == Role("hidden", 32, depth=2, fixed_outputs=True)
    assert roles["blocks.0.mlp.experts.down_lora_a"].fan_in == model.blocks[0].mlp.hidden
    assert scale(roles["blocks.0.mlp.experts.down_lora_a"]) == 32 / model.blocks[0].mlp.hidden
    assert all(scale(role) == 1 for name, role in roles.items() if name.endswith("_lora_b"))
    groups = AdamW(weight_decay=0.1).build(model, roles, scale).param_groups
    assert all("lora" in name and group["weight_decay"] > 0 for group in groups for name in group["names"])


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_it_gives_the_same_output_and_gradients(kind, unchecked):

    model = build(torch.float32, depth=1)
    kind(rank=2, targets=ALL).apply(model, seed=1)
    shaken(model)
    parameters = [p for p in model.parameters() if p.requires_grad and p is not model.head.weight_lora_a]
    plain = model(Batch(TOKENS)).hidden
    model.compile(backend="aot_eager")
    fast = model(Batch(TOKENS)).hidden
    both = [torch.autograd.grad(h.sin().sum(), parameters, allow_unused=True) for h in (plain, fast)]
    torch.testing.assert_close(fast, plain)
    for one, other in zip(*both, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_bf16_autocast_does_not_round_the_weights_of_experts():
    model = build(torch.float32)
    LoRA(rank=2, targets=["experts"]).apply(model, seed=1)
    experts = model.blocks[0].mlp.experts
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(experts.gate_up, experts._parameters["gate_up"])


def test_what_cannot_be_adapted_is_refused_by_key():
    with pytest.raises(ValueError, match="qkv"):
        LoRA(targets=["qkv"])
    with pytest.raises(ValueError, match="tied"):
        LoRA(targets=["head"]).apply(build(tied=True), 0)
    from kleiber.nn.mlp import SwiGLU

    with pytest.raises(ValueError, match=r"adapter\.targets: experts"):
        LoRA(targets=["experts"]).check(build(mlp=SwiGLU))


@pytest.mark.parametrize("adapter", [LoRA, DoRA])
def test_a_rank_above_the_width_is_refused(adapter):
    model = build()
    adapter(rank=model.width).check(model)
    with pytest.raises(ValueError, match=rf"adapter\.rank={model.width + 1} .*{model.width}"):
        adapter(rank=model.width + 1).check(model)


def steps(model, optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        tokens = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(step))
        logits(model, tokens).sin().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def adapted(kind=LoRA, seed: int = 1):
    model = build(torch.float32)
    kind(rank=2, targets=ALL).apply(model, seed)
    return model, AdamW().build(model, model.roles(), model.parametrization.lr_scale)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_alone_is_saved_and_resumes_to_the_bit(tmp_path, kind):
    straight, optimizer = adapted(kind)
    steps(straight, optimizer, 0, 3)
    names = checkpoint.trained_names(straight)
    saved = checkpoint.save(tmp_path, 3, straight, {"optimizer": optimizer_state(optimizer)}, "h", names)
    whole = checkpoint.save(tmp_path / "whole", 3, straight, {}, "h")
    sizes = [(c.path / "model.safetensors").stat().st_size for c in (saved, whole)]
    assert sizes[0] < sizes[1] / 2 and saved.names == names and all("lora" in name for name in names)
    steps(straight, optimizer, 3, 6)
    resumed, again = adapted(kind, seed=9)  # other first factors: the checkpoint must bring its own
    found = checkpoint.read(saved.path)
    found.load_model(resumed, checkpoint.trained_names(resumed))
    load_optimizer(again, found.load_state()["optimizer"])
    steps(resumed, again, 3, 6)
    assert all(torch.equal(p, dict(resumed.named_parameters())[n]) for n, p in straight.named_parameters())


def test_the_update_of_a_head_that_the_objective_does_not_read_is_not_trained():
    model = build()
    model.add_head("task", 2)
    LoRA(rank=2, targets=["attention", "head"]).apply(model, seed=1)
    model.freeze_head()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("head.") for name in trained) and any("attention" in name for name in trained)
