"""The numbers of the two parametrizations, and the coordinate check: activations do not change with the width."""

from functools import partial

import pytest
import torch

from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.delta import GatedDeltaNet
from kleiber.nn.latent import LatentAttention
from kleiber.nn.loss import cross_entropy
from kleiber.nn.moe import interleaved_moe
from kleiber.nn.mup import MuP, StandardParametrization
from kleiber.optimizers.adamw import AdamW
from kleiber.optimizers.muon import Muon
from kleiber.optimizers.sgd import SGD
from kleiber.types.batch import Batch, Role

OTHER_LAYERS = {
    "alibi": {"positions": "alibi"},
    "learned": {"positions": "learned"},
    "value residual": {"attention": partial(FullAttention, value_residual=True, soft_cap=20.0)},
    "latent": {"attention": LatentAttention},
    "delta": {"attention": GatedDeltaNet},
}


def test_both_agree_with_plain_attention_at_the_base_head_and_all_is_one_at_the_base():
    mup = MuP()
    assert mup.attention(16) == StandardParametrization().attention(16)
    assert mup.residual(2) == mup.output(32).multiplier == mup.router(32).multiplier == 1
    assert mup.lr_scale(Role("hidden", 32)) == 1


@pytest.mark.parametrize("tied", [True, False])
def test_at_the_base_only_matrices_of_another_fan_in_have_a_factor(tied):
    model = Transformer(40, depth=2, width=32, context=16, tied=tied, mlp=partial(interleaved_moe, every=2))
    factors = {name: MuP().lr_scale(role) for name, role in model.roles().items()}
    other = {name: 32 / model.roles()[name].fan_in for name in factors if ".down" in name}
    assert {name: factor for name, factor in factors.items() if factor != 1} == other
    assert len(other) == 2 and all(factor < 1 for factor in other.values())
    assert model.head.multiplier == model.blocks[0].residual == model.blocks[1].mlp.router.linear.multiplier == 1
    assert model.embedding_multiplier == (pytest.approx(32**0.5) if tied else 1)


def test_hidden_learning_rates_fall_with_fan_in_and_nothing_else_does():
    mup = MuP(base_width=64)
    assert mup.lr_scale(Role("hidden", 256)) == 0.25
    for kind in ("embedding", "output", "vector"):
        assert mup.lr_scale(Role(kind, 256)) == 1
    assert {
        StandardParametrization().lr_scale(Role(kind, 512)) for kind in ("embedding", "hidden", "output", "vector")
    } == {1.0}


def test_learning_rates_inside_blocks_fall_with_the_depth_and_outside_they_do_not():
    model = Transformer(40, depth=8, width=32, context=16, tied=False)
    factors = {name: MuP(base_depth=2).lr_scale(role) for name, role in model.roles().items()}
    matrices = {name: role for name, role in model.roles().items() if ".down" not in name}
    assert {factors[name] for name in matrices if name.startswith("blocks.")} == {0.5}
    assert {factors[name] for name in matrices if not name.startswith("blocks.")} == {1.0}


def test_muon_takes_the_root_of_the_width_alone_and_none_where_the_number_of_outputs_is_fixed():
    mup = MuP(base_width=32, base_depth=2)
    assert mup.lr_scale(Role("hidden", 128, depth=8), rule="muon") == 0.5 * 0.5
    assert mup.lr_scale(Role("hidden", 128, depth=8)) == 0.25 * 0.5
    assert mup.lr_scale(Role("hidden", 128, fixed_outputs=True), rule="muon") == 0.25


def test_rates_of_sgd_grow_with_the_width_outside_of_hidden_matrices_and_do_not_depend_on_the_depth():
    mup = MuP(base_width=32, base_depth=2)
    assert mup.lr_scale(Role("hidden", 128, depth=8), rule="sgd") == 1
    assert {mup.lr_scale(Role(kind, 128), rule="sgd") for kind in ("embedding", "output", "vector")} == {4.0}
    assert mup.lr_scale(Role("vector", 128, depth=8), rule="sgd") == 4.0
    assert StandardParametrization().lr_scale(Role("output", 128), rule="sgd") == 1


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [AdamW(lr=2e-4), Muon(lr=2e-3), SGD(lr=1e-3)], ids=["adamw", "muon", "sgd"])
def test_what_steps_in_blocks_change_of_the_stream_does_not_depend_on_the_depth(optimizer):
    """Without the factor of the learning rates it grows as the square root of the depth, by 4 from 2 to 32 blocks."""
    changes = {}
    for depth in (2, 32):
        torch.manual_seed(0)
        model = Transformer(64, depth, 32, context=32, num_heads=2)
        batch = Batch(torch.randint(64, (8, 32)))
        streams: list[torch.Tensor] = []
        model.norm.register_forward_hook(lambda _module, inputs, _output, into=streams: into.append(inputs[0].detach()))
        embedding = model.embedding.weight.detach().clone()
        built = optimizer.build(model, model.roles(), model.parametrization.lr_scale)
        for _ in range(8):
            cross_entropy(model(batch).hidden[:, :-1], model.head, batch.tokens[:, 1:]).total.backward()
            built.step()
            built.zero_grad()
        with torch.no_grad():
            model.embedding.weight.copy_(embedding)
            model(batch)
        changes[depth] = float((streams[-1] - streams[0]).square().mean().sqrt())
    assert 0.6 < changes[32] / changes[2] < 1.6


