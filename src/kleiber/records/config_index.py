"""An index of configs: the content of config.yaml of many runs in one file of the cache.

To read YAML takes a millisecond a file, which for thousands of runs is most of the time of a list with columns of their
configs. An entry counts as long as its file has the same size and time of change. Imports no torch.
"""

from __future__ import annotations

import atexit
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kleiber.records.files import cache_folder
from kleiber.records.folder import read_config
from kleiber.records.regular_files import kind_of, make_folder
from kleiber.types import Json

FILE = "configs.sqlite"
CREATE = "CREATE TABLE IF NOT EXISTS configs (path TEXT PRIMARY KEY, changed INTEGER, size INTEGER, content TEXT)"
PART = 256  # configs that are written at once
WAIT = 2.0  # seconds for another process that writes

Entry = tuple[int, int, str]  # time of change in ns, size in bytes, the config as JSON


class ConfigIndex:
    """Reads configs of the runs below a folder, from the index where it has them.

    An index that cannot be read or written, such as one in a folder without permission, is not used.
    """

    def __init__(self, place: Path) -> None:
        self.place = place.absolute()
        self.entries: dict[str, Entry] | None = None
        self.added: dict[str, Entry] = {}

    def read(self, folder: Path) -> Json:
        """The config of a run. Raises ConfigError as `kleiber.records.folder.read_config`."""
        if self.entries is None:
            self.entries = self._load()
            atexit.register(self.save)
        path = folder.absolute() / "config.yaml"
        try:
            state = path.stat()
        except OSError:
            return read_config(folder)
        entry = self.entries.get(str(path))
        if entry is not None and entry[:2] == (state.st_mtime_ns, state.st_size):
            return json.loads(entry[2])
        config = read_config(folder)
        content = json.dumps(config)
        if json.loads(content) == config:  # not where a key is a number
            self.added[str(path)] = (state.st_mtime_ns, state.st_size, content)
        if len(self.added) >= PART:
            self.save()
        return config

    def save(self) -> None:
        """Writes what was read from the folders of the runs into the index."""
        rows = [(path, *entry) for path, entry in self.added.items()]
        self.added = {}
        if rows:
            with suppress(OSError, sqlite3.Error), self._opened() as index:
                index.executemany("INSERT OR REPLACE INTO configs VALUES (?, ?, ?, ?)", rows)

    def _load(self) -> dict[str, Entry]:
        first = f"{self.place}{os.sep}"
        with suppress(OSError, sqlite3.Error), self._opened() as index:
            rows = index.execute(
                "SELECT path, changed, size, content FROM configs WHERE path >= ? AND path < ?",
                (first, f"{self.place}{chr(ord(os.sep) + 1)}"),
            )
            return {path: (changed, size, content) for path, changed, size, content in rows}
        return {}

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The open index; its changes are kept when the block ends without an error."""
        file = cache_folder() / FILE
        make_folder(file.parent)
        if kind_of(file) is not None:
            raise OSError(f"{file} is {kind_of(file)}, not a file")
        index = sqlite3.connect(file, timeout=WAIT)
        try:
            with index:
                index.execute(CREATE)
                yield index
        finally:
            index.close()
