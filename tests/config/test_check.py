"""A config that cannot be right is refused with the key and the cure, and every config we ship is not."""

import inspect
import subprocess
import sys

import pytest
from hydra.utils import get_object

from kleiber.config.check import check
from kleiber.config.compose import Composer, conf_dir, resolved
from kleiber.config.errors import ConfigError
from kleiber.config.signatures import signature

COMPOSER = Composer()


def composed(*overrides: str) -> dict:
    return resolved(COMPOSER.compose(list(overrides)))[0]


REFUSED = [
    ("modl=moe", ["modl", "model"]),
    ("model=gptt", ["'gpt'", "bert, gpt, hf, moe"]),
    ("model/mlp=swiglx", ["'swiglu'", "gelu, moe, swiglu"]),
    ("model/mlpp=moe", ["model/mlpp", "model/mlp"]),
    ("model.dpeth=3", ["model.dpeth", "'depth'"]),
    ("+model.dpeth=3", ["model.dpeth", "'depth'"]),
    ("callbacks.sampels.num=3", ["callbacks.sampels", "'samples'"]),
    ("experiment=e9", ["experiment=e9"]),
    ("study=scalling", ["study=scalling"]),
    ("model=../data/c4", ["no such choice"]),
    ("model.mlp=moe", ["model/mlp=moe"]),
    ("model.depth=abc", ["model.depth=abc", "integer"]),
    ("model.depth='3'", ["model.depth=3", "integer", "str"]),
    ("model.depth=2.0", ["model.depth", "integer"]),
    ("seed=99999999999999999999", ["seed=99999999999999999999", "4294967295"]),
    ("eval.tokens=0", ["eval.tokens", "0"]),
    ("eval.watch_tokens=-5", ["eval.watch_tokens", "-5"]),
    ("seed=true", ["seed=True", "integer"]),
    ("optimizer.betas=[a,2]", ["optimizer.betas", "number"]),
    ("logger.wandb.mode=onlin", ["logger.wandb.mode", "'offline'"]),
    ("model.vocab_size=3", ["model.vocab_size", "supplies"]),
    ("budget.tokens=20Q", ["budget.tokens", "20M"]),
    ("budget=3", ["budget", "tokens"]),
    ("eval.every_steps=-1", ["eval.every_steps=-1"]),
    ("batch.micro=0", ["batch.micro=0"]),
    ("batch.tokens=4000", ["batch.tokens=4000", "model.context=256"]),
    ("model.num_heads=3", ["model.num_heads=3", "width"]),
    ("model.depth=0", ["model.depth=0"]),
    ("trainer.devices=2", ["trainer.devices=2", "trainer=ddp"]),
    ("trainer=fsdp trainer.devices=1", ["trainer.devices=1", "trainer=fsdp"]),
    ("trainer=fsdp trainer.compile=true", ["trainer.compile=true", "trainer=fsdp"]),
    ("trainer=fsdp optimizer=muon", ["optimizer=muon", "trainer=fsdp"]),
    ("trainer=fsdp stages=docs_then_code retention=[replay,ewc]", ["retention", "trainer=fsdp"]),
    ("trainer=fsdp adapter=lora", ["adapter", "trainer=fsdp"]),
    ("trainer=fsdp callbacks=[default,ema]", ["callbacks.ema", "trainer=fsdp"]),
    ("model=null", ["model"]),
    ("model._target_=os.system", ["os.system", "not allowed"]),
    ("model._target_=torch.hub.load", ["torch.hub.load", "not allowed"]),
    ("model._target_=kleiber.training.trainer.torch.load", ["kleiber.training.trainer.torch"]),
    ("model._target_=kleiber.training.trainer.DDPStrategy", ["DDPStrategy"]),
    ("optimizer._target_=torch.optim.lr_scheduler.bisect_right", ["not allowed"]),
    ("hydra.run.dir=../x", ["hydra.run.dir", "root="]),
    ("'a b'", []),
]


@pytest.mark.parametrize(("override", "words"), REFUSED, ids=[override for override, _ in REFUSED])
def test_what_cannot_be_right_is_refused_with_the_key_and_the_cure(override, words):
    with pytest.raises(ConfigError) as caught:
        check(composed(*override.split()))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_target_that_is_not_allowed_is_not_even_imported():
    sys.modules.pop("this", None)
    with pytest.raises(ConfigError, match="not allowed"):
        signature("this.s")
    assert "this" not in sys.modules


