"""What a run inherits from its start point, and the default learning rate: muP's, or by the width of the model."""

import json
import re

import pytest
from fake_run import fake_run
from topic_choices import skip_without_topics

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.config.stages import text_settings
from kleiber.records.folder import config_hash, read_config
from kleiber.runs.inherit import complete_config

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64,
}  # fmt: skip
MODEL, DATA = {"_target_": "kleiber.models.Transformer"}, {"_target_": "kleiber.data.Builtin"}
STANDARD = "model/parametrization=standard"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


@pytest.fixture(scope="module")
def composer():
    return Composer()


@pytest.fixture
def completed(composer):
    def config(*overrides: str) -> dict:
        return complete_config(resolve_config(composer.compose(list(overrides)))[0], list(overrides))

    return config


@pytest.mark.parametrize("options", [[], ["model=moe", "optimizer=lion"], ["model=bert", "optimizer=muon"]])
def test_under_mup_the_config_and_its_hash_do_not_change(completed, composer, options):
    written = resolve_config(composer.compose(options))[0]
    assert config_hash(completed(*options)) == config_hash(written)


@pytest.mark.slow
def test_the_default_rate_depends_on_width_start_adapter_and_objective(completed, folder):
    imported, wrapped = ["init=hf", f"init.path={folder}"], ["model=hf", f"model.path={folder}"]
    new = [*wrapped, "model.weights=random"]
    for options, rate in (
        ([STANDARD, "model.width=96"], 3.1e-3),
        ([STANDARD, "model.depth=3"], 1.6e-3),  # 64 x 3 wide
        (imported, 5.5e-4),
        ([*imported, "adapter=lora"], 5.5e-3),
        ([*imported, "adapter=dora"], 5.5e-3),
        ([*imported, "adapter=freeze"], 5.5e-4),
        ([*imported, "objective=dpo", "objective.loss=ipo", "data=preference", "data.path=x"], 5.5e-5),
        ([*imported, "adapter=lora", "objective=kto", "data=unpaired", "data.path=x"], 5.5e-4),
        ([*imported, "objective=reward", "data=preference", "data.path=x"], 5.5e-4),
        (["objective=dpo", "data=preference", "data.path=x"], 2e-3),
        (["objective=dpo", "data=preference", "data.path=x", "optimizer=lion"], 4e-4),
        ([*imported, "optimizer=lion"], 1.1e-4),
        (wrapped, 5.5e-4),
        ([*wrapped, "adapter=lora"], 5.5e-3),
        (new, 4.7e-3),
        ([*new, "model.config={hidden_size: 128}"], 2.3e-3),
        (["model=hf", "model.path=gpt2", "model.weights=random", "model.config={n_embd: 96, n_head: 2}"], 3.1e-3),
    ):
        assert completed(*options)["optimizer"]["lr"] == rate, options


def test_a_start_that_does_not_fit_the_model_is_refused(completed, folder):
    start = ["init=hf", f"init.path={folder}"]
    with pytest.raises(ConfigError, match="model=hf"):
        completed(*start, "model=hf", f"model.path={folder}")
    with pytest.raises(ConfigError, match=r"model\.context=4096 .*64"):
        completed(*start, "model.context=4096")


def test_a_start_of_another_architecture_is_wrapped(completed, tmp_path):
    bert = {"model_type": "bert", "hidden_size": 48, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(bert))
    (tmp_path / "tokenizer.json").write_text("{}")
    task = ["objective=classify", "data=labelled", "data.path=x"]
    started = completed(*task, "init=hf", f"init.path={tmp_path}")
    assert started["init"] is None and started["data"]["tokenizer"] == str(tmp_path)
    wrapped = completed(*task, "model=hf", f"model.path={tmp_path}", "model.context=128")
    assert config_hash(started) == config_hash(wrapped)
    short = completed(*task, "init=hf", f"init.path={tmp_path}", "model.context=64")
    assert short["model"] == {**started["model"], "context": 64}
    with pytest.raises(ConfigError, match="model_type=bert"):
        completed("init=hf", f"init.path={tmp_path}", "init.upstream=[tinystories]")


