"""An invalid config is refused with an error that names the key and the value, before torch is imported."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from kleiber.config.check import check, check_node
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError

COMPOSER = Composer()


def composed(*overrides: str) -> dict:
    return resolve_config(COMPOSER.compose(list(overrides)))[0]


HYDRA_KEYS = [
    "model.mlp._partial_=2", "model.mlp._partial_=False", "model.mlp._recursive_=False", "model.mlp._convert_=all",
    "model.mlp._args_=[1]", "model._partial_=True", "data._args_=[1]", "callbacks.checkpoints._partial_=True",
]  # fmt: skip
REFUSED = [
    ("modl=moe", ["modl", "model"]),
    ("model=gptt", ["'gpt'", "bert, gpt, hf, lstm, moe"]),
    ("model/mlp=swiglx", ["'swiglu'", "gelu, moe, relu2, swiglu"]),
    ("model/mlpp=moe", ["model/mlpp", "model/mlp"]),
    ("model.dpeth=3", ["model.dpeth", "'depth'"]),
    ("+model.dpeth=3", ["model.dpeth", "'depth'"]),
    ("callbacks.sampels.num=3", ["callbacks.sampels", "'samples'"]),
    ("experiment=e9", ["experiment=e9"]),
    ("study=scalling", ["study=scalling"]),
    ("model=../data/c4", ["model=../data/c4"]),
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
    ("model.vocab_size=3", ["model.vocab_size"]),
    ("budget.tokens=20Q", ["budget.tokens", "20M"]),
    ("budget=3", ["budget", "tokens"]),
    ("eval.every_steps=-1", ["eval.every_steps=-1"]),
    ("batch.micro=0", ["batch.micro=0"]),
    ("batch.tokens=4000", ["batch.tokens=4000", "model.context=256"]),
    ("model.num_heads=3", ["model.num_heads=3", "width"]),
    ("model.depth=0", ["model.depth=0"]),
    ("trainer.devices=2", ["trainer.devices=2", "trainer=ddp"]),
    ("trainer=fsdp trainer.devices=1", ["trainer.devices=1", "trainer=fsdp"]),
    ("model=null", ["model"]),
    ("model._target_=os.system", ["os.system"]),
    ("model._target_=torch.hub.load", ["torch.hub.load"]),
    ("model._target_=kleiber.training.trainer.torch.load", ["kleiber.training.trainer.torch"]),
    ("model._target_=kleiber.training.trainer.DDPStrategy", ["DDPStrategy"]),
    ("optimizer._target_=torch.optim.lr_scheduler.bisect_right", ["bisect_right"]),
    *((text, [text]) for text in HYDRA_KEYS),
    ("retention._target_=kleiber.retention.EWC", ["retention._target_"]),
    ("evals._target_=kleiber.evals.Perplexity", ["evals._target_"]),
    ("stages=chain stages.chain={a:{},b:{}} stages._recursive_=true", ["stages._recursive_=True", "false"]),
    ("hydra.run.dir=../x", ["hydra.run.dir", "root="]),
    ("'a b'", []),
    ("stages=chain stages.chain={a:{data:{_target_:kleiber.data.Builtin}},b:text}", ["stages.chain.b=text"]),
    ("stages=chain stages.chain={../../../escaped:{},b:{}}", ["stages.chain", "'../../../escaped'"]),
    ("stages=chain stages.chain={a:{},b:{data:{name:../b}}} data=labelled data.path=x", ["data.name", "'../b'"]),
    ("data=labelled data.path=x data.name=a/../../b", ["data.name", "'a/../../b'"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("override", "values"), REFUSED, ids=[override for override, _ in REFUSED])
def test_an_invalid_value_is_refused_and_named(override, values):
    with pytest.raises(ConfigError) as caught:
        check(composed(*override.split()))
    assert all(value in str(caught.value) for value in values), str(caught.value)


def test_a_choice_without_effect_is_refused():
    with pytest.raises(ConfigError, match=r"model\.mlp\.router: .*'router'"):
        check(composed("+model/router=topk"))


def test_an_argument_without_an_entry_in_a_file_can_be_set():
    assert "norm_eps" not in composed()["model"]
    config = composed("model.norm_eps=1e-6")
    check(config)
    assert config["model"]["norm_eps"] == 1e-6


@pytest.mark.slow
@pytest.mark.process
def test_a_wrong_key_is_refused_without_importing_torch():
    code = (
        "import sys; from kleiber.launch.main import main; code = main(['model.depth=abc'])\n"
        "print(sorted({'torch', 'lightning', 'wandb', 'pandas'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.strip() == "[]"
    assert done.stderr.startswith("kleiber: model.depth=abc")


def test_a_part_of_a_model_that_needs_what_layers_do_not_get_is_refused():
    with pytest.raises(ConfigError, match=r"model\.mlp: layers get no vocab_size"):
        check_node("model.mlp", {"_target_": "kleiber.models.Transformer", "_partial_": True}, Callable)
