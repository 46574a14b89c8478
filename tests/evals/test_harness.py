"""lm-eval on a kleiber model: equal to lm-eval's model on the exported folder, and to a scorer written here."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

from kleiber.data.tokenizers import Bytes
from kleiber.evals.harness import score_tasks
from kleiber.launch.cli import main
from kleiber.models.generation import generate
from kleiber.models.transformer import Transformer
from kleiber.types.batch import Batch

needs = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra eval (lm-eval)")
ITEMS = [
    {"question": f"The {noun} said", "choices": [" no", " maybe", f" {noun} yes"], "answer": i % 3}
    for i, noun in enumerate(["cat", "old dog", "small bird in the tree", "fox", "keeper of mice", "a"])
]
TASK = """
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: byte_perplexity
"""


def build(**options) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(Bytes.vocab_size, **{"width": 32, "context": 32, "tied": False, "qk_norm": False} | options)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model.eval()


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    texts = [{"text": "A text that is longer than the context of thirty-two bytes, twice over."}, {"text": "short"}]
    for name, rows, task in (("own", ITEMS, TASK), ("rolling", texts, ROLLING)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(task.format(path=folder / f"{name}.jsonl"))
    return folder


@torch.no_grad()
def choices(model: Transformer) -> list[list[float]]:
    """log p(choice | question) of every item, one forward pass each."""
    told = []
    for item in ITEMS:
        told.append([])
        for choice in item["choices"]:
            ids = Bytes().encode(item["question"] + choice)
            logp = model.head(model(Batch(torch.tensor([ids[-33:][:-1]]))).hidden)[0].log_softmax(-1)
            targets = torch.tensor(ids[-len(choice) :])
            told[-1].append(float(logp[-len(choice) :].gather(1, targets[:, None]).sum()))
    return told


def requests(model, batch_size: int = 3):
    from kleiber.evals.harness import HarnessLM

    return HarnessLM(model, Bytes(), batch_size)


@needs
@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_are_those_of_one_item_at_a_time(tasks, batch_size):
    model = build()
    lm, wanted = requests(model, batch_size), choices(model)
    pairs = [(None, Bytes().encode(i["question"]), Bytes().encode(c)) for i in ITEMS for c in i["choices"]]
    found = lm._loglikelihood_tokens(pairs)
    flat = [value for row in wanted for value in row]
    assert [logp for logp, _ in found] == pytest.approx(flat, abs=1e-4)
    told = score_tasks(model, Bytes(), ["own"], tasks, batch_size)
    right = sum(row.index(max(row)) == item["answer"] for row, item in zip(wanted, ITEMS, strict=True))
    assert told["own/acc"].value == pytest.approx(right / len(ITEMS)) and "own/acc_stderr" in told
    assert (told["own/acc"].better, told["own/acc"].label) == ("higher", "acc on own")


@needs
def test_the_greedy_flag_and_stops_and_the_end_of_text_are_kept():
    model = build()
    lm = requests(model)
    prompt = Bytes().encode("The fox")
    free = generate(model, torch.tensor([prompt]), 8, temperature=0.0)[0, len(prompt) :].tolist()
    (first, greedy), (_, other) = lm._loglikelihood_tokens(
        [(None, prompt, free[:3]), (None, prompt, [*free[:2], (free[2] + 1) % 256])]
    )
    assert greedy and not other and first < 0

    class Request:
        def __init__(self, context, **options):
            self.args = (context, options)

    together = lm.generate_until([Request("The fox", max_gen_toks=8), Request("A much longer prompt", max_gen_toks=8)])
    alone = [lm.generate_until([Request(text, max_gen_toks=8)])[0] for text in ("The fox", "A much longer prompt")]
    assert together == alone
    text = alone[0]
    assert lm.generate_until([Request("The fox", max_gen_toks=8, until=[text[2]])])[0] == text.split(text[2])[0]
    with pytest.raises(ValueError, match="max_gen_toks=32"):
        lm.generate_until([Request("x", max_gen_toks=32)])


@needs
@pytest.mark.slow
def test_it_equals_lm_evals_own_model_on_the_exported_folder(tasks, tmp_path):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from kleiber.models.hf_twin import to_hf
    from kleiber.runs.huggingface import save_tokenizer

    model, folder = build(), tmp_path / "folder"
    to_hf(model, eos=256).save_pretrained(folder)
    save_tokenizer(Bytes(), folder, 32)
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4, max_length=32)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    told = lm_eval.simple_evaluate(
        model=theirs, tasks=["own", "rolling"], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    ours = score_tasks(model, Bytes(), ["own", "rolling"], tasks)
    assert ours["own/acc"].value == told["results"]["own"]["acc,none"]
    assert ours["rolling/byte_perplexity"].better == "lower"
    assert ours["rolling/byte_perplexity"].value == pytest.approx(
        told["results"]["rolling"]["byte_perplexity,none"], rel=1e-5
    )
    lm = requests(model)
    pairs = [(None, Bytes().encode(i["question"]), Bytes().encode(c)) for i in ITEMS for c in i["choices"]]
    for (a, x), (b, y) in zip(lm._loglikelihood_tokens(pairs), theirs._loglikelihood_tokens(pairs), strict=True):
        assert a == pytest.approx(b, abs=1e-4) and x == y


@needs
@torch.no_grad()
def test_prompts_and_texts_begin_with_the_begin_token_once(shared):
    """As transformers encodes a prompt for Llama. A whole text is scored after one begin token, not two."""
    from transformers import AutoTokenizer

    from kleiber.data.pretrained_tokenizer import load_pretrained
    from kleiber.evals.harness import HarnessLM

    folder = str(shared / "data/models/stories260K")
    torch.manual_seed(0)
    model = Transformer(512, width=32, context=32, tied=False).eval()
    lm, text = HarnessLM(model, load_pretrained(folder)), "Once upon a time"
    assert lm.tok_encode(text) == AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert lm.tok_encode(text, add_special_tokens=False) == lm.tok_encode(text)[1:] and lm.prefix_token_id == 1

    class Request:
        args = (text,)

    ids = torch.tensor([lm.tok_encode(text)])
    log_probs = model.head(model(Batch(ids[:, :-1])).hidden)[0].float().log_softmax(-1)
    expected = float(log_probs.gather(1, ids[0, 1:, None]).sum())
    assert lm.loglikelihood_rolling([Request()]) == pytest.approx([expected], abs=1e-4)


@needs
def test_unknown_tasks_and_bidirectional_models_are_refused(tasks):
    with pytest.raises(ValueError, match="hellaswga"):
        score_tasks(build(), Bytes(), ["hellaswga"], tasks)
    with pytest.raises(ValueError, match="causal"):
        score_tasks(build(causal=False), Bytes(), ["own"], tasks)


@needs
def test_a_run_is_scored_from_the_command_line(launch, tasks, tmp_path, capsys):
    run, out = launch("trainer.max_steps=2"), tmp_path / "told.json"
    told = ["--evals", "harness", "--tasks", "own", "--task-files", str(tasks), "--json", str(out)]
    assert main(["eval", str(run), *told]) == 0
    found = json.loads(out.read_text())["evals"]["harness"]
    assert 0 <= found["own"]["acc"]["value"] <= 1 and "harness/own/acc " in capsys.readouterr().out
    assert main(["eval", str(run), "--evals", "perplexity", "--tasks", "own"]) == 2
    assert "--tasks" in capsys.readouterr().err


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"kleiber\[eval\]"):
        score_tasks(build(), Bytes(), ["own"])


os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
