"""Routers without parameters: what their choice depends on, and its uniformity."""

import pytest
import torch

from kleiber.nn.mup import Site
from kleiber.nn.routers.hash import Hash, Random, equal_weights, hash_numbers
from kleiber.types.batch import Batch


def test_hash_depends_on_the_id_and_the_layer_alone():
    ids = torch.arange(4000).view(40, 100)
    router, next_layer = (Hash(Site(16, 2, layer), 8, 2) for layer in (0, 1))
    first = router(torch.randn(4000, 16), Batch(ids)).experts
    assert torch.equal(first, router(torch.randn(4000, 16), Batch(ids)).experts)
    assert 0.05 < float((first == next_layer(torch.randn(4000, 16), Batch(ids)).experts).float().mean()) < 0.25
    load = torch.bincount(first.flatten(), minlength=8)
    assert float(load.min()) > 850 and float(load.max()) < 1150, "8000 assignments to 8 experts"
    with pytest.raises(ValueError, match="batch"):
        router(torch.randn(3, 16))


def test_random_depends_on_sample_and_position_and_is_uniform():
    router = Random(Site(16), 8, 2)
    batch = Batch(torch.zeros(40, 100, dtype=torch.long), samples=torch.arange(40))
    experts = router(torch.randn(4000, 16), batch).experts
    load = torch.bincount(experts.flatten(), minlength=8)
    assert float(load.min()) > 850 and float(load.max()) < 1150
    half = batch.map(lambda t: t[20:])
    assert torch.equal(router(torch.randn(2000, 16), half).experts, experts[2000:])


def test_equal_weights_go_to_the_largest_numbers_and_are_their_scores():
    numbers = torch.tensor([[3, 9, 1, 5], [8, 2, 7, 0]])
    routing = equal_weights(numbers, 2, torch.zeros(2, 16, dtype=torch.bfloat16))
    assert routing.experts.tolist() == [[1, 3], [0, 2]] and routing.weights.dtype == torch.float32
    assert routing.scores.tolist() == [[0, 0.5, 0, 0.5], [0.5, 0, 0.5, 0]] and routing.logits is None


def test_hash_numbers_are_those_of_splitmix64():
    def mix(state: int) -> int:
        state = (state + 0x1E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    numbers = hash_numbers(torch.tensor([0, 7, 2**40]), 3, 5)
    for row, key in zip(numbers.tolist(), (0, 7, 2**40), strict=True):
        assert [number % 2**64 for number in row] == [mix((key * 3 + expert) * 64 + 5) for expert in range(3)]


def test_layers_that_are_64_apart_have_other_numbers():
    first, later = (hash_numbers(torch.arange(256), 8, layer).flatten() for layer in (1, 65))
    assert not set(first.tolist()) & set(later.tolist())