def test_initial_scales():
    mup, standard = MuP(), StandardParametrization()
    assert mup.hidden_std(64) == mup.projection_std(64, 9) == 1 / 8
    assert mup.output(64).std == 0 and mup.embedding(False) == (1, 1)
    assert mup.embedding(True).std * mup.embedding(True).multiplier == pytest.approx(1)
    assert mup.residual(8) == 0.5
    assert (
        standard.projection_std(64, 8) == 0.02 / 4
        and standard.residual(8) == 1
        and standard.embedding(True) == (0.02, 1)
    )


def keep_output(outputs, name, _module, _inputs, output) -> None:
    outputs[name] = output[0]


def rms_after_steps(
    width: int, parametrization, mixture: bool, tied: bool = True, steps: int = 5, seeds: int = 2, **layers: object
) -> dict[str, float]:
    """RMS of each block's output, and of what the logits moved, after a few Adam steps on one batch."""
    from kleiber.models.transformer import Transformer
    from kleiber.nn.loss import cross_entropy
    from kleiber.nn.moe import interleaved_moe
    from kleiber.types.batch import Batch

    means: dict[str, float] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        options = ({"mlp": interleaved_moe} if mixture else {}) | layers
        model = Transformer(
            64, 3, width, context=32, parametrization=parametrization, num_heads=2, tied=tied, **options
        )
        roles = model.roles()
        groups = [{"params": [p], "lr": 0.01 * parametrization.lr_scale(roles[n])} for n, p in model.named_parameters()]
        optimizer = torch.optim.Adam(groups)
        tokens = torch.randint(64, (16, 33), generator=torch.Generator().manual_seed(seed))
        batch, targets = Batch(tokens[:, :-1]), tokens[:, 1:]
        with torch.no_grad():
            start = model.head(model(batch).hidden)
        for _ in range(steps):
            output = model(batch)
            total = cross_entropy(output.hidden, model.head, targets).total / targets.numel()
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
        outputs: dict[str, torch.Tensor] = {}
        for i, block in enumerate(model.blocks):
            block.register_forward_hook(partial(keep_output, outputs, f"block {i}"))
        with torch.no_grad():
            outputs["logits moved"] = model.head(model(batch).hidden) - start
        for name, value in outputs.items():
            means[name] = means.get(name, 0.0) + float(value.square().mean().sqrt()) / seeds
    return means


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mixture", [False, True])
def test_coordinate_check_activations_do_not_move_with_width(mixture, tied):
    table = [rms_after_steps(width, MuP(), mixture, tied) for width in (32, 64, 128, 256)]
    for block in ("block 0", "block 1", "block 2"):
        values = [row[block] for row in table]
        assert max(values) / min(values) < 1.2, (block, values)
    # What the logits move by nears its limit from above, as 1/sqrt(width) of chance overlaps dies out.
    moved = [row["logits moved"] for row in table]
    assert 0.8 < moved[3] / moved[2] < 1.2, moved


@pytest.mark.slow
@pytest.mark.parametrize("layers", OTHER_LAYERS)
def test_coordinate_check_of_other_layers(layers):
    table = [rms_after_steps(width, MuP(), False, **OTHER_LAYERS[layers]) for width in (32, 64, 128, 256)]
    for block in ("block 0", "block 1", "block 2"):
        values = [row[block] for row in table]
        assert max(values) / min(values) < 1.2, (block, values)


@pytest.mark.slow
def test_coordinate_check_sees_standard_parametrisation_grow():
    small, large = (rms_after_steps(width, StandardParametrization(), False) for width in (32, 256))
    assert large["block 2"] / small["block 2"] > 10 and large["logits moved"] / small["logits moved"] > 2
