"""Translation by a run of kleiber, and by a plain encoder-decoder of PyTorch with as many parameters and tokens.

    kleiber train data=task/multi30k objective=sft model.depth=3 model.width=192 model.context=128 batch.tokens=4096 \\
        budget.epochs=3 name=translation
    python benchmarks/translation.py multirun/translation/gpt-*

The rival is `nn.Transformer` in a loop of its own: pre-norm, sinusoidal positions, one matrix for embeddings and
head, AdamW, warm-up and a linear decay to 0. It reads the same tokens of the same rows, as often as the run did; its
learning rate is the best of several after one pass. Both write the most probable token at each step for all held-out
rows. Metrics are those of `evals=[generation]`, differences are paired by row.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from kleiber.data.prompts import answer_text
from kleiber.data.task import TaskRows, task_rows
from kleiber.evals.text_metrics import METRICS
from kleiber.models.generation import continuations
from kleiber.runs.open import TrainedModel, open_model

RESULT = Path(__file__).parent / "results" / "translation.json"
LEVEL, WARMUP, BATCH, ROWS = 0.9, 100, 4096, 64
Row = tuple[list[int], list[int]]  # prompt and target with its end


class EncoderDecoder(nn.Module):
    """A Transformer that reads a prompt in both directions, and predicts the tokens of a target."""

    places: Tensor

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.transformer = nn.Transformer(
            width, heads, layers, layers, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        angles = torch.arange(context)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("places", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.embedding(ids) * math.sqrt(self.width) + self.places[: ids.shape[1]]

    def encode(self, prompts: Tensor, absent: Tensor) -> Tensor:
        return self.transformer.encoder(self.embed(prompts), src_key_padding_mask=absent)

    def decode(self, memory: Tensor, absent: Tensor, targets: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(targets.shape[1])
        states = self.transformer.decoder(
            self.embed(targets), memory, tgt_mask=mask, tgt_is_causal=True, memory_key_padding_mask=absent
        )
        return F.linear(states, self.embedding.weight)


def padded(rows: Sequence[Sequence[int]], fill: int = 0) -> Tensor:
    """Rows of unequal length as one tensor."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def batches(rows: Sequence[Row], seed: int) -> Iterator[list[Row]]:
    """Batches of about BATCH tokens, rows of similar length together, in random order."""
    rng = np.random.default_rng(seed)
    order = sorted(rng.permutation(len(rows)).tolist(), key=lambda i: (len(rows[i][0]) + len(rows[i][1])) // 4)
    parts: list[list[Row]] = [[]]
    tokens = 0
    for i in order:
        size = len(rows[i][0]) + len(rows[i][1])
        if tokens + size > BATCH:
            parts, tokens = [*parts, []], 0
        parts[-1].append(rows[i])
        tokens += size
    for part in rng.permutation(len(parts)).tolist():
        yield parts[part]


def loss_of(model: EncoderDecoder, part: Sequence[Row], begin: int) -> Tensor:
    """The mean loss of the targets in nats per token."""
    prompts, absent = padded([row[0] for row in part]), padded([[0] * len(row[0]) for row in part], 1).bool()
    inputs, wanted = padded([[begin, *row[1][:-1]] for row in part]), padded([row[1] for row in part], -100)
    logits = model.decode(model.encode(prompts, absent), absent, inputs)
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)


