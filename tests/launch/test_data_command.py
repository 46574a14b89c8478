"""`kleiber data` describes text, reports planted associations, escapes what it shows, and imports no torch."""

import json
import subprocess
import sys

import pytest
from processes import PATIENCE
from typer.testing import CliRunner

from kleiber.data.text import Text
from kleiber.launch.cli import app


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if code:
        assert result.exception is not None
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_a_text_is_described(tmp_path, cache_dir):
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": "He is a cook."}\n{"text": "She sat"}\n')
    assert "2 documents, 20 bytes, 6 words" in run(file, "--json", tmp_path / "d.json")
    assert json.loads((tmp_path / "d.json").read_text()) == {
        "schema": "kleiber.data/1", "path": str(file), "cut_off": False,
        "documents": 2, "bytes": 20, "words": 6, "longest": 13,
        "duplicates": {"exact": 0, "near": 0, "near_of": 2}, "languages": {"en": 1.0},
        "samples": ["She sat", "He is a cook."],
        "files": {"splits": {"train": {"files": 1, "bytes": 46, "texts": 0, "names": []}}, "left_out": []},
    }  # fmt: skip
    assert "--max-bytes sets" in run(file, "--max-bytes", 13)
    with pytest.raises(ValueError, match=r"--window 3 belongs to the report of --bias"):
        run(file, "--window", 3, code=2)


def test_the_files_of_a_folder_are_told_as_in_the_banner_of_a_run(tmp_path, cache_dir):
    home = tmp_path / "mine"
    home.mkdir()
    for name in ("a.md", "b.txt", "val.txt"):
        (home / name).write_text(f"the text of {name}")
    (home / "logo.png").write_bytes(bytes(5))
    (home / ".hidden").write_text("hidden")
    (line,) = Text(str(home)).prepare(4).reading.files
    out = run(home, "--json", tmp_path / "d.json")
    assert line.replace(", 3 documents", "") in out and "mine: 3 files" in line
    files = json.loads((tmp_path / "d.json").read_text())["files"]
    assert files["splits"]["train"]["files"] == files["splits"]["train"]["texts"] == 3
    assert [(entry["name"], entry["reason"], entry["size"]) for entry in files["left_out"]] == [
        ("logo.png", "binary", 5), (".hidden", "hidden", 6)
    ]  # fmt: skip
    assert "train: a.md, b.txt; validation: val.txt" in run(home, "--splits", "files")
    prepared = run(home, "--splits", "files", "--tokenizer", "bytes")
    assert "none of 1 validation document " in prepared
    with pytest.raises(ValueError, match="--splits files is for folders"):
        run("builtin/docs", "--splits", "files", code=2)


@pytest.mark.parametrize("path", ["nope", "nope/none"])
def test_the_error_for_a_wrong_path_begins_with_it_and_names_no_key(path, cache_dir, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ValueError, ConnectionError)) as refused:
        run(path, code=2)
    assert str(refused.value).startswith(f"{path} is no file or folder here") and "data.path" not in str(refused.value)


def test_a_config_that_is_written_as_a_folder_is_told_as_one(tmp_path, cache_dir, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("KLEIBER_DATA", str(tmp_path))
    (tmp_path / "blimp").mkdir()
    with pytest.raises((ValueError, ConnectionError)) as refused:
        run("blimp/wish", code=2)
    assert "blimp --config wish" in str(refused.value)


def test_a_text_is_prepared_as_training_would(tmp_path, cache_dir):
    file, out = tmp_path / "t.jsonl", tmp_path / "d.json"
    file.write_text("".join(json.dumps({"text": f"number {n} of many"}) + "\n" for n in range(100)))
    text = run(file, "--tokenizer", "bytes", "--json", out)
    prepared = json.loads(out.read_text())["prepared"]
    corpus = Text(str(file)).prepare(16)
    assert prepared["hash"] == corpus.hash and prepared["splits"] == corpus.manifest["t"]["splits"]
    assert f"{len(corpus.train.file.ids):,} tokens" in text and "documents" in text
    with pytest.raises(ValueError, match="--vocab-size 300 belongs to --tokenizer bpe: add --tokenizer bpe"):
        run(file, "--vocab-size", 300, code=2)


def test_associations_are_printed_and_written(tmp_path, cache_dir):
    rows = [{"text": "<b>cook</b> he cooks"}] * 30 + [{"text": "she sews, he saw"}] * 30
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "d.json"
    text = run(tmp_path / "t.jsonl", "--bias", "--window", 1, "--json", out)
    bias = json.loads(out.read_text())["bias"]
    assert bias["groups"] == {"male words": 60, "female words": 30} and bias["window"] == 1
    words = {row["term"]: row for row in bias["words"]}
    assert words["cooks"]["first"] == 30 and words["cooks"]["log_odds"] > 0 > words["sews"]["log_odds"]
    assert "near male words" in text and "cooks" in text
    words_file = tmp_path / "pairs.txt"
    words_file.write_text("cook,sews\n")
    listed = tmp_path / "listed.txt"
    listed.write_text("he\nshe\n")
    text = run(tmp_path / "t.jsonl", "--bias", "--words", words_file, "--attributes", listed)
    assert "30 the first words and 30 the second words" in text and "of 2 words" in text


@pytest.mark.slow
def test_the_page_escapes_what_it_shows(tmp_path, cache_dir):
    file, page = tmp_path / "<b>t.jsonl", tmp_path / "p.html"
    file.write_text("\n".join(json.dumps({"text": text}) for text in ["he cooks"] * 20 + ["she sews"] * 20))
    assert f"wrote {page}" in run(file, "--bias", "--report", page)
    assert "log-odds ratio" in page.read_text() and "<b>t.jsonl" not in page.read_text()


@pytest.mark.slow
@pytest.mark.process
def test_no_torch_is_imported(tmp_path, cache_dir):
    (tmp_path / "t.jsonl").write_text('{"text": "He is a cook."}\n{"text": "She sat"}\n')
    code = (
        "import sys; from kleiber.launch.cli import app\n"
        f"app(['data', {str(tmp_path / 't.jsonl')!r}, '--bias'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=PATIENCE)
