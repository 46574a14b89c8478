"""What a config from disk may not do unless the reader's command names the value: run code, fetch, write elsewhere."""

import re
import socket
from pathlib import Path
from typing import get_args

import pytest
from topic_choices import skip_without_topics

from kleiber.config import foreign
from kleiber.config.check import constraints
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.config.foreign import Unpermitted, check_foreign, permit_config, requests
from kleiber.config.permissions import permit_data, permitted_data, reader_permissions
from kleiber.config.targets import SUPPLIED, exports, signature
from kleiber.types.access import Access

COMPOSER = Composer()
SOURCE = Path("folder/config.yaml")
PACKAGE = Path(foreign.__file__).parents[1]


@pytest.fixture(autouse=True)
def of_this_test():
    with reader_permissions():
        yield


def composed(*overrides: str) -> dict:
    return resolve_config(COMPOSER.compose(list(overrides)))[0]


TEXT, CHAIN = "data=text data.path=tests/data/tiny.txt", "stages=chain stages.chain={a:{data:{domain:code}},b:%s}"
HARNESS = "evals=harness evals.harness.tasks=[a] evals.harness.task_files=tasks"
REFUSED = [  # overrides, then key and value of the first request
    ("data=text data.path='http://beacon/x.txt'", "data.path", "http://beacon/x.txt"),
    ("data=text data.path='/**/*.txt'", "data.path", "/**/*.txt"),
    ("data=text data.path=/dev/zero", "data.path", "/dev/zero"),
    ("data=labelled data.path='s3://bucket/rows.csv'", "data.path", "s3://bucket/rows.csv"),
    ("data=instruct_sets data.parts={a:{path:'http://beacon/x'}}", "data.parts.a.path", "http://beacon/x"),
    ("data=tokens data.path=a.npy data.validation='http://beacon/v' data.tokenizer=bytes", "data.validation",
     "http://beacon/v"),
    ("data=deduplicated data.data._target_=kleiber.data.Text data.data.path='http://beacon/x'", "data.data.path", "http://beacon/x"),
    (f"{TEXT} evals=perplexity evals.perplexity.data=[wikitext,'http://beacon/x']", "evals.perplexity.data[1]",
     "http://beacon/x"),
    ("evals=retrieval evals.retrieval.store=['http://beacon/x']", "evals.retrieval.store[0]", "http://beacon/x"),
    ("init=hf init.path=folder init.upstream=['http://beacon/x']", "init.upstream[0]", "http://beacon/x"),
    (HARNESS, "evals.harness.task_files", "tasks"),
    ("callbacks.checkpoints.remote='file:///victim'", "callbacks.checkpoints.remote", "file:///victim"),
    ("logger=mlflow logger.mlflow.tracking_uri='http://beacon'", "logger.mlflow.tracking_uri", "http://beacon"),
    ("launcher=submitit launcher.setup=[evil.sh]", "launcher.setup[0]", "evil.sh"),
    ("launcher=ray launcher.address='1.2.3.4:5'", "launcher.address", "1.2.3.4:5"),
    (CHAIN % "{data:{_target_:kleiber.data.Text,path:'http://beacon/x'}}", "stages.chain.b.data.path",
     "http://beacon/x"),
    (f"{TEXT} {CHAIN % '{data:{path:http://beacon/x}}'}", "stages.chain.b.data.path", "http://beacon/x"),
    ("model.norm_eps={_target_:kleiber.evals.Harness,tasks:[],task_files:tasks}", "model.norm_eps.task_files", "tasks"),
    ("+callbacks.early={_target_:lightning.pytorch.callbacks.ModelCheckpoint,dirpath:/victim}",
     "callbacks.early._target_", "lightning.pytorch.callbacks.ModelCheckpoint"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "key", "value"), REFUSED, ids=[key for _, key, _ in REFUSED])
def test_a_value_is_refused_by_its_key_unless_the_reader_names_it(overrides, key, value):
    skip_without_topics(overrides)
    config = composed(*overrides.split())
    with pytest.raises(Unpermitted) as refused:
        check_foreign(config, SOURCE)
    assert str(refused.value).startswith(f"{SOURCE}: {key}={value} ")
    (request,) = [request for request in requests(config) if (request.key, request.value) == (key, value)]
    advice = str(refused.value).rpartition(": ")[2] if request.access != Access.READ else f"--data '{value}'"
    assert advice in str(refused.value)
    with reader_permissions():  # a command that composed the value itself
        permit_config(config)
        check_foreign(config, SOURCE)
    if request.access == Access.READ:
        permit_data([value])
        check_foreign(config, SOURCE)
    else:
        check_foreign(config, SOURCE, named=[key.partition("[")[0]])


