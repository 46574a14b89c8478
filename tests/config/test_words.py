"""Words of other programs lead to keys that exist, and errors about unknown keys name them."""

import re

import pytest
from omegaconf.errors import MissingMandatoryValue

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.config.words import NO_KEY, in_our_words, words

SETTING = re.compile(r"(?<![-\w])[a-z_]+(?:[./][a-z_]+)*=(?:\[[^]]*\]|[^\s,;]+)")
NEEDS = {
    "adapter": "adapter=lora",
    "init": "init=checkpoint",
    "logger.wandb": "logger=wandb",
    "launcher.cluster": "launcher=submitit",
}
NEEDS |= {"design": "design=search", "model.path": "model=hf", "model.weights": "model=hf"}
KEYS = [
    word
    for word in words()
    if "=" not in word and not word.startswith("hydra") and word not in ("trainer.max_steps", "max_steps")
]


def settings(ours: str) -> list[str]:
    return [] if ours.startswith(NO_KEY) else SETTING.findall(ours)


@pytest.fixture(scope="module")
def composer():
    return Composer()


@pytest.mark.parametrize("setting", sorted({each for _, ours in words().values() for each in settings(ours)}))
def test_what_the_table_tells_to_write_is_a_key_or_a_choice(composer, setting):
    context = [choice for key, choice in NEEDS.items() if setting.startswith((f"{key}.", f"{key}="))]
    context = [choice for choice in context if choice.partition("=")[0] != setting.partition("=")[0]]
    try:
        check(resolve_config(composer.compose([*context, setting]))[0])
    except (ConfigError, MissingMandatoryValue) as error:  # of a choice that needs a place of the reader's too
        assert ("path" in str(error) and "=" in setting) or "no GPU" in str(error)


@pytest.mark.parametrize("word", KEYS)
def test_the_error_about_a_word_has_what_to_write(word):
    assert words()[word][1].removeprefix(NO_KEY) in in_our_words(f"trainer.{word}" if "." not in word else word)


@pytest.mark.parametrize(
    "command", ["lr=0.1", "trainer.max_epochs=3", "logger.project=x", "model=llama", "model.hidden_size=8"]
)
def test_a_refused_command_names_our_key(command):
    with pytest.raises(ConfigError) as caught:
        check(resolve_config(Composer().compose([command]))[0])
    key, _, choice = command.partition("=")
    assert (in_our_words(key, choice) or in_our_words(key, value=choice)).strip() in str(caught.value)


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        ("lr=0.25", "optimizer.lr=0.25"),
        ("trainer.max_epochs=7", "budget.epochs=7"),
        ("wandb.project=mine", "logger.wandb.project=mine"),
        ("batch_size=32", "batch.tokens=8192"),
        ("trainer.precision=bf16-mixed", "trainer.precision=bf16"),
        ("trainer.precision=16", "trainer.precision=bf16"),
    ],
)
def test_the_value_that_was_given_replaces_the_example_where_both_mean_the_same(command, ours):
    with pytest.raises(ConfigError, match=re.escape(ours)):
        check(resolve_config(Composer().compose([command]))[0])


@pytest.mark.parametrize("resume", ["true", "3", "[a]"])
def test_a_resume_that_is_no_text_is_told_its_values(resume):
    with pytest.raises(ConfigError, match="auto, never or the folder of a run"):
        check(resolve_config(Composer().compose([f"resume={resume}"]))[0])


def test_a_key_of_a_group_without_a_choice_asks_for_the_choice():
    with pytest.raises(ConfigError, match="design=NAME"):
        check(resolve_config(Composer().compose(["design.seeds=2"]))[0])


def test_a_value_may_be_written_over_several_lines():
    lines = "stages.chain={docs: {budget: {tokens: 1M}},\n    code: {data: {domain: code}}}"
    config, _ = resolve_config(Composer().compose(["stages=chain", lines]))
    assert [*config["stages"]["chain"]] == ["docs", "code"]


@pytest.mark.parametrize("value", ["'{question}\nA: '", '"Q:\n  {question}"'])
def test_a_line_break_of_a_text_stays(value):
    config, _ = resolve_config(
        Composer().compose(["data=task", "data.path=x", "data.target=y", f"data.prompt={value}"])
    )
    assert config["data"]["prompt"] == value[1:-1]
    within = ["stages=chain", f"stages.chain={{docs: {{data: {{prompt: {value},\n domain: docs}}}}}}"]
    config, _ = resolve_config(Composer().compose(within))
    assert config["stages"]["chain"]["docs"]["data"] == {"prompt": value[1:-1], "domain": "docs"}


@pytest.mark.parametrize(
    ("command", "choice"), [("data.path=x", "data=text"), ("data=text data.path=x data.domain=docs", "data=builtin")]
)
def test_a_key_of_another_choice_of_the_group_names_that_choice(command, choice):
    with pytest.raises(ConfigError, match=choice):
        check(resolve_config(Composer().compose(command.split()))[0])


def test_a_choice_at_the_wrong_place_is_told_its_first_line(tmp_path):
    group = tmp_path / "model" / "router"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text("_target_: kleiber.nn.routers.TopK\n_partial_: true\n")
    command = ["model=moe", "model/router=mine"]
    with pytest.raises(ConfigError, match=r"@package model\.mlp\.router"):
        check(resolve_config(Composer(config_dir=str(tmp_path)).compose(command))[0])
    (group / "mine.yaml").write_text(
        "# @package model.mlp.router\n_target_: kleiber.nn.routers.TopK\n_partial_: true\n"
    )
    check(resolve_config(Composer(config_dir=str(tmp_path)).compose(command))[0])
