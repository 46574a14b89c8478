"""Caches of keys and values, and of states: what they keep, and which rows remain after a selection."""

import torch

from kleiber.models.cache import Cache, KeyValueCache


def test_buffers_grow_and_keys_may_have_another_size_than_values():
    cache, keys, values = Cache(3), torch.randn(2, 1, 9, 4), torch.randn(2, 1, 9, 6)
    for part in (slice(0, 2), slice(2, 7), slice(7, 9)):
        k, v = cache.extend(keys[:, :, part], values[:, :, part])
        assert torch.equal(k, keys[:, :, : part.stop]) and torch.equal(v, values[:, :, : part.stop])
    assert len(cache) == 9


def test_a_selection_has_the_rows_of_keys_and_of_states():
    caches = KeyValueCache(2, 4)
    keys, state = torch.randn(3, 1, 4, 2), torch.randn(3, 5)
    caches.layers[0].extend(keys, keys)
    caches.layers[1].advance((state,), 4)
    selected, rows = caches.select(torch.tensor([2, 2, 0]), 6), [2, 2, 0]
    assert torch.equal(selected.layers[0].extend(keys[:, :, :0], keys[:, :, :0])[0], keys[rows])
    assert torch.equal(selected.layers[1].state[0], state[rows])
    assert [len(layer) for layer in selected.layers] == [4, 4] and len(selected) == 4


def test_rows_that_change_places_keep_what_they_share_where_it_is():
    shared, later, state = torch.randn(1, 1, 2, 3).expand(3, 1, 2, 3), torch.randn(3, 1, 2, 3), torch.randn(3, 5)
    caches, order = KeyValueCache(2, 6), torch.tensor([2, 0, 0])
    caches.layers[0].extend(torch.cat([shared, later], 2), torch.cat([shared, later], 2))
    caches.layers[1].advance((state,), 4)
    place, expected = caches.layers[0].keys.data_ptr(), caches.select(order, 6)
    moved = caches.reorder(order, 6, shared=2)
    for layer, other in zip(moved.layers, expected.layers, strict=True):
        assert len(layer) == len(other) == 4
        for tensor, wanted in zip(layer.tensors(), other.tensors(), strict=True):
            assert torch.equal(tensor[..., :4, :], wanted[..., :4, :])
    assert moved.layers[0].keys.data_ptr() == place
