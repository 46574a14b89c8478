"""Fine-tuning an encoder on labeled texts by hand: the yardstick of `init=hf objective=classify`, without a framework.

The recipe is that of kleiber's defaults: mean pooling; vectors scaled to a root mean square of 16, so that the new
output layer learns faster than the encoder; AdamW; a linear rise and fall of the rate; batches padded to their longest.
Prints a line of JSON: the score on the held-out split and the seconds of training.

    python benchmarks/finetune.py --model FOLDER --data GLUE/sst2 --text sentence
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup


class Classifier(nn.Module):
    def __init__(self, folder: str, outputs: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.encoder: Any = AutoModel.from_pretrained(folder)
        self.head = nn.Linear(self.encoder.config.hidden_size, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, **rows: torch.Tensor) -> torch.Tensor:
        hidden, real = self.encoder(**rows).last_hidden_state, rows["attention_mask"][..., None]
        texts = (hidden * real).sum(1) / real.sum(1)
        return self.head(self.scale * F.rms_norm(texts, texts.shape[-1:]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=Path, help="folder of train*.parquet and a held-out split")
    parser.add_argument("--text", default="text", help="column, or two of them with a comma in between")
    parser.add_argument("--label", default="label", help="classes, or fractions for a regression")
    for name, default in (("lr", 9.1e-5), ("scale", 16.0), ("share", 1.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    for name, default in (("epochs", 3), ("rows", 16), ("context", 256), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def main() -> None:
    a = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    files = [sorted(a.data.glob(f"{split}*.parquet")) for split in ("train", "validation", "test")]
    train, held = pd.read_parquet(files[0][0]), pd.read_parquet((files[1] or files[2])[0])
    train = train.iloc[np.random.default_rng(0).permutation(len(train))[: max(1, round(a.share * len(train)))]]
    tokenizer: Any = AutoTokenizer.from_pretrained(a.model)

    def encode(table: pd.DataFrame) -> list[list[int]]:
        columns = [table[column].tolist() for column in a.text.split(",")]
        return tokenizer(*columns, truncation=True, max_length=a.context, return_token_type_ids=False)["input_ids"]

    texts, held_texts = encode(train), encode(held)
    classes, regression = sorted(set(train[a.label]) | set(held[a.label])), train[a.label].dtype.kind == "f"
    center, scale = (train[a.label].mean(), train[a.label].std(ddof=0)) if regression else (0.0, 1.0)
    values = train[a.label].map(lambda label: (label - center) / scale if regression else classes.index(label))
    labels = torch.tensor(values.tolist(), dtype=torch.float32 if regression else torch.int64)
    model = Classifier(a.model, 1 if regression else len(classes), a.scale).train()

    def padded(rows: list[list[int]]) -> Any:
        return tokenizer.pad({"input_ids": rows}, return_tensors="pt")

    optimizer = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.95), weight_decay=0.0)
    total = round(a.epochs * len(texts) / a.rows)
    schedule = get_linear_schedule_with_warmup(optimizer, min(100, total // 5), total)
    order = torch.cat([torch.randperm(len(texts)) for _ in range(a.epochs + 1)]).tolist()
    start = time.perf_counter()
    for step in range(total):
        batch = order[step * a.rows : (step + 1) * a.rows]
        scores = model(**padded([texts[i] for i in batch]))
        loss = F.mse_loss(scores[:, 0], labels[batch]) if regression else F.cross_entropy(scores, labels[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        scores = torch.cat([model(**padded(held_texts[at : at + 64])) for at in range(0, len(held_texts), 64)])
    truth = held[a.label].to_numpy()
    guesses = scores[:, 0].numpy() if regression else np.array(classes)[scores.argmax(1).numpy()]
    score = np.corrcoef(guesses, truth)[0, 1] if regression else (guesses == truth).mean()
    print(json.dumps({"score": float(score), "seconds": seconds, "steps": total, "seed": a.seed, "data": str(a.data)}))


if __name__ == "__main__":
    main()
