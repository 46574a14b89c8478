"""Copies of checkpoints in a folder elsewhere, such as s3://bucket/runs, which fsspec opens.

The copy of ROOT/NAME/CELL/stages/STAGE/checkpoints/step-00001000 is REMOTE/NAME/CELL/stages/STAGE/checkpoints/
step-00001000. Its meta.json is written last, and a copy without one does not count.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kleiber.config.errors import ConfigError
from kleiber.records.locks import wait_for_lock
from kleiber.training import checkpoint
from kleiber.types import Config

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PARTS = 5  # of the path of a folder of checkpoints that its copy has too
META = "meta.json"
LOCK = ".fetch.lock"


@dataclass(frozen=True)
class Remote:
    """The copy of a folder of checkpoints.

    url     of the folder for all runs
    folder  of the checkpoints of a stage on this machine
    """

    url: str
    folder: Path

    def open(self) -> tuple[AbstractFileSystem, str]:
        """Returns the file system of the copy, and the folder there."""
        import fsspec

        system, root = fsspec.core.url_to_fs(self.url)
        system.invalidate_cache()
        return system, "/".join([root.rstrip("/"), *self.folder.absolute().parts[-PARTS:]])

    def names(self) -> list[str]:
        """Returns the names of the complete copies, the newest first."""
        system, folder = self.open()
        return sorted((str(place).split("/")[-2] for place in system.glob(f"{folder}/step-*/{META}")), reverse=True)

    def copy(self, path: Path, keep: int, needed: Collection[str]) -> None:
        """Copies a checkpoint there, and removes all copies but the newest `keep` and those of the names `needed`.

        Where that fails, prints why: training goes on, and later checkpoints are copied.
        """
        try:
            system, folder = self.open()
            for name in (*checkpoint.read_meta(path / META)["sha256"], META):
                place = f"{folder}/{path.name}/{name}"
                system.makedirs(place.rpartition("/")[0], exist_ok=True)
                system.put_file(str(path / name), place)
            self.remove([name for name in self.names()[max(1, keep) :] if name not in needed])
        except Exception as error:  # each file system has its own
            print(f"warning: {path} is not copied to {self.url}: {error}", file=sys.stderr)

    def remove(self, names: Collection[str]) -> None:
        """Removes the copies of these names."""
        system, folder = self.open()
        for name in names:
            system.rm(f"{folder}/{name}", recursive=True)

    def fetch(self, name: str | None = None) -> None:
        """Copies a checkpoint from there unless it is here: that of a name, or the newest where there is none here.

        One process of a machine does so at a time, while the others wait.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(self.folder.parent / LOCK, lambda: None):
            present = [path.name for path in checkpoint.steps(self.folder)]
            chosen = [copy for copy in self.names() if name is None or copy == name][:1]
            if not chosen or (present if name is None else name in present):
                return
            system, folder = self.open()
            part = self.folder / f"{chosen[0]}.part-{os.getpid()}"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            system.get_file(f"{folder}/{chosen[0]}/{META}", str(part / META))
            for file in checkpoint.read_meta(part / META)["sha256"]:
                (part / file).parent.mkdir(exist_ok=True)
                system.get_file(f"{folder}/{chosen[0]}/{file}", str(part / file))
            os.replace(part, self.folder / chosen[0])
        print(f"fetched {chosen[0]} from {self.url}", file=sys.stderr)


def fetch_missing(config: Config, folder: Path, name: str | None = None) -> None:
    """Fetches what a folder of checkpoints lacks, where the config names copies: that of a name, or any at all.

    With resume=never, removes the copies of an earlier run instead. Raises ConfigError where the copies cannot be read:
    without them, a run would begin again that could go on.
    """
    url = ((config.get("callbacks") or {}).get("checkpoints") or {}).get("remote")
    if url is None:
        return
    remote = Remote(url, folder)
    try:
        if config["resume"] != "never":
            remote.fetch(name)
        elif name is None and not checkpoint.steps(folder):
            remote.remove(remote.names())
    except Exception as error:  # each file system has its own
        raise ConfigError(f"callbacks.checkpoints.remote={url} cannot be read: {error}") from error
