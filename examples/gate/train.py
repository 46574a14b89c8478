"""A plain PyTorch training script that knows nothing of kleiber: a small language model of a made-up language.

    python train.py --seed 0

prints the validation loss in nats per token as its last line. The text is drawn from a fixed grammar, so nothing is
downloaded; a run takes a few seconds on one core.
"""

import argparse
import math
import time

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, CONTEXT = 16, 12


def parse() -> argparse.Namespace:
    """Reads the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--schedule", choices=["constant", "cosine", "linear"], default="constant")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--beta2", type=float, default=0.99)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--activation", choices=["relu", "gelu", "silu", "relu2"], default="gelu")
    parser.add_argument("--smoothing", type=float, default=0.0)
    parser.add_argument("--tie", action="store_true", help="one matrix for the embedding and the output")
    parser.add_argument("--split", choices=["validation", "reserve"], default="validation")
    return parser.parse_args()


def make_text(tokens: int, seed: int) -> torch.Tensor:
    """Draws a text: each token follows from the one before it by a fixed table, or repeats that of five tokens ago."""
    table = torch.Generator().manual_seed(1234)
    likely = torch.softmax(2.0 * torch.randn(VOCABULARY, VOCABULARY, generator=table), -1)
    cumulative = likely.cumsum(-1)
    draw = torch.Generator().manual_seed(seed)
    rows = 512  # texts that are drawn side by side
    length = tokens // rows
    text = torch.randint(VOCABULARY, (rows, length), generator=draw)
    uniform, copied = torch.rand(rows, length, generator=draw), torch.rand(rows, length, generator=draw) < 0.3
    for at in range(5, length):
        drawn = torch.searchsorted(cumulative[text[:, at - 1]], uniform[:, at : at + 1]).squeeze(1)
        text[:, at] = torch.where(copied[:, at], text[:, at - 5], drawn.clamp(max=VOCABULARY - 1))
    return text.flatten()


class Block(nn.Module):
    """A block of a transformer: causal attention, then an MLP."""

    def __init__(self, recipe: argparse.Namespace) -> None:
        super().__init__()
        width = recipe.width
        self.heads, self.activation, self.dropout = recipe.heads, recipe.activation, recipe.dropout
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        parts = self.queries_keys_values(self.before_attention(x)).chunk(3, -1)
        queries, keys, values = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(rows, length, width)))
        return x + self.drop(self.down(self.act(self.up(self.before_mlp(x)))))

    def act(self, x: torch.Tensor) -> torch.Tensor:
        """The nonlinearity of the MLP."""
        return F.relu(x).square() if self.activation == "relu2" else getattr(F, self.activation)(x)

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout while the model trains."""
        return F.dropout(x, self.dropout, self.training)


class Model(nn.Module):
    """A small transformer that predicts the next token."""

    def __init__(self, recipe: argparse.Namespace) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, recipe.width)
        self.places = nn.Embedding(CONTEXT, recipe.width)
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(recipe.depth))
        self.norm = nn.LayerNorm(recipe.width)
        self.head = nn.Linear(recipe.width, VOCABULARY, bias=False)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        if recipe.tie:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def learning_rate(step: int, recipe: argparse.Namespace) -> float:
    """The learning rate of a step: a linear warmup, then the schedule."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    share = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    falling = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
    return recipe.lr * falling[recipe.schedule]


def evaluate(model: Model, text: torch.Tensor) -> float:
    """The mean loss of a text in nats per token."""
    windows = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    model.eval()
    with torch.no_grad():
        return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).item()


def main() -> None:
    recipe, started = parse(), time.monotonic()
    torch.set_num_threads(1)
    train, held_out = make_text(130_000, 1), make_text(30_000, 2 if recipe.split == "validation" else 3)
    torch.manual_seed(recipe.seed)
    model = Model(recipe)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, recipe.beta2), weight_decay=recipe.weight_decay
    )
    for step in range(recipe.steps):
        starts = torch.randint(len(train) - CONTEXT - 1, (recipe.batch, 1))
        windows = train[starts + torch.arange(CONTEXT + 1)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        logits = model(windows[:, :-1]).flatten(0, 1)
        loss = F.cross_entropy(logits, windows[:, 1:].flatten(), label_smoothing=recipe.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} training loss {loss.item():.4f} {time.monotonic() - started:.0f} s")
    print(f"val_loss: {evaluate(model, held_out):.6f}")


if __name__ == "__main__":
    main()
