"""The static site of a folder: an index of its studies and folders of runs, and the report of each as a page.

The folder may be a stranger's. Its links are not followed, texts are escaped, figures are shown as pictures, in which
no script runs, and no report.html of the folder is copied: pages are made again from findings.json, or from the runs
where there is none. Nothing is written outside of the site.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kleiber.charts.page import Link, render_page
from kleiber.config.errors import ConfigError
from kleiber.records.catalog import Run, find_records, read_runs
from kleiber.records.completeness import incomplete_runs_named
from kleiber.records.files import read_json, write_json, write_text
from kleiber.records.progress import activity
from kleiber.records.regular_files import DamagedFile, links_refused, make_folder, path_inside, read_bytes
from kleiber.records.summary_file import first_error
from kleiber.studies.law_report import lines
from kleiber.studies.laws.laws_json import without_nonfinite
from kleiber.studies.report import page, run_rows, study_of
from kleiber.studies.study import SCHEMA_FILE, Findings, content
from kleiber.types import Json

SCHEMA = "kleiber.site/1"
INDEX, RECORD, FINDINGS, LAWS = "index.html", "index.json", "findings.json", "laws.json"
PAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.html")  # names that pages have
LONGEST = 80  # characters of the name of a page
MAX_PICTURE_BYTES = 2**23
SIZE = re.compile(rb'width="(\d+)" height="(\d+)" viewBox="0 0 \1 \2"')  # of an SVG that kleiber has drawn
MARGIN = 0.06  # of the width of an SVG, for fonts wider than the one for which its labels were laid out
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Report:
    """A page of the site.

    name      path of the study or of the folder of runs, relative to the published folder
    file      name of the page
    findings  the content of findings.json
    html      the page
    """

    name: str
    file: str
    findings: Json
    html: str

    @property
    def decision(self) -> str:
        """The decision over all claims; of a law, that it is refused or what is not identified; else ""."""
        if self.findings["decision"] or self.findings.get("refused"):
            return self.findings["decision"] or "law refused"
        missing = ", ".join(map(str, self.findings.get("not_identified") or ()))
        return f"not identified: {missing}" if missing else ""


def publish(folder: Path, site: Path | None = None) -> tuple[Path, Json]:
    """Writes the site of a folder; returns the folder of the site and the content of its index.json.

    site  a new or empty folder, or that of an earlier site, which is replaced; None for `site` in the folder

    index.json lists the pages, and what could not be published with the reason. Raises FileNotFoundError where there is
    no such folder, ValueError where nothing in it can be published, and ConfigError for a folder of other files.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: name a folder that contains studies or runs")
    earlier = earlier_pages(site or folder / "site")
    places = places_of(folder)
    if not places:
        raise ValueError(f"{folder} contains no study and no run: neither a {FINDINGS} nor the config.yaml of a run")
    reports, problems = read_reports(folder, places)
    if not reports:
        raise ValueError(f"nothing in {folder} can be published: {problems[0]}")
    home = make_folder(folder, "site") if site is None else make_folder(site)
    for report in reports:
        write_text(home / report.file, report.html)
    title = folder.absolute().name
    write_text(home / INDEX, index_page(title, reports, problems))
    for name in earlier - {report.file for report in reports}:
        (home / name).unlink(missing_ok=True)
    record = {"schema": SCHEMA, "title": title, "pages": [entry(report) for report in reports], "problems": problems}
    write_json(home / RECORD, record)
    return home, record


def earlier_pages(site: Path) -> set[str]:
    """Returns the pages of the site that is at `site`. Raises ConfigError where other files are there."""
    if not os.path.lexists(site) or (site.is_dir() and not any(site.iterdir())):
        return set()
    try:
        record = read_json(site / RECORD)
        if record.get("schema") == SCHEMA:
            names = [page.get("page") for page in record["pages"]]
            return {name for name in names if isinstance(name, str) and PAGE.fullmatch(name)}
    except (DamagedFile, KeyError, TypeError, AttributeError):
        pass
    raise ConfigError(f"--out {site} must be a new or empty folder, or one that `kleiber publish` has written")


def places_of(folder: Path) -> list[Path]:
    """Returns the folders with a findings.json, and those that contain runs of which no such folder is the study."""
    studies = {Path(parent) for parent, _, files in os.walk(folder) if FINDINGS in files}
    homes, archives = find_records(folder)
    parents = {home if home == folder else home.parent for home in homes} | {file.parent for file in archives}
    loose = {place for place in parents if not any(place.is_relative_to(study) for study in studies)}
    return sorted(studies | loose)


def read_reports(folder: Path, places: Sequence[Path]) -> tuple[list[Report], list[str]]:
    """Returns the pages of these folders, and why there is none of the others."""
    reports, problems, taken = list[Report](), list[str](), {INDEX}
    with links_refused(folder), activity("publishing", len(places), "folders") as work:
        for place in work.track(places):
            name = str(place.relative_to(folder)) if place != folder else folder.absolute().name
            file = file_name(name, taken)
            try:
                report = read_report(place, name, file, [other for other in places if other != place])
            except (ValueError, OSError) as error:
                problems.append(f"{name}: {error}")
            else:
                reports.append(report)
                taken.add(file)
    return reports, problems


