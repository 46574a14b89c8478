"""Start points: which weights they load, which tasks they bring, and when two texts or tokenizers are the same."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from small_run import REPOSITORY
from tables import jsonl
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from kleiber.data.pretrained_tokenizer import load_pretrained
from kleiber.data.tokenizers import Bytes
from kleiber.launch.price_estimate import Prices
from kleiber.models.hf_twin import to_hf
from kleiber.objectives.clm import CLM
from kleiber.records.folder import read_config
from kleiber.runs.huggingface import export
from kleiber.runs.open import open_model, prepare_corpus
from kleiber.runs.start_point import (
    HF,
    Checkpoint,
    Scratch,
    check_same_tokenizer,
    corpus_tasks,
    distinct_tasks,
    same_text,
)
from kleiber.runs.upcycle import Upcycle
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut, Task

from .trained_runs import DENSE, EXPERTS, FREEZE, LORA, new_weights, trained_run


class Rows(HeldOut):
    """Held-out rows of ids, with labels if there are any."""

    def __init__(self, ids: list[list[int]], labels: list[int] | None = None) -> None:
        self.ids = torch.tensor(ids)
        self.labels = None if labels is None else torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.ids)

    def gather(self, index: np.ndarray, epoch: int = 0) -> Batch:
        return Batch(self.ids[index], labels=None if self.labels is None else self.labels[index])


def fake_corpus(**texts: Rows):
    return SimpleNamespace(name="fake", hash="fake/1", tokenizer=Bytes(), train=None, validation=texts)


@pytest.mark.slow
def test_an_upcycled_run_has_new_routers_and_the_weights_of_the_dense_run(tmp_path):
    dense = trained_run(tmp_path / "dense", DENSE, FREEZE)
    init = {"_target_": "kleiber.runs.Upcycle", "path": str(dense)}
    node = DENSE | {"mlp": EXPERTS}
    run = trained_run(tmp_path / "run", node, LORA, seed=5, init=init)
    started = new_weights(node)
    Checkpoint(str(run)).load(started)
    router, embedding = "blocks.0.mlp.router.linear.weight", "embedding.weight"
    state = started.state_dict()
    assert torch.equal(state[router], new_weights(node, seed=5).state_dict()[router])
    assert torch.equal(state[embedding], open_model(str(dense)).model.state_dict()[embedding])
    Upcycle(str(dense)).load(first := new_weights(node, seed=6))
    Upcycle(str(dense)).load(second := new_weights(node, seed=6))
    old = new_weights(DENSE, seed=3).blocks[0].mlp.gate_up.weight
    for model in (first, second):
        assert torch.equal(model.blocks[0].mlp.experts.gate_up[2], old.T), "drawn with the seed of the dense run"


def test_a_start_of_another_shape_is_refused_by_name(tmp_path):
    run = trained_run(tmp_path / "run", DENSE, FREEZE)
    with pytest.raises(ValueError, match=r"run.*embedding\.weight"):
        Checkpoint(str(run)).load(new_weights(DENSE | {"width": 64}))


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"num_heads": 1}, r"set model\.num_heads=2"),
        ({"rope_theta": 500.0}, r"set model\.rope_theta=10000\.0"),
        ({"norm_eps": 1e-6}, r"set model\.norm_eps=1e-05"),
        ({"soft_cap": 30.0}, r"set model\.soft_cap=null"),
        (
            {"parametrization": {"_target_": "kleiber.nn.StandardParametrization"}},
            "set model/parametrization=mup",
        ),
        (
            {"parametrization": {"_target_": "kleiber.nn.MuP", "base_width": 64}},
            r"set model\.parametrization\.base_width=32",
        ),
        (
            {"attention": {"_target_": "kleiber.nn.WindowAttention", "_partial_": True}},
            "set model/attention=full",
        ),
    ],
)
def test_settings_under_which_the_dense_weights_mean_something_else_are_refused_by_key(changes, fix, tmp_path):
    dense = trained_run(tmp_path / "dense", DENSE)
    with pytest.raises(ValueError, match=fix):
        Upcycle(str(dense)).load(new_weights(DENSE | {"mlp": EXPERTS} | changes))


def test_random_weights_load_nothing_and_bring_no_task():
    model = new_weights(DENSE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Scratch().load(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert Scratch().tasks(None, None) == []


def test_texts_are_the_same_when_their_beginning_and_their_labels_are():
    rows = Rows([[1, 2, 3], [4, 5, 6]])
    assert same_text(rows, Rows([[1, 2, 3, 9], [0, 0, 0, 0], [7, 7, 7, 7]])), "other lengths and later rows"
    assert not same_text(rows, Rows([[1, 2, 4], [4, 5, 6]]))
    labeled = Rows([[1, 2, 3], [4, 5, 6]], [0, 1])
    assert same_text(labeled, Rows([[1, 2, 3], [4, 5, 6], [0, 0, 0]], [0, 1, 1]))
    assert not same_text(labeled, Rows([[1, 2, 3], [4, 5, 6]], [1, 1]))
    assert not same_text(labeled, rows) and not same_text(rows, labeled)


def test_a_task_of_the_start_gets_another_name_only_if_its_text_differs():
    here, elsewhere = Rows([[1, 2]]), Rows([[3, 4]])
    tasks = [Task("a", CLM(), here), Task("b", CLM(), elsewhere), Task("c", CLM(), elsewhere)]
    renamed = distinct_tasks(tasks, fake_corpus(a=here, b=here))
    assert [task.name for task in renamed] == ["a", "b-before", "c"]
    assert [task.held_out for task in renamed] == [here, elsewhere, elsewhere]


def test_every_validation_domain_is_a_task():
    texts = {"docs": Rows([[1]]), "code": Rows([[2]])}
    corpus = fake_corpus(**texts)
    corpus.train = SimpleNamespace(random_access=False)
    tasks = corpus_tasks(corpus, CLM())
    assert {task.name: task.held_out for task in tasks} == texts


def test_corpora_with_different_vocabularies_are_refused_with_the_key():
    corpus, other = fake_corpus(), fake_corpus()
    check_same_tokenizer(corpus, other, "init.path")
    other.tokenizer = SimpleNamespace(vocab_size=300, eos=0, token_bytes=np.ones(300), hash="other/1")
    with pytest.raises(ValueError, match=r"init\.path.*other/1.*data\.tokenizer=RUN/tokenizer"):
        check_same_tokenizer(corpus, other, "init.path")


def test_tasks_of_a_run_are_its_validation_texts(launch):
    run = launch("trainer.max_steps=1", "callbacks.samples=null")
    config = read_config(run)
    corpus = prepare_corpus(config)
    (task,) = Checkpoint(str(run)).tasks(DictConfig(config), corpus)
    assert task.name == "tiny" and isinstance(task.objective, CLM)
    assert same_text(task.held_out, corpus.validation["tiny"])


def test_upstream_texts_of_a_hugging_face_folder_are_tasks(cache_dir):
    config = DictConfig({"data": {"tokenizer": "bytes"}, "model": {"context": 64}})
    tasks = HF("folder", upstream=[str(REPOSITORY / "tests/data/tiny.txt")]).tasks(config, fake_corpus())
    assert [task.name for task in tasks] == ["tiny"] and isinstance(tasks[0].objective, CLM)
    assert HF("folder").tasks(config, fake_corpus()) == []
    config.data.separator = "bos"  # the upstream text has the separator of the data
    with pytest.raises(ValueError, match=r"data\.separator=bos"):
        HF("folder", upstream=[str(REPOSITORY / "tests/data/tiny.txt")]).tasks(config, fake_corpus())


def test_another_tokenizer_than_that_of_a_hugging_face_folder_is_refused(tmp_path):
    """Of the same size too: the embeddings are of the tokens of the folder."""
    tokenizers = {}
    for name, text in (("folder", "abcabd" * 50), ("other", "x" * 300)):
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        alphabet = ByteLevel.alphabet()
        trainer = BpeTrainer(vocab_size=260, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
        tokenizer.train_from_iterator([text], trainer)
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        tokenizers[name] = load_pretrained(str(tmp_path / name))
    start, corpus = HF(str(tmp_path / "folder")), fake_corpus()
    config = DictConfig({"data": {}, "model": {"context": 64}})
    corpus.tokenizer = tokenizers["folder"]
    assert start.tasks(config, corpus) == []
    corpus.tokenizer = tokenizers["other"]
    assert tokenizers["other"].vocab_size == tokenizers["folder"].vocab_size
    with pytest.raises(ValueError, match=r"data\.tokenizer: .*leave the key out"):
        start.tasks(config, corpus)


def test_weights_of_a_hugging_face_folder_are_loaded(tmp_path):
    node = DENSE | {"parametrization": {"_target_": "kleiber.nn.StandardParametrization"}}
    source, model = new_weights(node, seed=1), new_weights(node, seed=2)
    to_hf(source).save_pretrained(tmp_path)
    HF(str(tmp_path)).load(model)
    for name, value in source.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_weights_of_a_hugging_face_folder_leave_task_heads_as_they_are(tmp_path):
    """FAULTS 127."""
    node = DENSE | {"parametrization": {"_target_": "kleiber.nn.StandardParametrization"}}
    source, model = new_weights(node, seed=1), new_weights(node, seed=2)
    to_hf(source).save_pretrained(tmp_path)
    model.add_head("rows", 3)
    HF(str(tmp_path)).load(model)
    assert torch.equal(model.embedding.weight, source.embedding.weight)
    assert not model.heads["rows"].get_parameter("weight").any()


def task_options(objective: str, folder: Path) -> list[str]:
    """Overrides of a task whose rows are easy to tell apart, in a table in `folder`."""
    if objective == "classify":
        rows = [{"text": f"{('good', 'bad')[i % 2]} text {i}", "label": i % 2} for i in range(80)]
    else:
        rows = [{"prompt": f"say {i}", "chosen": "good", "rejected": "bad"} for i in range(80)]
    data = {"classify": "labelled", "reward": "preference"}[objective]
    return [f"objective={objective}", f"data={data}", f"data.path={jsonl(folder / 'rows.jsonl', rows)}"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["classify", "reward"])
def test_a_task_head_is_trained_on_a_hugging_face_folder_as_its_dry_run_plans(launch, tmp_path, objective):
    """FAULTS 127."""
    folder = tmp_path / "exported"
    export(str(launch("trainer.max_steps=2", root="source")), folder)
    run = launch("init=hf", f"init.path={folder}", *task_options(objective, tmp_path), "optimizer.lr=0.01")
    (stage,) = json.loads((run / "summary.json").read_text())["stages"]
    assert stage["metrics"]["val/rows/loss"] < 0.8 * stage["start_metrics"]["val/rows/loss"]
    assert stage["metrics"]["val/rows/accuracy"] > 0.9
    (head,) = open_model(str(run)).model.heads.values()
    assert float(head.get_parameter("weight").detach().abs().sum()) > 0
    prices = Prices({str(tmp_path / "planned"): read_config(run)}, tmp_path / "scratch")
    prices.count(describing=False)
    prices.speeds[0] = prices.measure_run(0)
    cell = prices.cell(0)
    assert (cell["params"], cell["tokens"]) == (stage["params"]["total"], stage["tokens"]) and cell["seconds"] > 0
    again = launch("init=checkpoint", f"init.path={run}", *task_options(objective, tmp_path), "trainer.max_steps=1")
    (begun,) = json.loads((again / "summary.json").read_text())["stages"]
    assert begun["start_metrics"]["val/rows/loss"] == pytest.approx(stage["metrics"]["val/rows/loss"])