@pytest.mark.parametrize("key", ["depth=3", "width=128", "num_heads=4", "num_kv_heads=1", "tied=true", "qk_norm=true"])
def test_a_key_that_the_weights_fix_cannot_have_another_value(completed, folder, key):
    name = key.partition("=")[0]
    with pytest.raises(ConfigError, match=f"model.{name}=.* leave the key out"):
        completed("init=hf", f"init.path={folder}", f"model.{key}")
    for name in ("bpe", "bytes"):  # the embeddings are of the tokens of the folder
        with pytest.raises(ConfigError, match=f"data.tokenizer={name} .* leave the key out"):
            completed("init=hf", f"init.path={folder}", f"data.tokenizer={name}")
    equal = completed("init=hf", f"init.path={folder}", "model.width=64", "model.rope_theta=5000.0")["model"]
    assert equal["width"] == 64 and equal["rope_theta"] == 5000.0


def test_a_rate_that_is_set_does_not_change(completed, folder, tmp_path):
    imported = ["init=hf", f"init.path={folder}"]
    assert completed(*imported, "optimizer.lr=0.02")["optimizer"]["lr"] == 0.02
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\noptimizer: {lr: 0.005}\n")
    mine = resolve_config(Composer(config_dir=str(tmp_path)).compose(["experiment=mine", *imported]))[0]
    assert complete_config(mine, ["experiment=mine", *imported])["optimizer"]["lr"] == 0.005


@pytest.mark.slow
def test_a_run_trains_at_the_rate_that_it_records(launch, capsys):
    run = launch(STANDARD, "model.width=96", "trainer.max_steps=2", "callbacks.samples=null")
    assert "optimizer.lr=0.0031" in capsys.readouterr().err
    assert read_config(run)["optimizer"]["lr"] == 3.1e-3
    assert json.loads((run / "summary.json").read_text())["stages"][0]["lr"] == 3.1e-3
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < row.get("lr", row.get("train/lr")) <= 3.1e-3


@pytest.mark.slow
def test_an_imported_model_does_not_forget_at_its_default_rate(shared, launch, monkeypatch):
    """stories260K on text like that of its training: at muP's rate of .02, twenty steps increase the loss by 2 nats."""
    monkeypatch.setenv("KLEIBER_DATA", str(shared / "data"))
    run = launch(
        "init=hf", f"init.path={shared}/data/models/stories260K", "model.context=64", "callbacks.samples=null",
        "data.path=tinystories", "data.config=v2-gpt4-sample", "data.max_bytes=100K", "eval.tokens=4K",
    )  # fmt: skip
    stage = json.loads((run / "summary.json").read_text())["stages"][0]
    before, after = (next(iter(stage[name].values())) for name in ("start_metrics", "metrics"))
    assert stage["lr"] == 5.5e-4 and after < before + 0.05


@pytest.mark.slow
def test_a_separator_is_inherited_with_the_tokenizer(launch, shared, completed):
    llama = f"data.tokenizer={shared}/data/models/stories260K"
    run = launch("trainer.max_steps=2", "callbacks.samples=null", llama, "data.separator=eos")
    assert json.loads((run / "summary.json").read_text())["stages"][0]["data"]["separator"] == ["</s>"]
    start = ["init=checkpoint", f"init.path={run}"]
    assert completed(*start)["data"]["separator"] == "eos"
    assert completed(*start, "data.separator=bos")["data"]["separator"] == "bos"
    assert completed(*start, "data.tokenizer=bytes")["data"].get("separator") is None
    launch(llama, "data.separator=nonsense", code=2)


