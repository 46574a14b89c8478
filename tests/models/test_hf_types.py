"""Types of Hugging Face models that differ from most: required special ids, and other names and shapes of experts."""

import pytest
import torch

from kleiber.adapters.lora import LoRA
from kleiber.models.hf import HFModel
from kleiber.types.batch import Batch

VOCAB = 48
WIDE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.mark.parametrize("kind", ["modernbert-decoder", "nomic_bert"])
def test_every_token_has_a_trained_embedding_also_where_the_type_requires_special_ids(kind):
    model = HFModel(VOCAB, kind, "random", WIDE, context=16)
    model(Batch(torch.arange(VOCAB).view(-1, 16))).hidden.square().sum().backward()
    assert bool((model.embedding.weight.grad != 0).any(1).all())


def test_a_type_without_hidden_states_is_refused():
    sizes = WIDE | {"num_key_value_heads": 2, "intermediate_size_mlp": 64, "num_local_experts": 2, "head_dim": 8}
    with pytest.raises(ValueError, match=r"model\.path=llama4_text"):
        HFModel(VOCAB, "llama4_text", "random", sizes, context=16)


def test_biases_of_stacked_experts_are_vectors():
    sizes = WIDE | {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    model = HFModel(VOCAB, "gpt_oss", "random", sizes, context=16)
    biases = [name for name in model.roles() if name.endswith("experts.gate_up_proj_bias")]
    assert len(biases) == 2 and {model.roles()[name].kind for name in biases} == {"vector"}
    adapted = LoRA(targets=["experts"]).matrices(model)
    assert {name.rpartition(".")[2] for name in adapted} == {"gate_up_proj", "down_proj"}
    assert not set(biases) & set(model.visited_weights())


def test_a_token_visits_k_of_the_stacks_of_experts_under_any_name():
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_key_value_heads": 1, "kv_channels": 8}
    sizes |= {"intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2}
    model = HFModel(VOCAB, "jetmoe", "random", sizes, context=16)
    stacks = [parameter for parameter in model.inner.parameters() if parameter.ndim == 3]
    assert len(stacks) == 4
    assert model.idle() == pytest.approx(sum(stack.numel() for stack in stacks) * 6 / 8, rel=1e-3)  # and biases
