"""The command `kleiber data`, which describes the text at a path, without torch, and prepares its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kleiber.config.extensions import import_offer
from kleiber.records.terminal import print_line
from kleiber.studies.fit_command import html_path
from kleiber.types import Json

if TYPE_CHECKING:
    from kleiber.data.documents import Documents
    from kleiber.data.location import Splits
    from kleiber.data.survey import Survey

SCHEMA = "kleiber.data/1"
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
    from kleiber.data.documents import open_documents
    from kleiber.data.survey import Audit, Survey
    from kleiber.records.files import write_json, write_text

    of_bias = {"--words": words, "--attributes": attributes, "--window": window, "--report": report}
    require("--bias", "the report of --bias", bias, of_bias)
    require("--tokenizer bpe", "--tokenizer bpe", tokenizer == "bpe", {"--vocab-size": vocab_size})
    limit = round(quantity(max_bytes or DESCRIBED))
    survey = Survey(limit)
    audit = import_offer("AUDITS", "bias", "--bias")(words, attributes, window) if bias else Audit()
    assert isinstance(audit, Audit), f"an offer of AUDITS must be an Audit of kleiber.data, and {audit!r} is none"
    with options_named():
        settings = (vocab_size, max_bytes, splits)
        prepared = None if tokenizer is None else prepare_tokens(path, config, text, tokenizer, *settings)
        with open_documents(path, config, text, limit, splits) as documents:
            for document in survey.watch(documents.texts):
                audit.add(document)
    summary, lines = describe_text(path, documents, survey)
    first = lines[0]
    if prepared is not None:
        summary["prepared"], lines = prepared, [*lines, *prepared_lines(prepared)]
    summary |= audit.summary()
    lines += audit.lines()
    if report is not None:
        write_text(report, audit.page(path, first))
        lines.append(f"wrote {report}")
    if json is not None:
        write_json(json, summary)
    print_line("\n".join(lines))


def describe_text(path: str, documents: Documents, survey: Survey) -> tuple[Json, list[str]]:
    """Returns the description of the documents at a path as JSON has it, and the lines of the terminal."""
    from kleiber.data.survey import survey_lines

    summary: Json = {"schema": SCHEMA, "path": path, "files": documents.files, **survey.to_json()}
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


def require(switch: str, place: str, present: bool, options: Mapping[str, object]) -> None:
    """Raises ValueError for the first option with a value if the switch that it belongs to is not present."""
    for option, value in options.items():
        if value is not None and not present:
            raise ValueError(f"{option} {value} belongs to {place}: add {switch}, or remove {option}")


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
    from kleiber.data.mixture_corpus import MixtureCorpus
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
