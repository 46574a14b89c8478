"""Values of different keys that contradict each other are refused, and the error names the keys."""

import pytest
from topic_choices import skip_without_topics

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.cross_checks import check_compatibility
from kleiber.config.errors import ConfigError
from kleiber.config.targets import argument

COMPOSER = Composer()
CONTRADICTIONS = [
    ("seed=5000000000", ["seed=5000000000", "4294967295"]),
    ("model.context=0", ["model.context=0"]),
    ("model=moe model.mlp.k=9", ["model.mlp.k=9", "model.mlp.num_experts=8"]),
    ("model=moe model/router=expert_choice", ["model/router=expert_choice", "acknowledge_leak=true"]),
    ("model.num_heads=3", ["model.num_heads=3", "model.aspect"]),
    ("model.num_heads=4 model.num_kv_heads=3", ["model.num_kv_heads=3", "model.num_heads=4"]),
    ("model/attention=delta data=instruct data.path=x", ["data.pack=true", "model/attention=delta"]),
    (
        "trainer.checkpoint_activations=selective model=lstm",
        ["trainer.checkpoint_activations=selective", "model=lstm", "trainer.checkpoint_activations=true"],
    ),
    (
        "trainer.checkpoint_activations=selective trainer.compile=true",
        ["trainer.checkpoint_activations=selective", "trainer.compile=true"],
    ),
    ("trainer.checkpoint_activations=half", ["trainer.checkpoint_activations=half", "selective"]),
    ("batch.tokens=4000", ["batch.tokens=4000", "model.context=256", "4096"]),
    ("trainer=ddp trainer.devices=3", ["batch.tokens=4096", "trainer.devices=3", "4608"]),
    (
        "objective=reward data=preference data.path=x trainer=fsdp trainer.devices=2 batch.tokens=1536",
        ["batch.tokens=1536", "3 pairs", "trainer.devices=2", "2048"],
    ),
    ("objective=dpo data=judged data.model=x batch.tokens=768", ["batch.tokens=768", "1.5 pairs", "1024"]),
    (
        "objective=classify objective.pooling=class-token data=glue/sst2",
        ["objective.pooling=class-token", "mean or last", "model=bert"],
    ),
    ("budget.tokens=1M budget.steps=3", ["budget.tokens=1M", "budget.steps=3"]),
    ("stages=trunk_and_cooldowns stages.branches=[1M] budget.steps=3", ["budget.steps=3", "stages.branches"]),
    ("stages=trunk_and_cooldowns stages.branches=[1M,1e6]", ["stages.branches=['1M', 1000000.0]", "twice"]),
    ("stages=chain", ["stages.chain=[]", "two stages"]),
    ("stages=docs_then_code ~stages.chain.docs", ["stages.chain=['code']", "two stages"]),
    ("stages=docs_then_code callbacks.checkpoints=null", ["callbacks.checkpoints=null", "stages"]),
    ("stages=docs_then_code retention=wise retention.wise.alphas=[0,0]", ["retention.wise.alphas=[0, 0]", "distinct"]),
    (
        "stages=docs_then_code retention=replay retention.replay.source=generated retention.replay.memory=4K",
        ["retention.replay.memory=4K", "source=real", "generated_tokens"],
    ),
    ("model=bert", ["objective=clm", "model.causal=false"]),
    ("model=bert objective=dpo data=preference data.path=x", ["objective=dpo", "model.causal=false"]),
    ("model=bert objective=dpo data=preference data.path=x", ["objective=dpo", "model.causal=false"]),
    ("model=bert objective=mlm data=reweighted", ["data=reweighted", "objective=mlm", "data=counterfactual"]),
    ("model=bert data=counterfactual objective=equalized", ["objective=equalized", "model.causal=false"]),
    ("model.future=1 objective=distill objective.teacher=x", ["model.future=1", "objective=distill"]),
    (
        "model.attention.prefix=true objective=dpo data=preference data.path=x",
        ["model.attention.prefix=true", "objective=dpo", "objective=sft"],
    ),
    ("model.attention.prefix=true model=bert objective=mlm", ["model.attention.prefix=true", "model.causal=true"]),
    ("model.attention.prefix=true model.depth=1", ["model.attention.prefix=true", "model.depth=1"]),
    ("model=hf model.path=gpt2 model.weights=random data=instruct data.path=x", ["data.pack=true", "model=hf"]),
    ("model=hf model.path=gpt2 model.weights=random data=instruct_sets", ["data.pack=true", "model=hf"]),
    (
        "model=hf model.path=gpt2 model.weights=random data=arithmetic",
        ["data.pack=true", "model=hf", "data.pack=false"],
    ),
    ("data=text data.path=x data.streaming=true budget.epochs=2", ["budget.epochs=2", "data.streaming=true"]),
    ("data=text data.path=x data.streaming=true evals=memorization", ["evals=memorization", "data.streaming=true"]),
    ("data=text data.path=x data.streaming=true evals=retrieval", ["evals.retrieval.store=null", "name texts"]),
    (
        "stages=docs_then_code data=text data.path=x data.streaming=true retention=replay",
        ["retention=[replay]", "data.streaming=true", "l2sp"],
    ),
    (
        "objective=dpo data=preference data.path=x objective.reference=adapter_off adapter=freeze",
        ["objective.reference=adapter_off", "adapter=lora"],
    ),
    (
        "stages=docs_then_code retention=l2sp retention.l2sp.strength=60 optimizer.lr=0.02",
        ["retention.l2sp.strength=60", "optimizer.lr=0.02", "<= 50"],
    ),
    (
        "model=hf model.path=llama model.weights=random adapter=lora retention=wise stages=docs_then_code",
        ["retention=wise", "adapter=lora", "model=hf"],
    ),
]