def train(model: EncoderDecoder, rows: Sequence[Row], epochs: int, lr: float, begin: int) -> None:
    """Trains in place for whole passes over the rows."""
    total = epochs * sum(1 for _ in batches(rows, 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, max(total - step, 1) / max(total - WARMUP, 1))
    )
    step = 0
    for epoch in range(epochs):
        for part in batches(rows, epoch):
            loss = loss_of(model, part, begin)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % 100 == 0:
                print(f"rate {lr:g}: step {step} of about {total}, loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def held_out_loss(model: EncoderDecoder, rows: Sequence[Row], begin: int) -> float:
    """The mean loss in nats per target token."""
    sums = [(loss_of(model, part, begin).item(), sum(len(row[1]) for row in part)) for part in batches(rows, 0)]
    return sum(loss * count for loss, count in sums) / sum(count for _, count in sums)


@torch.no_grad()
def greedy(model: EncoderDecoder, prompts: Sequence[list[int]], tokens: int, begin: int, eos: int) -> list[list[int]]:
    """The most probable token at each step, until the end of the text."""
    written: list[list[int]] = []
    for start in range(0, len(prompts), ROWS):
        part = prompts[start : start + ROWS]
        source, absent = padded(part), padded([[0] * len(row) for row in part], 1).bool()
        memory, ids = model.encode(source, absent), torch.full((len(part), 1), begin)
        for _ in range(tokens):
            ids = torch.cat([ids, model.decode(memory, absent, ids)[:, -1].argmax(-1, keepdim=True)], 1)
            if bool((ids[:, 1:] == eos).any(1).all()):  # the first one begins the text
                break
        written += [row[: row.index(eos)] if eos in row else row for row in ids[:, 1:].tolist()]
    return written


def rows_of(samples: TaskRows, numbers: Sequence[int], eos: int) -> list[Row]:
    """Prompts and targets of samples."""
    return [(prompt, [*target, eos]) for prompt, target in map(samples.question, numbers)]


def compare(run: TrainedModel, arguments: argparse.Namespace) -> dict[str, object]:
    """Trains the rival, lets both write, and returns parameters, tokens, scores and paired differences."""
    tokenizer, eos = run.tokenizer, run.tokenizer.eos
    (held_out,) = run.corpus.validation.values()
    task = task_rows(held_out)
    assert task is not None, "the run needs data=task"
    samples, order = task
    chosen = order.tolist()
    items, asked = [samples.texts_of(i) for i in chosen], rows_of(samples, chosen, eos)
    training = rows_of(samples.training, range(len(samples.training)), eos)
    context = run.model.context

    def rival() -> EncoderDecoder:
        torch.manual_seed(arguments.seed)
        return EncoderDecoder(tokenizer.vocab_size, arguments.width, arguments.layers, arguments.heads, context)

    losses = {}
    for lr in arguments.lrs:
        model = rival()
        train(model, training, 1, lr, eos)
        losses[lr] = held_out_loss(model.eval(), asked, eos)
    best, began, model = min(losses, key=lambda lr: losses[lr]), time.process_time(), rival()
    train(model, training, arguments.epochs, best, eos)
    seconds = time.process_time() - began
    prompts = [prompt for prompt, _ in asked]
    texts = {
        "kleiber": continuations(run.model, prompts, samples.kept, eos),
        "encoder_decoder": greedy(model.eval(), prompts, samples.kept, eos, eos),
    }
    references = [item.references for item in items]
    measured = {
        name: {
            key: METRICS[key]([answer_text(tokenizer, *pair) for pair in zip(prompts, ids, strict=True)], references)[
                key
            ]
            for key in ("bleu", "chrf")
        }
        for name, ids in texts.items()
    }
    differences = {}
    for key in ("bleu", "chrf"):
        gaps = measured["kleiber"][key].items - measured["encoder_decoder"][key].items
        lo, hi = stats.t.interval(LEVEL, len(gaps) - 1, gaps.mean(), stats.sem(gaps))
        differences[key] = {"value": float(gaps.mean()), "lo": float(lo), "hi": float(hi), "n": len(gaps)}
    return {
        "schema": "kleiber.translation/1", "level": LEVEL, "rows": len(items),
        "parameters": {
            "kleiber": sum(p.numel() for p in run.model.parameters()),
            "encoder_decoder": sum(p.numel() for p in model.parameters()),
        },
        "epochs": arguments.epochs, "seconds": round(seconds, 1), "lr": best,
        "losses_by_lr": {f"{lr:g}": loss for lr, loss in losses.items()}, "loss": held_out_loss(model, asked, eos),
        "scores": {name: {key: each.score.to_json() for key, each in of.items()} for name, of in measured.items()},
        "differences": differences,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training rows, as many as the run made")
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--layers", type=int, default=2, help="of the encoder, and of the decoder")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lrs", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    record = compare(open_model(arguments.run), arguments)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["differences"], indent=1))


if __name__ == "__main__":
    main()
