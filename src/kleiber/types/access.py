"""What an argument makes kleiber do besides computing: read data from anywhere, run code, or write elsewhere.

A class declares it in the annotation of the argument, as `path: DataPath`. The command line may set such an argument to
anything; a config that somebody else wrote may not (`kleiber.config.foreign`). An extension declares its own in the
same way.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated


class Access(Enum):
    """What kleiber does with the value of an argument."""

    READ = "read"  # opens it as data: a file, a folder, a pattern, a URL or a name on the hub
    RUN = "run"  # runs code that it names, or lets a program on another machine do so
    WRITE = "write"  # writes to it, outside of the folder of the run


DataPath = Annotated[str, Access.READ]
CodePath = Annotated[str, Access.RUN]
OutsidePath = Annotated[str, Access.WRITE]
