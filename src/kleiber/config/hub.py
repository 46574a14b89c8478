"""Names of the Hugging Face hub: local copies first, then the hub, and a quick, helpful end where neither is there.

Nothing here downloads; it finds out whether a download can work, so that nobody waits a minute to learn that it cannot.
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
PROBE_S = 4.0
TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its variables
ALIVE = {401, 404, 405, 429}  # answers of a hub that is there


def is_name(path: str) -> bool:
    """Whether `path` could be the name of something on the hub."""
    return NAME.fullmatch(path) is not None and not path.startswith(".")


def local_copy(name: str) -> Path | None:
    """The folder of `name` below $KLEIBER_DATA: DIR/owner/name, DIR/name, DIR/name in lower case, and with _ for -.

    Raises ValueError when $KLEIBER_DATA is set and is no folder.
    """
    configured = os.environ.get("KLEIBER_DATA")
    if not configured:
        return None
    root = Path(configured).expanduser()
    if not root.is_dir():
        raise ValueError(f"KLEIBER_DATA={configured} is not a folder")
    last = name.rsplit("/", 1)[-1]
    ways = (name, last, last.lower(), last.lower().replace("-", "_"))
    return next((root / way for way in ways if (root / way).is_dir()), None)


def reachable() -> bool:
    """Whether the hub answers within four seconds; False where HF_HUB_OFFLINE asks not to try."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []
    # A thread, since looking up a host's name knows no time limit.
    probe = threading.Thread(target=lambda: answers.append(_answers(constants.ENDPOINT)), daemon=True)
    probe.start()
    probe.join(PROBE_S)
    return bool(answers and answers[0])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_S):
            return True
    except urllib.error.HTTPError as error:
        return error.code in ALIVE
    except (OSError, ValueError):
        return False


@contextmanager
def offline() -> Iterator[None]:
    """Hugging Face libraries look only at files on this machine, whether they are imported already or not."""
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
    """The variable is read when a library is imported, so those that are imported already need telling."""
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            vars(sys.modules[name])["HF_HUB_OFFLINE"] = value
