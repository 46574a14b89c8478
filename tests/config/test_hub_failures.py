"""Data sets, models and tokenizers of the hub: read over HTTP by the libraries themselves, and every way to fail.

A server on this machine answers as the hub does. One process, which takes it for the hub, reads what a test asks for.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from fake_hub import TOKEN, FakeHub, fake_hub
from safetensors.numpy import save
from small_run import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.process]
TEXTS = [f"Document {n} tells of {n * n} and of nothing else." for n in range(60)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
MODEL = {
    "config.json": json.dumps({"model_type": "gpt2", "vocab_size": 300, "n_embd": 8, "n_layer": 1, "n_head": 2}),
    "model.safetensors": save({"weight": np.zeros(4000, np.float32)}),
    "pytorch_model.bin": b"a pickle",
    "README.md": "# a model",
}


@dataclass
class Reader:
    """The process that reads."""

    process: subprocess.Popen[str]

    def __call__(self, kind: str, name: str, **options: object) -> dict:
        """What was read, or {error} in one line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"kind": kind, "name": name, **options}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "fault" not in answer, answer
        return answer


@pytest.fixture(scope="module")
def server() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: FakeHub) -> Iterator[FakeHub]:
    server.mend()
    yield server
    server.mend()


@pytest.fixture(scope="module")
def read(server: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "KLEIBER_"))}
    environment |= {"HF_ENDPOINT": server.address, "HF_HOME": str(home), "PYTHONPATH": str(REPOSITORY / "src")}
    with subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tests/hub_reader.py")],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        yield Reader(process)
        assert process.stdin is not None
        process.stdin.close()


def card(**configs: str) -> str:
    """A dataset card that names the files of each config."""
    listed = "".join(f"- config_name: {name}\n  data_files: {files}\n" for name, files in configs.items())
    return f"---\nconfigs:\n{listed}---\n"


FORMS: dict[str, dict[str, bytes | str]] = {
    "jsonl": {"data.jsonl": LINES},
    "gzip": {"data.jsonl.gz": gzip.compress(LINES.encode(), mtime=0)},
    "csv": {"data.csv": "text\n" + "".join(f'"{text}"\n' for text in TEXTS)},
    "card": {"README.md": card(default="texts/all.jsonl"), "texts/all.jsonl": LINES, "other.jsonl": '{"x": 1}\n'},
    "shards": {
        "data/train-00000-of-00002.jsonl": "".join(LINES.splitlines(True)[:30]),
        "data/train-00001-of-00002.jsonl": "".join(LINES.splitlines(True)[30:]),
    },
}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, read: Reader) -> dict:
    """What the same texts give as a file on this machine."""
    path = tmp_path_factory.mktemp("local") / "data.jsonl"
    path.write_text(LINES)
    return read("text", str(path))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stored", [False, True], ids=["sent", "redirected"])
def test_a_data_set_has_the_samples_of_a_local_file(hub, read, local, form, stored):
    hub.add(f"datasets/jane/{form}-{stored}", FORMS[form])
    hub.stored = stored
    assert read("text", f"jane/{form}-{stored}") == local
    assert not any(path.endswith("other.jsonl") for path in hub.downloads())


def test_what_is_downloaded_is_not_downloaded_again_until_it_changes(hub, read, local):
    hub.add("datasets/jane/changing", {"data.jsonl": LINES})
    first = read("text", "jane/changing")
    hub.requests.clear()
    assert read("text", "jane/changing") == first == local and not hub.downloads()
    hub.add("datasets/jane/changing", {"data.jsonl": LINES.replace("nothing", "something")})
    assert read("text", "jane/changing") != local and hub.downloads()


def test_a_private_data_set_is_read_with_a_token_alone(hub, read, local):
    hub.add("datasets/jane/private", {"data.jsonl": LINES})
    hub.private.add("datasets/jane/private")
    assert "HF_TOKEN" in read("text", "jane/private")["error"] and not hub.downloads()
    assert read("text", "jane/private", token=TOKEN) == local


def test_classes_of_a_card_keep_their_names(hub, read):
    names = "dataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
    names += "      class_label:\n        names:\n          '0': bad\n          '1': good\n"
    rows = "".join(json.dumps({"text": text, "label": n % 2}) + "\n" for n, text in enumerate(TEXTS))
    hub.add("datasets/jane/labels", {"README.md": f"---\n{names}---\n", "data.jsonl": rows})
    assert read("labelled", "jane/labels")["labels"] == ["bad", "good"]


def test_of_several_configs_the_key_is_named_and_one_is_read(hub, read, local):
    files = {"README.md": card(first="a.jsonl", second="b.jsonl"), "a.jsonl": LINES, "b.jsonl": '{"text": "short"}\n'}
    hub.add("datasets/jane/configs", files)
    for options in ({}, {"config": "third"}):
        error = read("text", "jane/configs", **options)["error"]
        assert "data.config" in error and "first, second" in error
    assert read("text", "jane/configs", config="first") == local


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("no-text", {"data.jsonl": '{"prose": "a"}\n'}, ("data.text", "prose")),
        ("broken", {"data.jsonl": '{"text": "a"}\n{"text": b}\n'}, ("data.jsonl, line 2",)),
        ("nothing", {"README.md": "# nothing"}, ("jane/nothing",)),
        ("script", {"script.py": "import os"}, ("jane/script",)),
    ],
)
def test_what_cannot_be_read_is_named(hub, read, name, files, words):
    hub.add(f"datasets/jane/{name}", files)
    error = read("text", f"jane/{name}")["error"]
    assert all(word in error for word in words)


