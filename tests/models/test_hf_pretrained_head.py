"""The output layer and the causality of a wrapped model, which are measured, and copies of both."""

import copy

import pytest
import torch

from kleiber.models.hf import HFModel
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch

VOCAB = 48
SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
ENCODERS = {
    "bert": SIZES,
    "roberta": SIZES,
    "albert": SIZES | {"embedding_size": 16},
    "distilbert": {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 64},
}


def shaken(kind: str) -> HFModel:
    torch.manual_seed(0)
    model = HFModel(VOCAB, kind, "random", ENCODERS[kind], context=16).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_head_of_a_copy_is_the_copys_own(kind):
    model, ids = shaken(kind), torch.randint(VOCAB, (1, 6))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        hidden = model(Batch(ids)).hidden
        before = copied.head(hidden)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        assert torch.equal(copied.head(hidden), before) and not torch.allclose(model.head(hidden), before)


def test_what_reads_both_ways_is_not_causal_whatever_it_was_saved_as(tmp_path):
    from transformers import BertConfig, BertLMHeadModel

    BertLMHeadModel(BertConfig(vocab_size=VOCAB, **SIZES)).save_pretrained(tmp_path)
    sizes = {"d_model": 32, "n_head": 2, "d_head": 16, "n_layer": 1, "d_inner": 64}
    ids = torch.randint(VOCAB, (2, 6))
    for model in (HFModel(VOCAB, str(tmp_path), context=16), HFModel(VOCAB, "xlnet", "random", sizes, context=16)):
        assert not model.causal
        with pytest.raises(ValueError, match="objective=clm"):
            CLM().check(model)
        torch.testing.assert_close(model.eval().head(model(Batch(ids)).hidden), model.inner(input_ids=ids).logits)


@pytest.mark.parametrize(("kind", "changes"), [("granite", {"logits_scaling": 4.0}), ("cohere", {"logit_scale": 0.25})])
def test_a_multiplier_of_logits_that_is_not_known_here_is_found_where_the_first_row_is_padding(kind, changes, tmp_path):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[kind](vocab_size=VOCAB, pad_token_id=0, num_key_value_heads=2, **SIZES, **changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.path="):
        _ = HFModel(VOCAB, str(tmp_path), context=16).head.weight
