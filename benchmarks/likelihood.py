"""Examples a second of `kleiber eval --evals pairs` against lm-eval, on the same rows and the same model.

    python benchmarks/likelihood.py MODEL_FOLDER [--data DIR] [--rows 200] [--batch-sizes 1 8 32] [--rounds 3]

MODEL_FOLDER is a Hugging Face folder, DIR has the folders blimp, lambada_openai and hellaswag (default: $KLEIBER_DATA).
One process, ours and lm-eval's model class in turn, `--rounds` times. Each gets the texts of the same requests, encodes
them and returns log-probabilities; loading data and models is not counted. Seconds are of processor time, so that other
work on the machine counts little. A ratio is lm-eval's time over ours, pair by pair; above 1 we are faster.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch

from kleiber.data.pretrained_tokenizer import load_pretrained
from kleiber.evals.choice import parse_question
from kleiber.evals.likelihood import encode_pairs, log_likelihoods, pass_tokens
from kleiber.runs.evaluation_subject import native_model
from kleiber.runs.open import open_hf
from kleiber.types import Json

Item = list[tuple[str, str]]


def items_of(data: Path, count: int) -> dict[str, list[Item]]:
    """The requests of lm-eval's tasks, by data set: pairs of a context and a text, those of one row together."""

    def rows(folder: Path, limit: int) -> list[Json]:
        (path,) = folder.glob("*.parquet")
        return pyarrow.parquet.read_table(path).to_pylist()[:limit]

    parts = sorted(folder for folder in (data / "blimp").iterdir() if folder.is_dir())
    blimp = [row for part in parts for row in rows(part, count)]
    texts = [row["text"].rpartition(" ") for row in rows(data / "lambada_openai", count)]
    questions = [parse_question(row, "hellaswag") for row in rows(data / "hellaswag", count)]
    return {
        "blimp": [[("", " " + row["sentence_good"]), ("", " " + row["sentence_bad"])] for row in blimp],
        "lambada_openai": [[(context, " " + word)] for context, _, word in texts],
        "hellaswag": [[(question.context, " " + ending) for ending in question.endings] for question in questions],
    }


def timed(score: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    began = time.process_time()
    return score(), time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KLEIBER_DATA", ".")))
    parser.add_argument("--rows", type=int, default=200, help="of each data set, and of each part of BLiMP")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="of lm-eval, whose default is 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = str(arguments.model)
    model, tokenizer = native_model(arguments.model) or open_hf(arguments.model).model, load_pretrained(folder)
    Instance: Any = importlib.import_module("lm_eval.api.instance").Instance
    HFLM: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
    options = {"pretrained": folder, "dtype": "float32", "device": "cpu"}
    theirs = {size: HFLM(**options, batch_size=size) for size in arguments.batch_sizes}

    def ours(items: Sequence[Item]) -> np.ndarray:
        ids = iter(encode_pairs(tokenizer, [pair for item in items for pair in item]))
        encoded = [[next(ids) for _ in item] for item in items]
        return log_likelihoods(model, encoded, pass_tokens(model, 16), "scoring").log_probs

    def lm_eval(size: int, items: Sequence[Item]) -> np.ndarray:
        requests = [Instance("loglikelihood", {}, pair, i) for item in items for i, pair in enumerate(item)]
        return np.array([value for value, _ in theirs[size].loglikelihood(requests, disable_tqdm=True)])

    rows = []
    for name, items in items_of(arguments.data, arguments.rows).items():
        seconds: list[float] = []
        others: dict[int, list[float]] = {size: [] for size in theirs}
        furthest = 0.0
        for _ in range(arguments.rounds):
            log_probs, spent = timed(lambda items=items: ours(items))
            seconds.append(spent)
            for size in theirs:
                found, spent = timed(lambda size=size, items=items: lm_eval(size, items))
                others[size].append(spent)
                furthest = max(furthest, float(np.abs(found - log_probs).max()))
        ratios = {size: [b / a for a, b in zip(seconds, spent, strict=True)] for size, spent in others.items()}
        middle = {size: statistics.median(values) for size, values in ratios.items()}
        rows.append(
            {
                "data": name,
                "items": len(items),
                "items_per_s": len(items) / statistics.median(seconds),
                "largest_difference": furthest,
                "ratios": {str(size): values for size, values in ratios.items()},
            }
        )
        print(f"{name}: {rows[-1]['items_per_s']:.0f} items/s, largest difference {furthest:.1e} nats", flush=True)
        for size, values in ratios.items():
            print(
                f"  lm-eval, batch size {size}: {middle[size]:.2f}x [{min(values):.2f}, {max(values):.2f}]", flush=True
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