def compose(overrides: str) -> dict:
    return resolve_config(COMPOSER.compose(overrides.split()))[0]


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "values"), CONTRADICTIONS, ids=[overrides for overrides, _ in CONTRADICTIONS])
def test_the_error_names_every_key_that_contradicts_another(overrides, values):
    skip_without_topics(overrides)
    with pytest.raises(ConfigError) as caught:
        check(compose(overrides))
    assert all(value in str(caught.value) for value in values), str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        "model=moe model.mlp.k=8",
        "model.num_heads=4 model.num_kv_heads=2",
        "trainer=ddp trainer.devices=2",
        "stages=docs_then_code retention=l2sp retention.l2sp.strength=50 optimizer.lr=0.02",
        "model=bert objective=mlm",
        "data.tokenizer=bpe stages=chain stages.chain={one:{budget:{steps:1}},two:{budget:{steps:1}}}",
        "objective=classify data=labelled data.path=x data.tokenizer=bpe data.label=b stages=chain "
        "stages.chain={one:{data:{label:a,name:first}},two:{data:{label:b}}}",
        "model.future=1 data=counterfactual objective=equalized",
    ],
)
def test_compatible_values_pass(overrides):
    skip_without_topics(overrides)
    check(compose(overrides))


@pytest.mark.parametrize("method", ["retention=[l2sp,wise]", "+retention.mine._target_=kleiber.retention.L2SP"])
def test_methods_that_read_no_earlier_samples_work_with_streamed_text_and_privacy(method):
    check_compatibility(compose(f"data=text data.path=x data.streaming=true {method}"))
    check_compatibility(compose(f"privacy=dp_sgd {method}"))


def test_an_argument_has_its_default_until_it_is_set():
    node = {"_target_": "kleiber.optimizers.AdamW"}
    assert argument(node, "clip") == 1.0 and argument({**node, "clip": None}, "clip") is None
    assert argument(node, "no_such_argument") is None


@pytest.mark.parametrize("available", [True, False])
def test_a_gpu_is_refused_where_pytorch_finds_none(monkeypatch, available):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the files of devices say nothing then
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    config = resolve_config(COMPOSER.compose(["trainer=gpu"]))[0]
    if available:
        return check(config)
    with pytest.raises(ConfigError) as error:
        check(config)
    assert "trainer.accelerator=gpu" in str(error.value)