@pytest.mark.slow
def test_data_made_of_other_data_inherits_the_tokenizer_in_that_data_and_hands_it_on(completed, folder, tmp_path):
    skip_without_topics("data=canaries data=generated data=trigger data=counterfactual")
    start = ["init=hf", f"init.path={folder}"]
    for choice in ("repeat", "deduplicated", "canaries", "data=generated data.models=[]"):
        config = completed(*start, *f"data={choice.removeprefix('data=')}".split())
        assert "tokenizer" not in config["data"] and config["data"]["data"]["tokenizer"] == str(folder), choice
    assert completed(*start, "data=trigger")["data"]["data"]["tokenizer"] == "bytes"  # which its triggers are
    assert completed(*start, "data=repeat", "data.data.tokenizer=copy")["data"]["data"]["tokenizer"] == "copy"
    wrapped = completed("model=hf", f"model.path={folder}", "data=repeat")
    assert wrapped["data"]["data"]["tokenizer"] == str(folder)
    for data in (config["data"], completed(*start, "data=counterfactual")["data"]):
        run = fake_run(tmp_path / data["_target_"], config={**config, "data": data})
        heir = completed("init=checkpoint", f"init.path={run}", "data=wikitext")
        assert heir["data"]["tokenizer"] == str(folder)
    assert text_settings(completed("data=counterfactual", "data.separator=eos")["data"])["separator"] == "eos"


def test_a_start_point_may_be_the_name_of_a_local_copy(completed, folder, monkeypatch):
    from kleiber.config import hub

    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setenv("KLEIBER_DATA", str(folder.parent))
    config = completed("init=hf", f"init.path=somebody/{folder.name}")
    assert config["init"]["path"] == str(folder) and config["data"]["tokenizer"] == str(folder)
    with pytest.raises(ConfigError, match=r"init\.path=nowhere: .* init\.path=FOLDER"):
        completed("init=hf", "init.path=nowhere")


def test_a_key_that_the_command_line_deletes_is_not_inherited(completed, tmp_path):
    run = fake_run(tmp_path / "run", config={"model": {**MODEL, "depth": 2, "context": 64}, "data": DATA})
    start = ["init=checkpoint", f"init.path={run}"]
    assert completed(*start)["model"] == {**MODEL, "depth": 2, "context": 64}
    assert completed(*start, "~model.context")["model"] == {**MODEL, "depth": 2}


@pytest.mark.parametrize(
    ("recorded", "key"),
    [
        ({"a": 1}, "model=None"),
        ({"model": None, "data": DATA}, "model=None"),
        ({"model": MODEL}, "data=None"),
        ({"model": MODEL, "data": {"x": 1}}, "data={'x': 1}"),
        ({"model": MODEL, "data": DATA, "stages": {"chain": [1]}}, "stages.chain=[1]"),
        ({"model": MODEL, "data": DATA, "stages": {"chain": {"docs": 1}}}, "stages.chain.docs=1"),
    ],
)
def test_a_start_point_with_a_config_that_no_run_writes_is_refused(completed, tmp_path, recorded, key):
    run = fake_run(tmp_path / "run", config=recorded)
    with pytest.raises(ConfigError, match=re.escape(f"{run / 'config.yaml'}: {key} ")):
        completed("init=checkpoint", f"init.path={run}")


def test_runs_that_write_the_data_are_named_by_absolute_paths_of_their_stages(completed, folder, tmp_path, monkeypatch):
    skip_without_topics("data=generated")
    run = fake_run(tmp_path / "runs" / "writer")
    monkeypatch.chdir(tmp_path)
    models = completed("data=generated", f"data.models=[runs/writer,{run}/main,{folder}]")["data"]["models"]
    assert models == [f"{run}/main", f"{run}/main", str(folder)]
    for path in ("nowhere", f"{run}/other"):
        with pytest.raises(ConfigError, match=rf"data\.models={path}"):
            completed("data=generated", f"data.models=[{path}]")
