"""What `kleiber data --bias` says of a text: which words stand near those of two groups."""

from __future__ import annotations

from kleiber.charts import render_page
from kleiber.data import Audit
from kleiber.types import Json, format_interval
from kleiber_topics.bias.associations import association_chart
from kleiber_topics.bias.cooccurrence import Association, Contexts, associations
from kleiber_topics.bias.word_lists import read_pairs, read_words
from kleiber_topics.bias.word_swap import WordSwap

FDR = 0.1
SHOWN = 10  # words of each group in the terminal
METHODS = (
    "A word is near a group if a word of the group stands within the window in the same document. Log-odds ratios "
    "compare the contexts of both groups, with a Dirichlet prior of 500 words in the proportions of the text (Monroe "
    "et al. 2008, Political Analysis 16, eq. 16 and 19). q-values are corrected for the number of words (Benjamini & "
    "Hochberg 1995). PMI is log2 of the share of a word near a group over its share in the text. Words that are "
    "repeated within a document are not independent, so intervals are somewhat too narrow."
)


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
