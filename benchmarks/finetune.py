"""Fine-tuning an encoder on SST-2 by hand: the yardstick of `model=hf objective=classify`. One file, no framework.

The usual recipe: mean pooling, AdamW with decay of matrices, a linear rise over 6 % of the steps and a linear fall,
batches of rows of like length. Prints loss and accuracy on the dev set as it goes.

    python benchmarks/finetune.py --model FOLDER --data GLUE/sst2
"""

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup


class Classifier(nn.Module):
    def __init__(self, folder: str, classes: int = 2) -> None:
        super().__init__()
        self.encoder: Any = AutoModel.from_pretrained(folder)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(self.encoder.config.hidden_size, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, **rows: torch.Tensor) -> torch.Tensor:
        hidden, real = self.encoder(**rows).last_hidden_state, rows["attention_mask"][..., None]
        return self.head(self.dropout((hidden * real).sum(1) / real.sum(1)))


def batches(rows: list[list[int]], size: int) -> list[list[int]]:
    """Row numbers in a new random order; rows of like length stand together within pools of 50 batches."""
    order, found = list(range(len(rows))), []
    random.shuffle(order)
    for at in range(0, len(order), 50 * size):
        pool = sorted(order[at : at + 50 * size], key=lambda i: len(rows[i]))
        found += [pool[k : k + size] for k in range(0, len(pool), size)]
    random.shuffle(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=Path)
    for name, default in (("lr", 5e-5), ("epochs", 3), ("rows", 32), ("every", 500), ("threads", 1)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    random.seed(0)
    tokenizer: Any = AutoTokenizer.from_pretrained(asked.model)
    tables = [pd.read_parquet(next(asked.data.glob(f"{split}*.parquet"))) for split in ("train", "validation")]
    model = Classifier(asked.model).train()
    texts, held = (tokenizer(t["sentence"].tolist(), truncation=True, max_length=64)["input_ids"] for t in tables)
    labels, wanted = (torch.tensor(table["label"].tolist()) for table in tables)

    def padded(rows: list[list[int]]) -> Any:
        return tokenizer.pad({"input_ids": rows}, return_tensors="pt")

    @torch.no_grad()
    def accuracy() -> float:
        model.eval()
        scores = torch.cat([model(**padded(held[at : at + 64])) for at in range(0, len(held), 64)])
        model.train()
        return (scores.argmax(1) == wanted).float().mean().item()

    of = {0.01: [p for p in model.parameters() if p.dim() > 1], 0.0: [p for p in model.parameters() if p.dim() < 2]}
    optimizer = torch.optim.AdamW([{"params": group, "weight_decay": wd} for wd, group in of.items()], lr=asked.lr)
    total = math.ceil(len(texts) / asked.rows) * asked.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * total), total)
    step, began = 0, time.monotonic()
    for _ in range(asked.epochs):
        for batch in batches(texts, asked.rows):
            loss = F.cross_entropy(model(**padded([texts[i] for i in batch])), labels[batch])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % asked.every == 0 or step == total:
                print(f"{step}/{total} accuracy {accuracy():.4f}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
