"""A task of 77 classes from WikiText-2: which article is a sentence from? Writes a table of each split to a folder.

The first 14 words of sentences of at least 8 words; 130 sentences an article for training, 40 to be scored.

    python benchmarks/articles.py WIKITEXT/wikitext-2-v1 FOLDER
"""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

CLASSES, TRAIN, SCORED = 77, 130, 40


def split_articles(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Title and different sentences of each article, in order."""
    articles: list[tuple[str, list[str]]] = []
    for line in map(str.strip, lines):
        if re.fullmatch(r"= [^=].*[^=] =", line):
            articles.append((line.strip("= "), []))
        elif line and articles and not line.startswith("="):
            sentences = (sentence.split() for sentence in re.split(r"(?<= [.!?]) ", line))
            articles[-1][1].extend(" ".join(words[:14]) for words in sentences if len(words) >= 8)
    return [(title, list(dict.fromkeys(sentences))) for title, sentences in articles]


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    lines = pd.read_parquet(sorted(source.glob("train*.parquet"))[0])["text"].tolist()
    long = [article for article in split_articles(lines) if len(article[1]) >= TRAIN + SCORED]
    generator = np.random.default_rng(0)
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for name, sentences in [long[i] for i in generator.permutation(len(long))[:CLASSES]]:
        order = generator.permutation(len(sentences))
        parts["train"] += [(sentences[i], name) for i in order[:TRAIN]]
        parts["test"] += [(sentences[i], name) for i in order[TRAIN : TRAIN + SCORED]]
    target.mkdir(parents=True, exist_ok=True)
    for split, rows in parts.items():
        table = pd.DataFrame([rows[i] for i in generator.permutation(len(rows))], columns=["text", "label"])
        table.to_csv(target / f"{split}-00000-of-00001.csv", index=False)


if __name__ == "__main__":
    main()
