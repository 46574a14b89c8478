"""Copies of checkpoints in a folder elsewhere, such as s3://bucket/runs, which fsspec opens.

The copy of ROOT/NAME/CELL/stages/STAGE/checkpoints/step-00001000 is REMOTE/NAME/CELL/stages/STAGE/checkpoints/
step-00001000. Its meta.json is written last. A copy without one does not count, and the next complete copy removes it.
The values of a frozen reference, without which a stage cannot resume, are copied beside them, as they are here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kleiber.config.errors import ConfigError
from kleiber.config.url_secrets import hide_secrets, open_file_system
from kleiber.records.arrays import REFERENCE
from kleiber.records.locks import wait_for_lock
from kleiber.records.regular_files import make_folder
from kleiber.records.terminal import print_line
from kleiber.training import checkpoint
from kleiber.training.saved_checkpoint import Checkpoint, Damaged
from kleiber.types import Config

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PARTS = 5  # of the path of a folder of checkpoints that its copy has too
META = "meta.json"
REFERENCE_FILES = (f"{REFERENCE}.npz", f"{REFERENCE}.json")  # of the stage's folder; the description last
LOCK = ".fetch.lock"


@dataclass(frozen=True)
class Remote:
    """The copy of a folder of checkpoints.

    url     of the folder for all runs
    folder  of the checkpoints of a stage on this machine
    """

    url: str
    folder: Path

    @property
    def config_hash(self) -> str:
        """The hash at the end of the name of the run's folder, which its checkpoints have."""
        return self.folder.absolute().parents[2].name.rsplit("-", 1)[-1]

    def open(self) -> tuple[AbstractFileSystem, str]:
        """Returns the file system of the copy, and the folder there."""
        system, root = open_file_system(self.url)
        system.invalidate_cache()
        return system, "/".join([root.rstrip("/"), *self.folder.absolute().parts[-PARTS:]])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes other processes of this machine that fetch or remove copies wait."""
        checkpoint.make_folder_of_stage(self.folder)
        with wait_for_lock(self.folder.parent / LOCK, lambda: None):
            yield

    def names(self) -> list[str]:
        """Returns the names of the complete copies, the newest first."""
        system, folder = self.open()
        return sorted((str(place).split("/")[-2] for place in system.glob(f"{folder}/step-*/{META}")), reverse=True)

    def all_names(self) -> list[str]:
        """Returns the names of all copies, among them those that were not completed."""
        system, folder = self.open()
        with suppress(FileNotFoundError):
            names = [str(place).rstrip("/").rpartition("/")[2] for place in system.ls(folder, detail=False)]
            return [name for name in names if name.startswith("step-")]
        return []

    def copy(self, path: Path, keep: int, needed: Collection[str]) -> None:
        """Copies a checkpoint there, and removes all copies but the newest `keep` and those of the names `needed`.

        Copies that a killed process did not complete are removed too. Where that fails, prints why: training goes on,
        and later checkpoints are copied.
        """
        try:
            system, folder = self.open()
            for file in filter(Path.is_file, map(self.folder.parent.joinpath, REFERENCE_FILES)):
                system.makedirs(folder, exist_ok=True)
                system.put_file(str(file), f"{folder.rpartition('/')[0]}/{file.name}")
            for name in (*checkpoint.read_meta(path / META)["sha256"], META):
                place = f"{folder}/{path.name}/{name}"
                system.makedirs(place.rpartition("/")[0], exist_ok=True)
                system.put_file(str(path / name), place)
            complete = self.names()
            old = [name for name in complete[max(1, keep) :] if name not in needed]
            self.remove([*old, *{*self.all_names()} - {path.name, *complete}])
        except Exception as error:  # each file system has its own
            print_line(f"warning: {path} is not copied to {self.url}: {hide_secrets(str(error))}", err=True)

    def go_back(self, step: int) -> None:
        """Removes the copies of the checkpoints after a step. Where that fails, prints why."""
        try:
            self.remove([name for name in self.names() if name > checkpoint.name(step)])
        except Exception as error:  # each file system has its own
            reason = hide_secrets(str(error))
            print_line(f"warning: copies after step {step:,} are not removed from {self.url}: {reason}", err=True)

    def remove(self, names: Collection[str]) -> None:
        """Removes the copies of these names, of which another process may have removed some already."""
        if not names:
            return
        system, folder = self.open()
        with self.locked():
            for name in names:
                with suppress(FileNotFoundError):
                    system.rm(f"{folder}/{name}", recursive=True)

    def fetch(self, names: Sequence[str]) -> tuple[Checkpoint | None, list[str]]:
        """Copies the first of these checkpoints from there whose copy is valid, unless a valid one is here.

        Returns it, or None where there is none, and the defect of each copy before it.
        """
        defects: list[str] = []
        with self.locked():
            for name in names:
                with suppress(Damaged):
                    return checkpoint.read(self.folder / name), defects  # another process may have fetched it
                try:
                    return self._fetch(name), defects
                except (Damaged, FileNotFoundError) as error:  # another machine may have removed it
                    defects.append(f"the copy of {name} in {self.url}: {error}")
        return None, defects

    def _fetch(self, name: str) -> Checkpoint:
        """Copies a checkpoint from there, in place of a damaged one that is here. Raises Damaged for a damaged copy."""
        system, folder = self.open()
        scratch, final = self.folder / f"{name}.part-{os.getpid()}", self.folder / name
        part = scratch / name
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            make_folder(scratch, name)
            system.get_file(f"{folder}/{name}/{META}", str(part / META))
            meta = checkpoint.read_meta(part / META)
            if meta.get("config_hash") != self.config_hash:
                raise Damaged(f"its config has the hash {meta.get('config_hash')}, and this run {self.config_hash}")
            for file in meta["sha256"]:
                make_folder(part, *Path(file).parts[:-1])
                system.get_file(f"{folder}/{name}/{file}", str(part / file))
            checkpoint.read(part)
            for file in REFERENCE_FILES:
                with suppress(FileNotFoundError):  # of an objective without a reference
                    system.get_file(f"{folder.rpartition('/')[0]}/{file}", str(scratch / file))
                    os.replace(scratch / file, self.folder.parent / file)
            checkpoint.put_in_place(part, final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        print_line(f"fetched {name} from {self.url}", err=True)
        return Checkpoint(final, meta)


def latest(config: Config, folder: Path, limit: int | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint of a folder or of its copies, where the config names copies, and the defects.

    A copy is fetched only if it is later than every valid checkpoint that is here. With resume=never, removes the
    copies of an earlier run instead.

    limit  step after which copies do not count; None: all count

    Raises ConfigError where the copies cannot be read: without them, a run would begin again that could go on.
    """
    saved, defects = checkpoint.latest(folder)
    remote = remote_of(config, folder)
    if remote is None:
        return saved, defects
    with readable(remote):
        if config["resume"] == "never":
            if not checkpoint.steps(folder):
                remote.remove(remote.all_names())
            return saved, defects
        later = [name for name in remote.names() if saved is None or name > saved.path.name]
        if limit is not None:
            later = [name for name in later if name <= checkpoint.name(limit)]
        fetched, of_copies = remote.fetch(later) if later else (None, [])
    return fetched or saved, defects + of_copies


def read(config: Config, folder: Path, name: str) -> Checkpoint:
    """The checkpoint of a name, fetched where it is not valid here. Raises as `checkpoint.read` and `latest` do."""
    remote = remote_of(config, folder)
    if remote is None or config["resume"] == "never":
        return checkpoint.read(folder / name)
    with suppress(Damaged):
        return checkpoint.read(folder / name)
    with readable(remote):
        fetched, defects = remote.fetch([copy for copy in remote.names() if copy == name])
    for defect in defects:
        print_line(f"warning: {defect}", err=True)
    return fetched or checkpoint.read(folder / name)


def remote_of(config: Config, folder: Path) -> Remote | None:
    """The copies of a folder of checkpoints that a config names, or None."""
    url = ((config.get("callbacks") or {}).get("checkpoints") or {}).get("remote")
    return None if url is None else Remote(url, folder)


@contextmanager
def readable(remote: Remote) -> Iterator[None]:
    """Raises ConfigError for the errors of a file system."""
    try:
        yield
    except Exception as error:  # each file system has its own
        reason = hide_secrets(str(error))
        raise ConfigError(f"callbacks.checkpoints.remote={remote.url} cannot be read: {reason}") from error
