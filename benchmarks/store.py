"""What a long-term memory costs: time and memory of looking things up in stores of growing size.

    kleiber train name=store model.width=64 model.num_heads=4 budget.tokens=1M
    python benchmarks/store.py multirun/store/gpt-*

Passages are pieces of the built-in text, cut at words. A question is twelve consecutive words of a passage, so the
right passage is known. Entries of nearest neighbors are tokens of the same text, with their keys in memory or mapped
from a file. Each measurement is a process of its own. Seconds are those of the processor, so that other work does not
count; memory is what the process holds beyond mapped files, at its peak.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kleiber.data import open_training_text
from kleiber.runs.open import open_model
from kleiber.types import Tokenizer
from kleiber_topics.retrieval.datastore import Window
from kleiber_topics.retrieval.in_context import BM25Index, DenseIndex
from kleiber_topics.retrieval.knn import build_datastore
from kleiber_topics.retrieval.neighbors import nearest

RESULT = Path(__file__).parent / "results" / "store.json"
PASSAGES, ENTRIES = (1_000, 10_000, 100_000), (65_536, 524_288, 2_097_152)
QUESTIONS, WORDS, LENGTH, PASS, CONTEXT = 200, 12, 160, 16_384, 256
STATUS = Path("/proc/self/status")


class Peak:
    """The largest anonymous memory of this process within the context, in bytes, above that at its begin."""

    def __enter__(self) -> Peak:
        self.begin, self.bytes, self.ended = self.now(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.ended.wait(0.02):
            self.bytes = max(self.bytes, self.now() - self.begin)

    @staticmethod
    def now() -> int:
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
        return 1024 * int(line.split()[1])


def text_of(tokenizer: Tokenizer, tokens: int) -> str:
    """The first tokens of the training part of the built-in text."""
    (samples,) = open_training_text("builtin/docs", tokenizer, CONTEXT)
    if samples.num_tokens < tokens:
        raise SystemExit(f"the built-in text has {samples.num_tokens:,} tokens, fewer than {tokens:,}")
    ids = samples.gather(np.arange(tokens // CONTEXT + 1)).tokens[:, :-1].flatten()
    return tokenizer.decode(ids.tolist())


def passages(tokenizer: Tokenizer, count: int) -> list[str]:
    """Pieces of LENGTH characters of the built-in text, without the words that were cut and pieces of a few words."""
    text = text_of(tokenizer, 2 * count * LENGTH)
    pieces = (text[at : at + LENGTH].split()[1:-1] for at in range(0, len(text), LENGTH))
    found = [" ".join(piece) for piece in pieces if len(piece) >= WORDS]
    if len(found) < count:
        raise SystemExit(f"the built-in text has {len(found):,} passages, fewer than {count:,}")
    return found[:count]


def look_up(run: str, method: str, count: int) -> dict[str, float]:
    """Builds a store of passages and looks QUESTIONS up in it."""
    opened = open_model(run)
    model, tokenizer = opened.model, opened.tokenizer
    texts = passages(tokenizer, count)
    draw = np.random.default_rng(0)
    right = draw.choice(count, QUESTIONS, replace=False)
    questions = []
    for number in right:
        words = texts[number].split()
        start = int(draw.integers(len(words) - WORDS + 1))
        questions.append(" ".join(words[start : start + WORDS]))
    ids, asked = ([np.array(tokenizer.encode(text)[: model.context]) for text in part] for part in (texts, questions))
    with Peak() as peak:
        begin = time.process_time()
        index = BM25Index(ids, tokenizer) if method == "bm25" else DenseIndex(model, ids, "torch", PASS)
        built = time.process_time()
        places = index.search(asked, 5)
        ended = time.process_time()
    hits = [number in best for number, best in zip(right, places, strict=True)]
    return {
        "store_seconds": built - begin, "seconds_per_question": (ended - built) / QUESTIONS,
        "store_bytes": index.num_bytes, "peak_bytes": peak.bytes, "recall_5": float(np.mean(hits)),
    }  # fmt: skip


def neighbors(run: str, method: str, count: int) -> dict[str, float]:
    """Builds a store of `count` tokens and finds the 32 neighbors of 1,024 states."""
    opened = open_model(run)
    model, context = opened.model, opened.model.context
    tokens = np.array(opened.tokenizer.encode(text_of(opened.tokenizer, count + count // context + 1)))
    windows = [Window(tokens[at : at + context + 1], at) for at in range(0, count, context)]
    with Peak() as peak:
        begin = time.process_time()
        memory = 0 if method == "mapped" else None
        store = build_datastore(model, windows, [len(windows)], "hidden", PASS, memory=memory)
        built = time.process_time()
        nearest(store.keys[:: len(store.keys) // 1024][:1024].clone(), store.keys, 32)
        ended = time.process_time()
    return {
        "store_seconds": built - begin, "seconds_per_question": (ended - built) / 1024,
        "store_bytes": store.num_bytes(0), "peak_bytes": peak.bytes,
    }  # fmt: skip


def alone(measure: Callable[[str, str, int], dict[str, float]], run: str, method: str, count: int) -> dict[str, object]:
    """Measures in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        row = {"method": method, "entries": count, **pool.apply(measure, (run, method, count))}
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    run = parser.parse_args().run
    torch.set_num_threads(1)
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    rows = [alone(look_up, run, method, count) for method in ("bm25", "dense") for count in PASSAGES]
    rows += [alone(neighbors, run, method, count) for method in ("memory", "mapped") for count in ENTRIES]
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began
    RESULT.write_text(json.dumps({"rows": rows, "processor_seconds": round(spent, 1)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
