"""The command `kleiber data`, which describes the text at a path, without torch, and prepares its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kleiber.records.terminal import print_line
from kleiber.studies.fit_command import html_path
from kleiber.types import Json

if TYPE_CHECKING:
    from kleiber.data.cooccurrence import Association, Contexts
    from kleiber.data.documents import Documents
    from kleiber.data.location import Splits
    from kleiber.data.survey import Survey
    from kleiber.data.word_swap import WordSwap

SCHEMA = "kleiber.data/1"
FDR = 0.1
SHOWN = 10  # words of each group in the terminal
OPTIONS = {  # by key of the data
    "path": "", "text": "--text ", "config": "--config ", "tokenizer": "--tokenizer ", "splits": "--splits "
}  # fmt: skip
DESCRIBED = "100M"  # bytes of text that are described without --max-bytes

SplitNames = Annotated[
    Literal["auto", "files"],
    typer.Option(help="auto: a dataset card or the hub's shard names decide about splits; files: names of files do."),
]
Page = Annotated[
    Path | None,
    typer.Option(metavar="OUT.html", callback=html_path, help="Write it to this HTML file; needs --bias."),
]


def describe(
    path: Annotated[str, typer.Argument(help="builtin/docs, wikitext, tinystories, a file, a folder or a hub name.")],
    bias: Annotated[bool, typer.Option("--bias", help="Report which words stand near those of two groups.")] = False,
    config: Annotated[str | None, typer.Option(help="Config of the data set. Default: its default one.")] = None,
    text: Annotated[str, typer.Option(help="Column of a table that holds the text.")] = "text",
    splits: SplitNames = "auto",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Prepare the tokens that data=text would train on: bytes, bpe, a hub name or a folder."),
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(min=258, help="Entries of --tokenizer bpe. [4096]")] = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="Read at most this much text, such as 20M. [all to prepare, 100M to describe]")
    ] = None,
    words: Annotated[
        str | None, typer.Option(metavar="LIST", help="Pairs of words of the groups: gender, or a file. [gender]")
    ] = None,
    attributes: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Words to report: occupations, or a file. Default: all frequent words."),
    ] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Largest distance to a word of a group. [10]")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report to this JSON file.")] = None,
    report: Page = None,
) -> None:
    """Describe the text at a path, with --bias which words stand near which; --tokenizer prepares its tokens."""
    from kleiber.config.stages import quantity
    from kleiber.data.cooccurrence import associations, count_contexts
    from kleiber.data.documents import open_documents
    from kleiber.data.survey import Survey
    from kleiber.data.word_lists import read_words
    from kleiber.records.files import write_json, write_text

    of_bias = {"--words": words, "--attributes": attributes, "--window": window, "--report": report}
    require("--bias", "the report of --bias", bias, of_bias)
    require("--tokenizer bpe", "--tokenizer bpe", tokenizer == "bpe", {"--vocab-size": vocab_size})
    chosen = words or "gender"
    listed = None if attributes is None else read_words(attributes, "--attributes")
    limit = round(quantity(max_bytes or DESCRIBED))
    survey, swap = Survey(limit), word_swap(chosen)
    with options_named():
        settings = (vocab_size, max_bytes, splits)
        prepared = None if tokenizer is None else prepare_tokens(path, config, text, tokenizer, *settings)
        with open_documents(path, config, text, limit, splits) as documents:
            contexts = count_contexts(survey.watch(documents.texts), swap, window or 10)
    summary, lines = describe_text(path, documents, survey, contexts)
    if prepared is not None:
        summary["prepared"], lines = prepared, [*lines, *prepared_lines(prepared)]
    if bias:
        groups, rows = group_names(chosen), associations(contexts, listed)
        summary["bias"], associated = describe_bias(contexts, rows, groups, window or 10)
        if report is not None:
            write_text(report, bias_page(path, [lines[0], associated[0]], rows, groups))
            associated.append(f"wrote {report}")
        lines += associated
    if json is not None:
        write_json(json, summary)
    print_line("\n".join(lines))


def describe_text(path: str, documents: Documents, survey: Survey, contexts: Contexts) -> tuple[Json, list[str]]:
    """Returns the description of the documents at a path as JSON has it, and the lines of the terminal."""
    from kleiber.data.survey import survey_lines

    summary: Json = {"schema": SCHEMA, "path": path, "files": documents.files, **survey.to_json()}
    summary["words"] = sum(contexts.words.values()) + sum(contexts.group_size)
    lines = [f"{path}: {summary['documents']:,} documents, {summary['bytes']:,} bytes, {summary['words']:,} words"]
    lines += [*documents.reading.files, *(f"warning: {text}" for text in documents.reading.warnings)]
    return summary, [*lines, *survey_lines(summary)]


@contextmanager
def options_named() -> Iterator[None]:
    """Errors within the context name the options of this command in place of the keys of `kleiber train`."""
    from kleiber.data.dataset import REMEDY

    try:
        yield
    except ValueError as error:
        text = str(error).replace(REMEDY, "name a file or folder, or set KLEIBER_DATA=DIR to a folder with a copy")
        for key, option in OPTIONS.items():
            text = text.replace(f"data.{key}=", option)
        raise ValueError(text) from error


def describe_bias(
    contexts: Contexts, rows: list[Association], groups: tuple[str, str], window: int
) -> tuple[Json, list[str]]:
    """Returns the associations as JSON has them, and the lines of the terminal."""
    sizes = dict(zip(groups, contexts.group_size, strict=True))
    summary = {"groups": sizes, "window": window, "words": [row.to_json() for row in rows]}
    return summary, bias_lines(contexts, rows, groups)


def require(switch: str, place: str, present: bool, options: Mapping[str, object]) -> None:
    """Raises ValueError for the first option with a value if the switch that it belongs to is not present."""
    for option, value in options.items():
        if value is not None and not present:
            raise ValueError(f"{option} {value} belongs to {place}: add {switch}, or remove {option}")


def word_swap(words: str) -> WordSwap:
    """Returns the pairs of words of the two groups: those of gender, or of a file."""
    from kleiber.data.word_lists import read_pairs
    from kleiber.data.word_swap import WordSwap

    names = read_pairs("names", "names") if words == "gender" else []
    return WordSwap(read_pairs(words, "--words"), names, words == "gender")


def prepare_tokens(
    path: str,
    config: str | None,
    column: str,
    tokenizer: str,
    vocab_size: int | None,
    max_bytes: str | None,
    splits: Splits | None,
) -> Json:
    """Prepares the tokens of a text, compares all of them with their checksums, and returns their counts by split."""
    from kleiber.data.cache import whole_checks
    from kleiber.data.documents import NAMED
    from kleiber.data.mixture import MixtureCorpus
    from kleiber.data.text import Text

    with whole_checks():
        if path.startswith("builtin/") or path in NAMED:
            corpus = MixtureCorpus({path: 1.0}, tokenizer, vocab_size, max_bytes).prepare(1)
        else:
            text = Text(path, config, column, "documents", tokenizer, vocab_size, max_bytes, splits=splits)
            corpus = text.prepare(1)
    (manifest,) = corpus.manifest.values()
    facts = {"splits": manifest["splits"], "overlap": manifest.get("overlap")}
    return {"tokenizer": corpus.tokenizer.name, "hash": corpus.hash, **facts}


def prepared_lines(prepared: Json) -> list[str]:
    """The tokens of each split."""
    from kleiber.data.overlap import describe_overlap
    from kleiber.data.sources import SPLITS

    lines = [f"prepared with the tokenizer {prepared['tokenizer']}, hash {prepared['hash']}:"]
    for name in SPLITS:
        counts = prepared["splits"][name]
        lines.append(
            f"  {name:<10} {counts['documents']:>12,} documents  {counts['tokens']:>15,} tokens  "
            f"{counts['bytes'] / max(1, counts['tokens']):.2f} bytes per token"
        )
    return lines if prepared["overlap"] is None else [*lines, describe_overlap(prepared["overlap"])]


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
            f"  {row.term:<16} {row.log_odds:+.2f} [{row.lo:+.2f}, {row.hi:+.2f}]  {row.first:,} and {row.second:,}"
            for row in side
        ]
    return lines


def bias_page(path: str, notes: list[str], rows: list[Association], groups: tuple[str, str]) -> str:
    """The page of --report."""
    from kleiber.charts.associations import association_chart
    from kleiber.charts.page import render_page

    table = [
        {
            "word": row.term, "occurrences": row.count, f"near {groups[0]}": row.first, f"near {groups[1]}": row.second,
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


METHODS = (
    "A word is near a group if a word of the group stands within the window in the same document. Log-odds ratios "
    "compare the contexts of both groups, with a Dirichlet prior of 500 words in the proportions of the text (Monroe "
    "et al. 2008, Political Analysis 16, eq. 16 and 19). q-values are corrected for the number of words (Benjamini & "
    "Hochberg 1995). PMI is log2 of the share of a word near a group over its share in the text. Words that are "
    "repeated within a document are not independent, so intervals are somewhat too narrow."
)
