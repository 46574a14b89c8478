"""Updates by peft stand on the matrices that were asked for and on no others, whatever peft makes of a mixture."""

import pytest
import torch

from kleiber.adapters.lora import LoRA
from kleiber.models.hf import HFModel
from kleiber.types.batch import Batch

VOCAB = 48
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
SIZES = SHAPE | {"intermediate_size": 64}
SPARSE = {  # of which peft would adapt other matrices than those asked for
    "deepseek_v3": SIZES | {
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    },
    "qwen3_moe": SIZES | {
        "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "mlp_only_layers": [0],
    },
    "mixtral": SIZES | {"num_key_value_heads": 2, "num_local_experts": 4},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "targets"),
    [(kind, None) for kind in SPARSE] + [("qwen3_moe", ["mlp"]), ("mixtral", ["experts"]), ("mixtral", ["attention"])],
)
def test_lora_by_peft_adapts_in_mixtures_exactly_what_is_asked_for_and_merges(kind, targets):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model, adapter = HFModel(VOCAB, kind, "random", SPARSE[kind], context=16).eval(), LoRA(rank=2, targets=targets)
    ids, asked, before = torch.randint(VOCAB, (2, 9)), adapter.matrices(model), list(model.state_dict())
    adapter.apply(model, seed=1)
    updated = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(updated) == len(asked)
    plain = {name.replace(".base_layer", "").partition(".lora_A")[0] for name in updated}
    assert plain == {
        name.removesuffix(".weight") if name.endswith(".weight") else name.rpartition(".")[0] for name in asked
    }
    assert all(p.shape[0] <= 2 * 4 for n, p in model.named_parameters() if "lora_A" in n), "the rank that was set"
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    unmerged = model(Batch(ids)).hidden
    adapter.merge(model)
    assert list(model.state_dict()) == before
    torch.testing.assert_close(model(Batch(ids)).hidden, unmerged, atol=1e-4, rtol=1e-3)


def test_what_peft_adapts_besides_is_refused_by_name(monkeypatch):
    peft = pytest.importorskip("peft")
    inject = peft.inject_adapter_in_model

    def fewer(config, inner):
        config.target_modules.discard("inner.transformer.h.1.attn.c_attn")
        return inject(config, inner)

    monkeypatch.setattr(peft, "inject_adapter_in_model", fewer)
    with pytest.raises(ValueError, match=r"inner\.transformer\.h\.1\.attn\.c_attn\.weight.*adapter\.targets"):
        LoRA(rank=2).apply(HFModel(VOCAB, "gpt2", "random", SHAPE, context=16), 0)
