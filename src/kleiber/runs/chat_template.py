"""Renders the chat template of a Hugging Face folder, a program that anyone may have written, within limits.

transformers runs a template without access to Python's objects, but a loop in it may take any time and memory. So it
runs in a process of its own, which the system ends at a limit.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from kleiber.records.regular_files import DamagedFile, read_text

MAX_PROC_BYTES = 4096  # of a file that describes a process
MEMORY_BYTES, SECONDS = 2**28, 5  # that rendering may take, beyond the memory of this process
MAX_TEXT_BYTES = 2**22  # of a conversation


def render(template: Callable[[], str], folder: Path) -> str:
    """Returns the text of `template`, called in a process of its own.

    folder  of the template, for errors

    Raises ValueError where the template raises an error, and where it exceeds the limits.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        _render_and_exit(template, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read(MAX_TEXT_BYTES + 1)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    kind, text = answer[:1], answer[1:].decode("utf-8", "replace")
    if kind == b"=" and len(answer) <= MAX_TEXT_BYTES:
        return json.loads(text)
    reason = text if kind == b"!" else f"it takes more than {SECONDS} s, {MEMORY_BYTES >> 20} MiB or 4 MiB of text"
    raise ValueError(f"the chat template of {folder} cannot be used: {reason}")


def _render_and_exit(template: Callable[[], str], writer: int) -> NoReturn:
    """Writes the text of a template, or an error, to the pipe of the parent process, and ends this process."""
    answer = b""
    try:
        limit_resources()
        answer = b"=" + json.dumps(template()).encode()
    except MemoryError:
        pass
    except Exception as error:  # of many types, by jinja2 and by what a template calls
        answer = b"!" + " ".join(str(error).split()).encode("utf-8", "replace")[:1000]
    finally:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer)
        os._exit(0)


def limit_resources() -> None:
    """Lets this process take MEMORY_BYTES and SECONDS more, where the system says how much memory it takes now."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    with suppress(DamagedFile):  # outside Linux
        pages = int(read_text(Path("/proc/self/statm"), MAX_PROC_BYTES).split()[5])  # of data and stack
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
