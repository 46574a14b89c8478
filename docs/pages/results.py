"""The pages of the recorded studies, from what `kleiber report` wrote to their folders and their discussion.md.

The numbers of tables, laws and verdicts are those of findings.json and laws.json. Those of discussion.md are references
to records in discussion.template.md (references.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import yaml

from kleiber.config.compose import config_files
from kleiber.records.catalog import counts, read_runs
from pages.figures import place_of
from pages.headers import Header, read_header
from pages.tables import FOLDED_ROWS, cell, folded, records_table, table

Json = dict[str, object]
GROUPS = (
    "Scaling laws",
    "Architecture and recipe",
    "Mixtures of experts",
    "Forgetting",
    "Transfer",
    "Interpretability",
    "Bias",
    "Privacy",
    "Human-AI collaboration",
)
# Links between discussions, and from them to docs/, in the repository and in the site.
SITE_PATHS = {
    "](../../golden/discussion.md": "](../golden/index.md",
    "](../results/": "](../",
    "/discussion.md": "/index.md",
    "](../../../docs/": "](../../",
    "](../../docs/": "](../../",
}
NOT_IN_GIT = re.compile(r"<!-- (!\[[^]]*\]\(figures/[\w.-]+\)) -->")
IN_GIT = re.compile(r"\((figures/[\w.-]+)\.svg\)")
GALLERY = "results/gallery.md"
CAPTIONS = {
    "allocation": "The best size grows with compute as the line says; in the band, 90% of the fits",
    "annotators": "Wrong judgments lower the win rate; the dashed line is that of the start",
    "arms": "Arms from the lowest loss to the highest; points of one arm are its seeds",
    "backtests": "A law is worth its parameters where its error is below that of both naive forecasts",
    "balance": "How evenly routers use the experts",
    "calibration": "A change is decided where its whole interval lies on one side of the dashed line",
    "context_builtin": "Loss on text against the context length",
    "context_recall": "Loss on associative recall against the context length",
    "domains": "Blue: pre-training helps; numbers in parentheses are undecided",
    "contours": "The loss falls along both axes; runs lie where the law was fitted",
    "isoflop": "The best size grows with compute: the minima of the parabolas move to the right",
    "predicted": "The law predicts the runs as far as the points lie on the dashed line",
    "differences": "A difference is decided where its interval is clear of the dashed line",
    "envelope": "The black steps are the lowest training loss that any size has reached with that compute",
    "epsilon": "Lower left is better: secrets are forgotten at no cost in loss",
    "exponents": "Dots of one color that lie near each other: how parameters are counted hardly matters",
    "exposure": "Exposure rises with repetition in plain training, and stays low with each remedy",
    "extracted": "Only plain training writes out secrets, and only those that are repeated often",
    "frontier": "Each size is best over a range of compute; the black line is the lowest loss of the law",
    "gap_by_arm": "A change helps where its interval is left of the dashed line; blue is an extrapolation",
    "labels": "Where the colored lines lie above the black one, pre-training saves labels",
    "ladder": "A line for each size; the law fits where its curves pass through the points",
    "matched": "Forgetting at equal target loss: left of the dashed line is less than plain fine-tuning",
    "matrix": "Red cells are what was forgotten, blue cells what was learned",
    "pareto": "Lower left is better: less forgetting at a lower loss on the new text",
    "planted": "A method is right where its dot is at 1",
    "profile": "Below the dashed line, values of E fit about as well as the best; a flat curve determines nothing",
    "residuals": "Points scattered around 0 fit; a trend along the lines is a misfit of the law",
    "sizes": "How much of a difference is size: arms further to the right have more parameters",
    "texts": "Lines that are flat say that more text to pre-train on does not help here",
    "tests": "Right of the dashed line, an attribution is better than a random ranking",
    "tokens": "How much longer training changes a difference, or the forgetting",
    "trajectory": "Forgetting while the new text is learned",
    "transfer": "If the minima lie above each other, one learning rate is best for all sizes",
    "transferred": "Above the dashed line, pre-training saves labels",
    "tuning": "An arm is tuned if its lowest point is not at an end of its line",
}


@dataclass(frozen=True)
class Study:
    """One recorded study.

    folder      where its findings.json is
    question    the title of its page
    answer      one line, with an interval where there is one
    kind        the choice of `study=` that made it
    group       the part of the overview that it belongs to
    discussion  hand-written text in Markdown
    also        other studies that `kleiber report` reads together with it
    """

    folder: Path
    question: str
    answer: str
    kind: str
    group: str
    discussion: str
    also: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def findings(self) -> Json:
        return read_json(self.folder / "findings.json")

    @property
    def law(self) -> Json:
        path = self.folder / "laws.json"
        return read_json(path) if path.is_file() else {}

    @property
    def figures(self) -> list[str]:
        """The paths of the figures below the page; of a study without rows, the PNG that was recorded."""
        if not self.has_rows:
            return sorted(path.name for path in self.folder.glob("*.png"))
        names = self.findings["figures"]
        assert isinstance(names, list)
        return [f"figures/{name}.png" for name in sorted(names)]

    @property
    def has_rows(self) -> bool:
        return (self.folder / "runs.jsonl.gz").is_file() or any(self.folder.glob("*/summary.json"))

    @property
    def cost(self) -> str:
        """The number of the study's runs and the time of all their processes, without those of `also`."""
        runs, seconds = str(self.findings["runs"]), float(str(self.findings["seconds"]))
        if self.also:
            own = read_runs(self.folder)
            runs, seconds = counts(own), sum(run.summary["seconds"] for run in own)
        time = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
        return f"{runs.removesuffix(' finished')} runs, {time}"