def file_name(name: str, taken: set[str]) -> str:
    """Returns the name of a page that no other page has, with none but letters, digits, points, dashes and lines."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:LONGEST].strip("-._") or "study"
    numbered = (f"{plain}{f'-{number}' if number > 1 else ''}.html" for number in range(1, len(taken) + 2))
    return next(file for file in numbered if file.lower() not in {other.lower() for other in taken})


def read_report(place: Path, name: str, file: str, others: Sequence[Path]) -> Report:
    """Returns the page of a study, or of a folder of runs, which is analyzed as `kleiber report` does.

    others  folders with pages of their own, whose runs are left out
    """
    inner = [other for other in others if other.is_relative_to(place)]
    runs = [run for run in read_runs(place) if not any(run.folder.is_relative_to(other) for other in inner)]
    if os.path.lexists(place / FINDINGS):
        findings = read_findings(place / FINDINGS)
        result = Findings(findings["answer"], text=law_lines(place / LAWS))
        pictures = recorded_pictures(place, findings["figures"])
    else:
        findings, result, pictures = analyze(place, runs)
    html = page(findings, result, {}, run_rows(runs), pictures, INDEX)
    return Report(name, file, findings, html)


def analyze(place: Path, runs: Sequence[Run]) -> tuple[Json, Findings, dict[str, str]]:
    """Returns the findings of runs without a report, and their figures. Raises ValueError as `kleiber report` does."""
    from kleiber.charts.pictures import to_svg

    study = study_of(place, runs)
    with incomplete_runs_named(runs):
        result = study.analyze(runs)
        pictures = {name: picture(to_svg(draw()).encode(), ".svg") for name, draw in result.figures.items()}
    return without_nonfinite(content(result, place.absolute().name, runs, study.level)), result, pictures


@cache
def findings_schema() -> Json:
    """Returns the JSON schema of findings.json."""
    return read_json(SCHEMA_FILE)


def read_findings(path: Path) -> Json:
    """Returns the content of a findings.json. Raises DamagedFile, which names the first wrong key."""
    findings = read_json(path)
    error = first_error(findings, findings_schema())
    if error is not None:
        raise DamagedFile(path, error)
    return findings


def law_lines(path: Path) -> list[str]:
    """Returns the lines that a report prints of laws.json; none where there is no such file.

    Raises DamagedFile for what `kleiber report` does not write.
    """
    if not os.path.lexists(path):
        return []
    record = read_json(path)
    try:
        groups = record.get("laws", {"": record})
        return [line for group, law in groups.items() for line in [*([f"{group}:"] if group else []), *lines(law)]]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedFile(path, f"it is no fitted law ({type(error).__name__}: {error})") from None


def recorded_pictures(place: Path, names: Sequence[str]) -> dict[str, str]:
    """Returns the addresses of a study's figures by name, those of SVG first; figures without a file are left out."""
    pictures = {}
    for name in names:
        files = [path_inside(place, f"{part}{name}{kind}") for part in ("figures/", "") for kind in KINDS]
        present = next((file for file in files if os.path.lexists(file)), None)
        if present is not None:
            pictures[name] = picture(read_bytes(present, MAX_PICTURE_BYTES), present.suffix)
    return pictures


def picture(content: bytes, kind: str) -> str:
    """Returns the address of a picture that contains it, so that a page is one file."""
    if kind == ".svg":
        content = SIZE.sub(with_margins, content, count=1)
    return f"data:{KINDS[kind]};base64,{base64.b64encode(content).decode()}"


def with_margins(size: re.Match[bytes]) -> bytes:
    """Returns the size of an SVG with room on both sides, as its attributes."""
    width, height = int(size[1]), int(size[2])
    margin = round(MARGIN * width)
    across = width + 2 * margin
    return f'width="{across}" height="{height}" viewBox="{-margin} 0 {across} {height}"'.encode()


def entry(report: Report) -> Json:
    """Returns the entry of a page in index.json."""
    findings = report.findings
    answers = {name: findings[name] for name in ("question", "answer", "decision", "exit_code", "runs")}
    return {"name": report.name, "page": report.file, **answers, "claims": len(findings["claims"])}


def index_page(title: str, reports: Sequence[Report], problems: Sequence[str]) -> str:
    """Returns the page that lists all studies with question, answer and decision, and all of their claims."""
    studies = [
        {"study": Link(report.name, report.file), "decision": report.decision, "question": report.findings["question"],
         "answer": report.findings["answer"], "runs": report.findings["runs"]}
        for report in reports
    ]  # fmt: skip
    claims = [
        {
            "claim": claim["text"],
            "decision": claim["decision"],
            "result": claim["verdict"],
            "study": Link(report.name, report.file),
        }
        for report in reports
        for claim in report.findings["claims"]
    ]
    counted = [f"{len(reports)} studies and folders of runs", *([f"{len(claims)} claims"] if claims else [])]
    notes = [f"{', '.join(counted)}. A click on the name of a column sorts by it."]
    unread = [{"level": "warn", "text": f"not published: {problem}"} for problem in problems]
    return render_page(title, {}, notes=notes, verdicts=unread, tables={"Studies": studies, "Claims": claims})


def closing_lines(home: Path, record: Json) -> list[str]:
    """Returns the lines that the command prints after it has written a site."""
    names = [INDEX, RECORD, *(page["page"] for page in record["pages"])]
    size = sum((home / name).stat().st_size for name in names)
    missing = [f"not published: {problem}" for problem in record["problems"]]
    return [*missing, f"published {len(record['pages'])} pages, {size / 1e6:.1f} MB: {home / INDEX}"]