@pytest.mark.parametrize("code", [401, 403, 404])
@pytest.mark.parametrize("part", ["", "/resolve"], ids=["listing", "files"])
def test_a_refusal_names_the_data_set_and_what_to_set(hub, read, code, part):
    hub.add(f"datasets/jane/closed-{code}", {"data.jsonl": LINES})
    hub.refused = {f"jane/closed-{code}{part}": code}
    error = read("text", f"jane/closed-{code}")["error"]
    assert f"jane/closed-{code}" in error and "HF_TOKEN" in error


def test_a_data_set_that_is_not_there_is_told_like_a_private_one(hub, read):
    error = read("text", "jane/never-there")["error"]
    assert "jane/never-there" in error and "HF_TOKEN" in error


@pytest.mark.long
@pytest.mark.parametrize(("code", "said"), [(429, "in 1 s"), (503, "HTTP 503")])
def test_a_hub_that_does_not_serve_for_now_is_told_so(hub, read, code, said):
    hub.add(f"datasets/jane/busy-{code}", {"data.jsonl": LINES})
    hub.refused, hub.wait = {f"jane/busy-{code}": code}, 1
    error = read("text", f"jane/busy-{code}")["error"]
    assert str(code) in error and said in error and "Couldn't find" not in error


@pytest.mark.parametrize("code", [429, 500, 503])
def test_one_refusal_is_outlasted(hub, read, local, code):
    hub.add(f"datasets/jane/once-{code}", {"data.jsonl": LINES})
    hub.refused, hub.times, hub.wait = {f"jane/once-{code}": code}, 1, 1
    assert read("text", f"jane/once-{code}") == local


def test_a_slow_hub_is_waited_for(hub, read, local):
    hub.add("datasets/jane/slow", {"data.jsonl": LINES})
    hub.slow = 0.5
    assert read("text", "jane/slow") == local


def test_a_connection_that_breaks_is_told_and_the_next_command_reads_all(hub, read, local):
    hub.add("datasets/jane/cut", {"data.jsonl": LINES})
    hub.cut = 100
    error = read("text", "jane/cut")["error"]
    assert "jane/cut" in error and hub.address in error
    hub.cut = None
    assert read("text", "jane/cut") == local


@pytest.mark.parametrize("offline", [False, True], ids=["gone", "HF_HUB_OFFLINE"])
def test_without_the_hub_its_download_is_read(hub, read, local, offline):
    hub.add(f"datasets/jane/kept-{offline}", FORMS["card"])
    assert read("text", f"jane/kept-{offline}") == local
    hub.gone = not offline
    hub.requests.clear()
    assert read("text", f"jane/kept-{offline}", offline=offline) == local and not hub.requests


def test_without_the_hub_and_a_download_the_keys_for_other_places_are_named(hub, read):
    hub.gone = True
    error = read("text", "jane/unknown")["error"]
    assert "KLEIBER_DATA" in error and "data.path" in error


def test_without_the_hub_a_download_of_other_files_is_refused_with_the_missing_one(hub, read):
    hub.add(
        "datasets/jane/half", {"README.md": card(first="a.jsonl", second="b.jsonl"), "a.jsonl": LINES, "b.jsonl": LINES}
    )
    read("text", "jane/half", config="first")
    hub.gone = True
    error = read("text", "jane/half", config="second")["error"]
    assert "b.jsonl" in error and "jane/half" in error


def test_of_a_model_no_pickle_is_downloaded(hub, read):
    hub.add("jane/model", MODEL)
    assert read("model", "jane/model") == {"files": ["config.json", "model.safetensors"]}
    hub.gone = True
    assert read("model", "jane/model") == {"files": ["config.json", "model.safetensors"]}


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_refused_model_is_named_with_the_key(hub, read, code):
    hub.add(f"jane/model-{code}", MODEL)
    hub.refused = {f"jane/model-{code}": code}
    error = read("model", f"jane/model-{code}")["error"]
    assert f"model.path=jane/model-{code}" in error and "HF_TOKEN" in error


def test_a_model_is_refused_without_the_hub_without_config_and_where_the_connection_breaks(hub, read):
    hub.add("jane/bare", {"README.md": "# nothing", "generation_config.json": "{}"})
    assert "config.json" in read("model", "jane/bare")["error"]
    hub.add("jane/large", MODEL)
    hub.cut = 5_000
    assert hub.address in read("model", "jane/large")["error"]
    hub.mend()
    hub.gone = True
    assert "model.path=jane/unread" in read("model", "jane/unread")["error"]


def test_a_tokenizer_comes_from_the_hub_and_stays(hub, read):
    from tokenizers import Tokenizer, models

    tokens = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")).to_str()
    hub.add("jane/tokens", {"tokenizer.json": tokens, "tokenizer_config.json": '{"eos_token": "b"}'})
    expected = read("tokenizer", "jane/tokens")
    assert expected["tokens"] >= 3
    hub.gone = True
    assert read("tokenizer", "jane/tokens") == expected
    assert "data.tokenizer=jane/nowhere" in read("tokenizer", "jane/nowhere")["error"]


def test_a_tokenizer_that_is_refused_or_missing_is_named_with_the_key(hub, read):
    hub.add("jane/wordless", {"config.json": MODEL["config.json"]})
    for name in ("jane/wordless", "jane/absent"):
        assert f"data.tokenizer={name}" in read("tokenizer", name)["error"]