def read_json(path: Path) -> Json:
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def studies(repository: Path) -> list[Study]:
    """Returns the recorded studies in the order of the overview: golden first, then by group and name.

    Those of a topic that was deleted are left out.
    """
    return sorted(
        (study for study in recorded(repository) if f"study/{study.kind}" in config_files()),
        key=lambda study: GROUPS.index(study.group),
    )


def recorded(repository: Path) -> list[Study]:
    """Returns all recorded studies."""
    folders = [path.parent for path in sorted(repository.glob("multirun/results/*/discussion.md"))]
    return [read_study(folder) for folder in (repository / "multirun/golden", *folders)]


def left_out(repository: Path) -> list[Study]:
    """Returns the recorded studies of topics that were deleted."""
    shown = {study.folder for study in studies(repository)}
    return [study for study in recorded(repository) if study.folder not in shown]


def read_study(folder: Path) -> Study:
    """Returns the study of a folder that has findings.json and discussion.md, whose front matter is YAML."""
    text = (folder / "discussion.md").read_text(encoding="utf-8")
    _, front, discussion = text.split("---\n", 2)
    return Study(folder=folder, discussion=discussion.strip(), **yaml.load(front, yaml.CSafeLoader))


def navigation(repository: Path) -> list[dict[str, str | list[dict[str, str]]]]:
    """Returns the entries of the navigation: the gallery, and a section a group."""
    return [
        {"Gallery": GALLERY},
        *(
            {group: [{study.name: path_of(study)} for study in studies(repository) if study.group == group]}
            for group in GROUPS
        ),
    ]


def path_of(study: Study) -> str:
    return f"results/{study.name}/index.md"


@cache
def pages(repository: Path) -> dict[str, str]:
    """Returns the Markdown of every study's page by its path in the site."""
    texts = {path_of(study): page(study, repository) for study in studies(repository)}
    return {GALLERY: gallery(repository), **texts}


def gallery(repository: Path) -> str:
    """Returns the Markdown of the page with the figures of all studies, each a link to the page of its study."""
    parts = ["# Gallery", "All figures of the recorded studies, by subject. A click leads to the study."]
    for group in GROUPS:
        parts.append(f"## {group}")
        for study in studies(repository):
            if study.group == group and study.figures:
                parts += [f"### {study.question}", f'<div class="gallery" markdown>\n\n{thumbnails(study)}\n\n</div>']
    return "\n\n".join(parts) + "\n"


def thumbnails(study: Study) -> str:
    """Returns the figures of a study as links to its page."""
    return "\n".join(
        f"[![{caption(path)}]({study.name}/{path}){{ loading=lazy }}]({study.name}/index.md)" for path in study.figures
    )


def figures(repository: Path) -> dict[str, Path]:
    """Returns the figures of all studies by their path in the site; `drawn_from` says where some are drawn from.

    All are PNG. An SVG is laid out for the widths of one font, and would be cut off where a reader has another one.
    """
    places = {folder: place for place, (folder, _) in drawn_from(repository).items()}
    return {
        f"results/{study.name}/{path}": places.get(study.folder, study.folder) / path
        for study in studies(repository)
        for path in study.figures
    }


def drawn_from(repository: Path) -> dict[Path, tuple[Path, list[Path]]]:
    """Returns where the figures of studies with rows are drawn: by place, the study's folder and those read with it."""
    sources = {
        study.folder: [repository / "multirun/results" / name for name in study.also]
        for study in studies(repository)
        if study.has_rows
    }
    return {place_of(folder, also, repository): (folder, also) for folder, also in sources.items()}


def overview(repository: Path) -> str:
    """Returns the tables of all studies: question, answer, cost, and whether the rows were recorded."""
    parts = []
    for group in GROUPS:
        rows = [
            [f"[{study.question}]({study.name}/index.md)", study.answer, study.cost, "yes" if study.has_rows else "no"]
            for study in studies(repository)
            if study.group == group
        ]
        parts.append(f"## {group}\n\n" + table(["question", "answer", "cost", "rows"], rows))
    return "\n\n".join(parts)


