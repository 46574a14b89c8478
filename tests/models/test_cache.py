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
