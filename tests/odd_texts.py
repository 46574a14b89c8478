"""Texts that tokenizers trip over: emoji, spaces, numbers, special tokens, and random mixtures of scripts."""

import random

ODD = [
    "hé 🙂 你好",
    "",
    " ",
    "\n\n  \t x",
    "x" * 70,
    "don't  we'll\r\n12345 6",
    "<|endoftext|>",
    "def f(x):\n        return x**2\n",
]


def noise(count: int) -> list[str]:
    pick = random.Random(0)
    pools = ["abc XYZ", " \n\t", "0123456789", "!?#[]{}'\"", "éüßñ", "你好世界", "🙂🚀", "\u200b\u0301\ufeff"]
    return ["".join(pick.choice(pick.choice(pools)) for _ in range(pick.randint(1, 60))) for _ in range(count)]
