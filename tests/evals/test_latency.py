"""Latency: what is timed is decoding as it is done elsewhere, and the memory is that of weights and a full cache."""

import json

import pytest
import torch

from kleiber.evals.latency import cache_bytes, latency, measure
from kleiber.launch.cli import main
from kleiber.models.hf import HFModel
from kleiber.models.transformer import Transformer
from kleiber.types.batch import Batch

NAMES = {"prefill_tokens_per_s", "decode_tokens_per_s", "decode_p50_ms", "decode_p95_ms", "memory_bytes"}


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_every_batch_size_has_every_number_and_memory_grows_by_the_cache_alone(kind):
    small = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
    if kind == "ours":
        model = Transformer(40, width=32, context=24)
    else:
        model = HFModel(40, "gpt2", "random", small, context=24)
    told = latency(model, batches=(1, 4), prompt=8, new=4, repeats=1)
    assert set(told) == {f"{name}/{rows}" for name in NAMES for rows in (1, 4)}
    assert all(value > 0 for value in told.values()) and told["decode_p50_ms/1"] <= told["decode_p95_ms/1"]
    # Keys and values of one row, two layers of width 32 in fp32; the last token made is not read.
    row = 2 * 2 * 32 * 4 * (12 if kind == "ours" else 11)
    assert told["memory_bytes/4"] - told["memory_bytes/1"] == 3 * row
    assert told["memory_bytes/1"] - row == sum(p.numel() * 4 for p in model.parameters())
    assert cache_bytes(model.new_caches(12)) == 0


def test_a_decoder_reads_the_prompt_once_and_then_a_token_at_a_time():
    shapes = []

    def step(ids):
        shapes.append(tuple(ids.shape))
        return torch.zeros(len(ids), 5)

    measure(lambda: step, 5, rows=3, prompt=7, new=4, repeats=1, device=torch.device("cpu"))
    assert shapes == ([(3, 7)] + [(3, 1)] * 3) * 2


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"prompt=8 and new=5.*context=12"):
        latency(Transformer(40, width=32, context=12), prompt=8, new=5)
    with pytest.raises(ValueError, match="bidirectional"):
        latency(Transformer(40, width=32, context=12, causal=False))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.slow
def test_a_compiled_model_is_compiled_no_further(unchecked):
    """Every step of decoding has a length of its own, and would have a graph of its own."""
    model, graphs = Transformer(40, width=32, context=24), []
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward, dynamic=False)
    latency(model, batches=(1,), prompt=8, new=4, repeats=1)
    assert graphs == []
    model(Batch(torch.zeros(1, 8, dtype=torch.long)))
    assert graphs, "training goes on compiled"


def test_a_model_goes_on_in_the_mode_in_which_it_was_found():
    model = Transformer(40, width=32, context=24)
    for mode in (True, False):
        latency(model.train(mode), batches=(1,), prompt=8, new=4, repeats=1)
        assert model.training is mode


@pytest.mark.slow
def test_a_run_is_timed_from_the_command_line(launch, tmp_path):
    run, out = launch("trainer.max_steps=2"), tmp_path / "told.json"
    assert main(["eval", str(run), "--evals", "latency", "--json", str(out)]) == 0
    told = json.loads(out.read_text())["evals"]["latency"]["random"]
    assert set(told) == {f"{name}/{rows}" for name in NAMES for rows in (1, 8, 64)}
