"""Finds local copies of data sets and models of the Hugging Face hub, and tells whether the hub can be reached.

Nothing here downloads. Callers ask `reachable` first, so a command fails within seconds where a download would only
fail after a minute of retries.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
TIMEOUT_S = 4.0
TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its variables
ALIVE = {401, 403, 404, 405, 429}  # HTTP codes that show that the hub works


def is_name(path: str) -> bool:
    """Whether `path` could be the name of something on the hub."""
    return NAME.fullmatch(path) is not None and not path.startswith(".")


def local_copy(name: str) -> Path | None:
    """Returns the folder of a hub name below $KLEIBER_DATA, or None.

    It may be DIR/owner/name, DIR/name, DIR/name in lower case, or that with _ for -. Raises ValueError when
    $KLEIBER_DATA is set to something that is not a folder.
    """
    configured = os.environ.get("KLEIBER_DATA")
    if not configured:
        return None
    root = Path(configured).expanduser()
    if not root.is_dir():
        raise ValueError(f"KLEIBER_DATA={configured} must be an existing folder")
    last = name.rsplit("/", 1)[-1]
    names = (name, last, last.lower(), last.lower().replace("-", "_"))
    return next((root / folder for folder in names if (root / folder).is_dir()), None)


def downloaded(name: str) -> Path | None:
    """Returns the folder in which the hub's library keeps what was downloaded of a data set, or None."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):  # nothing was downloaded, or the name is none of the hub's
        return None


def reachable() -> bool:
    """Whether the hub answers within four seconds; False, without asking it, where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []
    # In a thread, because looking up a host name has no time limit.
    request = threading.Thread(target=lambda: answers.append(_answers(constants.ENDPOINT)), daemon=True)
    request.start()
    request.join(TIMEOUT_S)
    return bool(answers and answers[0])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT_S):
            return True
    except urllib.error.HTTPError as error:
        return error.code in ALIVE
    except (OSError, ValueError):
        return False


@contextmanager
def offline() -> Iterator[None]:
    """Makes Hugging Face libraries use only files on this machine, whether they are imported already or not."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    _set_offline(True)
    try:
        yield
    finally:
        os.environ.pop("HF_HUB_OFFLINE")
        if before is not None:
            os.environ["HF_HUB_OFFLINE"] = before
        _set_offline((before or "").upper() in TRUE)


def _set_offline(value: bool) -> None:
    """Changes the setting of the libraries that are imported already: they read the variable only on import."""
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            vars(sys.modules[name])["HF_HUB_OFFLINE"] = value
