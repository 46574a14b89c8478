"""What words alone give: TF-IDF of words and word pairs and logistic regression, on the rows of benchmarks/finetune.py.

python benchmarks/word_baseline.py GLUE/sst2 sentence label 0.012
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def read(folder: Path, *splits: str) -> pd.DataFrame:
    file = next(file for split in splits for file in sorted(folder.glob(f"{split}*.[cp]*")))
    return pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, keep_default_na=False)


def main() -> None:
    folder, text, label, share = Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
    train, held = read(folder, "train"), read(folder, "validation", "test")
    train = train.iloc[np.random.default_rng(0).permutation(len(train))[: round(share * len(train))]]
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=300)
    )
    print(f"{model.fit(train[text], train[label]).score(held[text], held[label]):.4f}, {len(train)} rows")


if __name__ == "__main__":
    main()