def page(study: Study, repository: Path) -> str:
    """Returns the Markdown of a study's page."""
    header = read_header(config_files()[f"study/{study.kind}"])
    discussion = with_pictures(study.discussion)
    shown = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", discussion))
    others = [path for path in study.figures if path not in shown]
    parts = [
        f"# {study.question}",
        f"**{study.answer}**",
        facts(study, header),
        with_site_links(discussion),
        "## Conclusions and caveats\n\n" + conclusions(study.findings),
        law_section(study.law),
        tables_section(study.findings),
        "\n\n".join(["## Figures", *map(figure, others)]) if others else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def facts(study: Study, header: Header) -> str:
    """Returns the table of where a study comes from and how to repeat it."""
    place = f"multirun/{study.name}" if study.name == "golden" else f"multirun/results/{study.name}"
    options = "".join(f" --also multirun/results/{name}" for name in study.also)
    again = (
        f"`kleiber report {place}{options}` makes findings, law and figures again"
        if study.has_rows
        else "no: its numbers are those of the report at the time"
    )
    rows = [
        ["Study", f"[`study={study.kind}`](../../reference/study.md#{study.kind}): {header.summary}"],
        ["Source", header.labels.get("Paper", "")],
        ["Cost", f"{study.cost} of [processor time](../../glossary.md)"],
        ["Recorded", f"`{place}`"],
        ["[Rows](../../glossary.md)", again],
    ]
    return table(["", ""], [row for row in rows if row[1]])


def with_site_links(text: str) -> str:
    """Returns a discussion with links that lead to pages of the site instead of files of the repository."""
    for path, page_path in SITE_PATHS.items():
        text = text.replace(path, page_path)
    return text


def with_pictures(discussion: str) -> str:
    """Returns a discussion with all of its figures, as the PNG that the site has.

    Git has the SVG of the first; the others are comments, because a code host could not show them.
    """
    return IN_GIT.sub(r"(\1.png)", NOT_IN_GIT.sub(r"\1", discussion))


def conclusions(findings: Mapping[str, object]) -> str:
    """Returns the answer, the claims, the verdicts on the law and the caveats of a study as it reported them."""
    claims, verdicts, caveats = (findings[name] for name in ("claims", "verdicts", "caveats"))
    assert isinstance(claims, list) and isinstance(verdicts, list) and isinstance(caveats, list)
    parts = [f"The answer that `kleiber report` wrote:\n\n> {cell(findings['answer'])}"]
    if claims:
        level = float(str(findings["level"]))
        head = ["decision", f"result, intervals of {level:.0%} for all claims together", "what would decide it"]
        rows = [[cell(claim[name]) for name in ("decision", "verdict", "advice")] for claim in claims]
        parts.append(table(head, rows))
    if verdicts:
        signs = {"warn": "caution", "note": "note", "refuse": "refused"}
        rows = [[f"`{v['code']}`", signs.get(v["level"], v["level"]), cell(v["text"])] for v in verdicts]
        parts.append(table(["code", "level", "text"], rows))
    if caveats:
        parts.append("\n".join(f"- {cell(caveat['text'])}" for caveat in caveats))
    return "\n\n".join(parts)


def law_section(law: Json) -> str:
    """Returns the fitted law: formula, parameters with intervals, derived numbers."""
    if not law:
        return ""
    parameters, derived = law["params"], law.get("derived") or {}
    assert isinstance(parameters, dict) and isinstance(derived, dict)
    rows = [[f"`{name}`", *estimate(entry)] for name, entry in {**parameters, **derived}.items()]
    level = float(str(law["level"]))
    return "\n\n".join(
        [
            f"## Law\n\n`{law['formula']}` ({cell(law['source'])}), fitted to {law['n']} points.",
            table(["parameter", "value", f"{level:.0%} interval", "method"], rows),
        ]
    )


def estimate(entry: Mapping[str, object]) -> list[str]:
    """Returns the cells of a parameter: value, interval or the reason why there is none, method."""
    if not entry["identified"]:
        return [cell(entry["value"]), f"not identified: {cell(entry.get('reason'))}", ""]
    return [cell(entry["value"]), f"[{cell(entry['lo'])}, {cell(entry['hi'])}]", cell(entry.get("method"))]


def tables_section(findings: Mapping[str, object]) -> str:
    """Returns the tables of a study; those of many rows are folded."""
    recorded = findings["tables"]
    assert isinstance(recorded, dict)
    parts = []
    for title, rows in recorded.items():
        if rows:
            text = records_table(rows)
            long = len(rows) > FOLDED_ROWS
            parts.append(folded(f"{title} ({len(rows)} rows)", text) if long else f"### {title}\n\n{text}")
    level = findings["level"]
    note = "" if level is None else f"Intervals have a confidence of {level:.0%} each, unless a row names its level."
    return "\n\n".join(filter(None, ["## Tables", note, *parts])) if parts else ""


def figure(path: str) -> str:
    return f"![{caption(path)}]({path})\n\n*{caption(path)}.*"


def caption(path: str) -> str:
    name = Path(path).stem
    return CAPTIONS.get(name, name.replace("_", " ").replace("-", ", ").capitalize())