def test_pairs_of_keys_are_both_named():
    for overrides, words in (
        (["model=moe", "model.mlp.k=9"], ["model.mlp.k=9", "model.mlp.num_experts=8"]),
        (["model.num_heads=4", "model.num_kv_heads=3"], ["model.num_kv_heads=3", "model.num_heads=4"]),
        (["trainer=ddp", "trainer.devices=3"], ["batch.tokens=4096", "trainer.devices=3"]),
        (["budget.tokens=1M", "budget.steps=3"], ["budget.tokens=1M", "budget.steps=3"]),
        (
            ["objective=dpo", "data=preference", "data.path=x", "objective.reference=adapter_off", "adapter=freeze"],
            ["objective.reference=adapter_off", "adapter=lora"],
        ),
        (["model=bert"], ["objective=clm", "model.causal=false"]),
        (
            [*(f"model{one}" for one in ("=hf", ".path=gpt2", ".weights=random")), "data=instruct", "data.path=x"],
            ["data.pack=true", "model=hf"],
        ),
        (
            ["stages=docs_then_code", "retention=l2sp", "retention.l2sp.strength=60", "optimizer.lr=0.02"],
            ["retention.l2sp.strength=60", "optimizer.lr=0.02", "must be <= 50"],
        ),
        (["callbacks=positions", "model=bert", "objective=mlm"], ["callbacks=positions", "model.causal=false"]),
        (["callbacks=latency", "model=bert", "objective=mlm"], ["callbacks=latency", "model.causal=false"]),
        (
            [
                "model=hf",
                "model.path=llama",
                "model.weights=random",
                "adapter=lora",
                "retention=wise",
                "stages=docs_then_code",
            ],
            ["retention=wise", "adapter=lora", "model=hf"],
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            check(composed(*overrides))
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_choice_that_nothing_consumes_is_refused():
    with pytest.raises(ConfigError, match="nothing uses the choice"):
        check(composed("+model/router=topk"))


def test_a_key_that_only_the_signature_knows_can_be_set():
    assert "norm_eps" not in composed()["model"]
    config = composed("model.norm_eps=1e-6")
    check(config)
    assert config["model"]["norm_eps"] == 1e-6


def test_signatures_read_from_source_are_those_of_the_objects():
    words = [line.split() for path in conf_dir().rglob("*.yaml") for line in path.read_text().splitlines()]
    found = {line[1] for line in words if line[:1] == ["_target_:"]}
    assert len(found) > 60
    for target in sorted(found):
        real = {
            name: p
            for name, p in inspect.signature(get_object(target)).parameters.items()
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        read = signature(target).parameters
        assert set(read) == set(real), target  # configs name them, so their order says nothing
        for name, parameter in real.items():
            assert read[name].required == (parameter.default is parameter.empty), (target, name)


def test_a_budget_key_on_the_command_line_clears_those_of_files(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "long.yaml").write_text("# @package _global_\nbudget: {tokens: 1B}\n")
    (tmp_path / "experiment" / "two.yaml").write_text("# @package _global_\nbudget: {tokens: 1B, steps: 3}\n")
    composer = Composer(config_dir=str(tmp_path))

    def budget(*overrides):
        config, _ = resolved(composer.compose(list(overrides)))
        check(config)
        return {key: value for key, value in config["budget"].items() if value is not None}

    assert budget("experiment=long") == {"tokens": "1B"}
    assert budget("experiment=long", "budget.steps=5") == {"steps": 5}
    assert budget("budget.tokens=null", "budget.steps=5") == {"steps": 5}
    with pytest.raises(ConfigError, match=r"budget\.tokens=1B and budget\.steps=3"):
        budget("experiment=two")


@pytest.mark.process
def test_a_wrong_key_costs_no_import_of_torch():
    code = (
        "import sys; from kleiber.launch.main import main; code = main(['model.depth=abc'])\n"
        "print(sorted({'torch', 'lightning', 'wandb', 'pandas'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.strip() == "[]"
    assert done.stderr.startswith("kleiber: model.depth=abc")
