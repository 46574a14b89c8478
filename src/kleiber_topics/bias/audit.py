"""What `kleiber data --bias` says of a text: which words stand near those of two groups.

The contexts of two groups, such as the words for men and for women, are compared as Monroe, Colaresi & Quinn 2008
(Political Analysis 16) compare two texts: by the log-odds ratio of each word, with a Dirichlet prior from the whole
text, whose variance gives an interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import false_discovery_control, norm

from kleiber.charts import render_page
from kleiber.data import Audit
from kleiber.types import Json, format_interval
from kleiber_topics.bias.associations import association_chart
from kleiber_topics.bias.word_lists import read_pairs, read_words
from kleiber_topics.bias.word_swap import WORD, WordSwap

FDR = 0.1
SHOWN = 10  # words of each group in the terminal
METHODS = (
    "A word is near a group if a word of the group stands within the window in the same document. Log-odds ratios "
    "compare the contexts of both groups, with a Dirichlet prior of 500 words in the proportions of the text (Monroe "
    "et al. 2008, Political Analysis 16, eq. 16 and 19). q-values are corrected for the number of words (Benjamini & "
    "Hochberg 1995). PMI is log2 of the share of a word near a group over its share in the text. Words that are "
    "repeated within a document are not independent, so intervals are somewhat too narrow."
)
LEVEL = 0.9  # of the intervals
PRIOR = 500.0  # words that the prior is worth


@dataclass
class Contexts:
    """Counts of a text.

    near        occurrences of each word within the window around words of the first, and of the second group; one that
                is near several words of a group counts once
    words       occurrences of each word, without those of the groups
    group_size  occurrences of words of each group
    """

    near: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    words: Counter[str] = field(default_factory=Counter)
    group_size: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, text: str, swap: WordSwap, window: int) -> None:
        """Counts the words of a document near those of the two groups.

        window  largest distance in words
        """
        tokens = WORD.findall(text)
        groups = np.array([swap.group(token) for token in tokens], dtype=np.int64)
        lower = [token.lower() for token in tokens]
        others = groups < 0
        self.words.update(token for token, other in zip(lower, others, strict=True) if other)
        for group in (0, 1):
            places = np.flatnonzero(groups == group)
            self.group_size[group] += len(places)
            covered = np.zeros(len(tokens) + 1, dtype=np.int64)
            np.add.at(covered, np.maximum(places - window, 0), 1)
            np.add.at(covered, np.minimum(places + window + 1, len(tokens)), -1)
            is_near = (np.cumsum(covered[:-1]) > 0) & others
            self.near[group].update(lower[at] for at in np.flatnonzero(is_near))


@dataclass(frozen=True)
class Association:
    """How a word is associated with the groups.

    count, first, second     its occurrences, and those near words of the first and of the second group
    log_odds, lo, hi         log-odds ratio of the word near the first against the second group, with its interval
    z                        the ratio over its standard error, by which words are ranked: rare ones do not lead
    q                        p-value of log_odds = 0, corrected for the number of words (Benjamini & Hochberg 1995)
    pmi_first, pmi_second    log2 of its share near a group over its share in the text; None where it is never there
    """

    term: str
    count: int
    first: int
    second: int
    log_odds: float
    lo: float
    hi: float
    z: float
    q: float
    pmi_first: float | None
    pmi_second: float | None

    def to_json(self) -> Json:
        """The association as plain data."""
        return dict(vars(self))


def associations(contexts: Contexts, words: Sequence[str] | None, prior: float = PRIOR) -> list[Association]:
    """The associations of words, by z: from those of the first group to those of the second one.

    words  to report; None for all that stand near either group at least five times
    prior  number of words that the prior is worth

    The log-odds ratio is eq. 16 of Monroe et al., and its variance eq. 19; the prior of a word is in proportion to its
    frequency in the text. Empty where a group has no context.
    """
    first, second = contexts.near
    totals = [float(sum(near.values())) for near in contexts.near]
    if words is None:
        words = sorted(token for token in first | second if first[token] + second[token] >= 5)
    words = [token for token in dict.fromkeys(words) if contexts.words[token]]
    if not words or not all(totals):
        return []
    size = float(sum(contexts.words.values()))
    counts = np.array([[first[token], second[token]] for token in words], dtype=np.float64)
    shares = np.array([contexts.words[token] for token in words]) / size
    alpha = (prior * shares)[:, None]
    odds = np.log((counts + alpha) / (np.array(totals) + prior - counts - alpha))
    ratio, error = odds[:, 0] - odds[:, 1], np.sqrt((1 / (counts + alpha)).sum(1))
    half = norm.ppf((1 + LEVEL) / 2) * error
    q_values = false_discovery_control(2 * norm.sf(np.abs(ratio / error)), method="bh")
    with np.errstate(divide="ignore"):
        pmi = np.log2(counts / np.array(totals) / shares[:, None])
    rows = [
        Association(
            token, contexts.words[token], first[token], second[token], float(ratio[at]), float(ratio[at] - half[at]),
            float(ratio[at] + half[at]), float(ratio[at] / error[at]), float(q_values[at]),
            *(float(value) if np.isfinite(value) else None for value in pmi[at]),
        )
        for at, token in enumerate(words)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row.z)


class BiasAudit(Audit):
    """Counts the words near those of two groups.

    words       pairs of words of the groups: `gender`, or a file; None: gender
    attributes  words to report: `occupations`, or a file; None: all frequent words
    window      largest distance to a word of a group; None: 10

    Raises ValueError for a list that cannot be read.
    """

    def __init__(self, words: str | None = None, attributes: str | None = None, window: int | None = None) -> None:
        self.window = window or 10
        self.groups = group_names(words or "gender")
        self.listed = None if attributes is None else read_words(attributes, "--attributes")
        self.swap, self.contexts = word_swap(words or "gender"), Contexts()

    def add(self, text: str) -> None:
        self.contexts.add(text, self.swap, self.window)

    def rows(self) -> list[Association]:
        """The associations of the words with the groups."""
        return associations(self.contexts, self.listed)

    def summary(self) -> Json:
        sizes = dict(zip(self.groups, self.contexts.group_size, strict=True))
        words = [row.to_json() for row in self.rows()]
        return {"bias": {"groups": sizes, "window": self.window, "words": words}}

    def lines(self) -> list[str]:
        return bias_lines(self.contexts, self.rows(), self.groups)

    def page(self, path: str, first: str) -> str:
        """A page with the associations as a figure and a table."""
        rows, groups, notes = self.rows(), self.groups, [first, self.lines()[0]]
        table = [
            {
                "word": row.term, "occurrences": row.count,
                f"near {groups[0]}": row.first, f"near {groups[1]}": row.second,
                "log-odds ratio": row.log_odds, "from": row.lo, "to": row.hi, "q": row.q,
                f"PMI, {groups[0]} (bits)": row.pmi_first, f"PMI, {groups[1]} (bits)": row.pmi_second,
            }
            for row in rows
        ]  # fmt: skip
        return render_page(
            f"Words near two groups in {path}",
            {"associations": association_chart([row.to_json() for row in rows], groups, FDR)} if rows else {},
            notes=notes,
            tables={"Words": table},
            methods=METHODS,
        )


def word_swap(words: str) -> WordSwap:
    """Returns the pairs of words of the two groups: those of gender, or of a file."""
    names = read_pairs("names", "names") if words == "gender" else []
    return WordSwap(read_pairs(words, "--words"), names, words == "gender")


def group_names(words: str) -> tuple[str, str]:
    """What the two groups of a list are called."""
    return ("male words", "female words") if words == "gender" else ("the first words", "the second words")


def bias_lines(contexts: Contexts, rows: list[Association], groups: tuple[str, str]) -> list[str]:
    """The occurrences of both groups, and the words that are most strongly associated with each."""
    counts = " and ".join(f"{size:,} {name}" for size, name in zip(contexts.group_size, groups, strict=True))
    lines = [
        f"it has {counts}; {sum(row.q <= FDR for row in rows)} of {len(rows)} words stand nearer to either, q <= .1"
    ]
    sides = (
        [row for row in rows if row.log_odds > 0][:SHOWN],
        [row for row in reversed(rows) if row.log_odds < 0][:SHOWN],
    )
    for name, side in zip(groups, sides, strict=True):
        lines += [f"near {name}, log-odds ratio [90 % interval], occurrences near either group:"] if side else []
        lines += [
            f"  {row.term:<16} {row.log_odds:+.2f} {format_interval(row.lo, row.hi, '+.2f')}  "
            f"{row.first:,} and {row.second:,}"
            for row in side
        ]
    return lines
