"""The built-in corpus is the same every time, with any tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from kleiber.data import builtin
from kleiber.data.builtin import Builtin


@pytest.mark.slow
def test_few_bytes_are_read_quickly_and_the_same_every_time(cache: Path, tmp_path: Path) -> None:
    corpus = Builtin(domain="all", max_bytes="100k").prepare(32)
    assert set(corpus.validation) == {"builtin/docs", "builtin/code"}
    for manifest in corpus.manifest.values():
        assert sum(count["bytes"] for count in manifest["splits"].values()) <= 100_000
        assert "python" in manifest["versions"] and "torch" in manifest["versions"]
    assert Builtin(domain="all", max_bytes=100_000).prepare(32, tmp_path / "other").hash == corpus.hash
    assert Builtin(domain="docs", max_bytes=100_000).prepare(32).hash != corpus.hash


def test_another_tokenizer_reads_the_same_text_without_reading_the_files(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Builtin(max_bytes="60k").prepare(16)
    monkeypatch.setattr(builtin, "source_files", lambda: pytest.fail("the files are read again"))
    bpe = Builtin(max_bytes="60k", tokenizer="bpe", vocab_size=300).prepare(16)
    assert bpe.num_bytes == plain.num_bytes and bpe.num_tokens < plain.num_tokens
    assert bpe.validation["builtin/docs"].num_bytes == plain.validation["builtin/docs"].num_bytes


def test_an_unknown_domain_is_refused() -> None:
    corpus = Builtin()
    object.__setattr__(corpus, "domain", "dogs")  # past the type checker that runs under pytest
    with pytest.raises(ValueError, match=r"data\.domain=dogs"):
        corpus.sources()
