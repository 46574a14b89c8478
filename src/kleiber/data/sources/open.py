"""Rows of text out of files, folders and hub names, all through `datasets`, with errors a person can act on.

`datasets` is imported only here, and only when text is read: a token cache that is hit never comes this far.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kleiber.config import hub

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
LINES: dict[str, Any] = {
    "sample_by": "line",
    "keep_linebreaks": True,
}  # the lines of one document: joined they are the file
FILES: dict[str, Any] = {"sample_by": "document"}
WAYS_OUT = (
    "ways out: KLEIBER_DATA=DIR with a copy in DIR/owner/name or DIR/name; data.path=DIR or FILE with text of yours; "
    "data=builtin, which needs no network"
)


@dataclass(frozen=True)
class Place:
    """Where text is: a file, a folder in hub layout, or (`local` None) the hub. `copied` if $KLEIBER_DATA led there."""

    name: str
    local: Path | None
    copied: bool = False

    @property
    def kind(self) -> str:
        """The builder of a single file; "" for folders and the hub."""
        if self.local is None or self.local.is_dir():
            return ""
        suffixes = [suffix.lower() for suffix in self.local.suffixes if suffix.lower() != ".gz"]
        kind = KINDS.get(suffixes[-1]) if suffixes else None
        if kind is None:
            raise ValueError(
                f"data.path={self.local}: give a file that ends in {', '.join(KINDS)}, with or without .gz"
            )
        return kind

    def files(self) -> list[Path]:
        """The local files, hidden ones left out."""
        assert self.local is not None
        if self.local.is_file():
            return [self.local]
        paths = (Path(folder) / name for folder, _, names in os.walk(self.local) for name in names)
        return sorted(path for path in paths if not any(p.startswith(".") for p in path.relative_to(self.local).parts))

    def stamp(self) -> Any:
        """What decides the content without reading it: sizes and time stamps, or the hub's name."""
        if self.local is None:
            return {"hub": self.name}
        base = self.local if self.local.is_dir() else self.local.parent
        stats = [(str(path.relative_to(base)), path.stat()) for path in self.files()]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def locate(path: str) -> Place:
    """A local file or folder as it is written, else a hub name: its copy below $KLEIBER_DATA, else the hub itself.

    Raises ValueError for what is none of these, and for an empty file or folder.
    """
    local = Path(path).expanduser()
    if local.exists():
        place = Place(path, local)
    elif hub.is_name(path) and Path(path).suffix.lower() not in (*KINDS, ".gz"):
        copy = hub.local_copy(path)
        place = Place(path, copy, copied=copy is not None)
    else:
        raise ValueError(f"data.path={path}: there is no such file or folder, and it is no name on the hub")
    if place.local is not None and sum(file.stat().st_size for file in place.files()) == 0:
        raise ValueError(f"data.path={path} is empty: there is no text in {place.local}")
    return place


@contextmanager
def opened(place: Place, config: str | None, root: Path) -> Iterator[tuple[dict[str, Dataset], str]]:
    """The splits at `place` and the config they belong to. Copies that `datasets` makes of local files end with this.

    Raises ValueError naming what is wrong: a line of JSON, a config, an unreachable hub.
    """
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with TemporaryDirectory(dir=root, prefix=".datasets-", ignore_cleanup_errors=True) as scratch:
            yield _load(place, config, None if place.local is None else scratch)
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _load(place: Place, config: str | None, scratch: str | None) -> tuple[dict[str, Dataset], str]:
    from datasets import get_dataset_config_names, load_dataset

    _one_kind(place)
    online = place.local is not None or hub.reachable()
    with hub.offline() if place.local is not None or not online else nullcontext():
        try:
            if place.kind:
                options = LINES if place.kind == "text" else {}
                files = {"train": str(place.local)}
                return _named(load_dataset(place.kind, data_files=files, cache_dir=scratch, **options)), ""
            if place.local is not None and _only_text(place):
                return _named(load_dataset(str(place.local), cache_dir=scratch, **FILES)), ""
            if config is None and place.copied:  # the hub's default config may have no copy: take the first one
                config = get_dataset_config_names(str(place.local))[0]
            path = place.name if place.local is None else str(place.local)
            return _named(load_dataset(path, config, cache_dir=scratch)), config or ""
        except Exception as error:  # `datasets` raises many kinds, down to a bare StopIteration
            raise ValueError(_explained(place, config, error, online)) from error


def _named(splits: Any) -> dict[str, Dataset]:
    return {str(name): split for name, split in splits.items()}


def _only_text(place: Place) -> bool:
    suffixes = {suffix for path in place.files() for suffix in path.suffixes}
    return ".txt" in suffixes and not suffixes & (set(KINDS) - {".txt"})


def _one_kind(place: Place) -> None:
    """Raises ValueError for a folder whose files are of several kinds, of which `datasets` would read the commonest.

    A README says what a folder holds; without one it is somebody's own. JSON may be about the data and not of it.
    """
    if place.local is None or not place.local.is_dir() or (place.local / "README.md").is_file():
        return
    suffixes = [path.suffix for path in sorted(place.local.iterdir()) if path.suffix in set(KINDS) - {".json"}]
    counts = {suffix: suffixes.count(suffix) for suffix in dict.fromkeys(suffixes)}
    if len({KINDS[suffix] for suffix in counts}) > 1:
        listed = " and ".join(f"{count} {suffix}" for suffix, count in counts.items())
        raise ValueError(f"data.path={place.name} holds {listed} files, and one kind is read: give a folder of each")


def _explained(place: Place, config: str | None, error: Exception, online: bool) -> str:
    if place.local is None and not online:
        return f"data.path={place.name}: the hub cannot be reached, and there is no copy on this machine; {WAYS_OUT}"
    broken = None if place.local is None else _broken_json(place.files())
    if broken is not None:
        return broken
    lines = str(error).strip().splitlines()
    reason = " ".join(lines[:2]) if lines else "it holds no rows"
    asked = f"data.path={place.name}" + (f" data.config={config}" if config else "")
    return f"{asked} cannot be read: {reason}"


def _broken_json(files: list[Path]) -> str | None:
    import gzip

    for path in files:
        if ".jsonl" not in path.suffixes:
            continue
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    json.loads(line or "null")
                except ValueError as error:
                    if line.strip():
                        return f"{path}, line {number} is no JSON: {error}"
    return None