def test_the_keys_of_a_mapping_can_be_names_of_data():
    config = composed("data=mixture")
    config["data"]["parts"] = {"builtin/docs": 0.5, "http://beacon/x": 0.5}
    (request,) = requests(config)
    assert (request.key, request.access, request.value) == ("data.parts", Access.READ, "http://beacon/x")


ALLOWED = [
    "", "model=moe", TEXT, "data=text data.path=tests/data", "data=text data.path=owner/name", "data=wikitext",
    "data=text data.path=no_such_file.txt", "data=mixture", "data=counterfactual",
    "optimizer._target_=kleiber.optimizers.SGD",
    "init=checkpoint init.path=/some/run", "model=hf model.path=gpt2", "objective=distill objective.teacher=/some/run",
    "evals=perplexity evals.perplexity.data=[wikitext,tests/data/tiny.txt]",
]  # fmt: skip


@pytest.mark.parametrize("overrides", ALLOWED)
def test_files_names_on_the_hub_and_numbers_need_no_permission(overrides):
    skip_without_topics(overrides)
    assert requests(composed(*overrides.split())) == []


def test_an_ordinary_folder_needs_none_and_a_huge_one_and_special_files_do(tmp_path, monkeypatch):
    def effect(path):
        return [request.effect for request in requests({"data": {"_target_": "kleiber.data.Text", "path": str(path)}})]

    (tmp_path / "below").mkdir()
    for number in range(3):
        (tmp_path / "below" / f"{number}.txt").touch()
    assert effect(tmp_path) == []
    monkeypatch.setattr(foreign, "MOST_FILES", 2)
    assert "2 files" in effect(tmp_path)[0]
    with socket.socket(socket.AF_UNIX) as special:
        special.bind(str(tmp_path / "socket"))
        (tmp_path / "link").symlink_to("/proc/self/environ")
        (tmp_path / "broken").symlink_to(tmp_path / "nothing")
        for name in ("socket", "link", "broken"):
            assert effect(tmp_path / name) == ["is no ordinary file"]
    (tmp_path / "a[1].txt").touch()  # a file, not a pattern
    assert effect(tmp_path / "a[1].txt") == [] and effect("x" * 5000) == [] and effect("a\0b") == []
    assert effect("~nobody_of_this_name/x") == []


def test_permissions_end_with_the_command():
    with reader_permissions():
        permit_config({"allow_data": ["http://b"], "data": {"_target_": "kleiber.data.Text", "path": "http://a"}})
        assert permitted_data() == ["http://a", "http://b"]
    assert permitted_data() == []


def test_reading_and_writing_are_permitted_apart():
    config = composed("callbacks.checkpoints.remote='http://a'")
    permit_data(["http://a"])
    with pytest.raises(Unpermitted, match=r"callbacks\.checkpoints\.remote=http://a"):
        check_foreign(config, SOURCE)


OPENED = re.compile(r"(^|_)(path|paths|data|parts|store|url|uri|remote|files?|folder|upstream|prompts)$")
OF_RUNS = {
    "Checkpoint.path",
    "HF.path",
    "Upcycle.path",
    "HFModel.path",
    "GRPO.reward_path",
}  # opening them is checked again


def test_every_argument_that_opens_something_declares_it():
    """Every exported class of kleiber; an argument with such a name and a text as its value is a name of something."""
    undeclared = set()
    for init in PACKAGE.rglob("__init__.py"):
        package = ".".join(["kleiber", *init.parent.relative_to(PACKAGE).parts])
        for name in exports(package):
            for argument, parameter in signature(f"{package}.{name}").parameters.items():
                is_text = str in nested_types(parameter.annotation)
                declared = any(isinstance(item, Access) for item in constraints(parameter.annotation))
                if OPENED.search(argument) and argument not in SUPPLIED and is_text and not declared:
                    undeclared.add(f"{name}.{argument}")
    assert undeclared == OF_RUNS


def nested_types(annotation: object) -> list[object]:
    return [annotation, *(part for argument in get_args(annotation) for part in nested_types(argument))]


def test_the_key_for_the_data_of_start_points_is_checked():
    assert composed("allow_data=['http://a']")["allow_data"] == ["http://a"]
    from kleiber.config.check import check

    for wrong in ("3", "[3]", "abc"):
        permit_config(composed(f"allow_data={wrong}"))
        with pytest.raises(ConfigError, match="allow_data"):
            check(composed(f"allow_data={wrong}"))
    assert not permitted_data()
    check({key: value for key, value in composed().items() if key != "allow_data"})  # of a run from before
