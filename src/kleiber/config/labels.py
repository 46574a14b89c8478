"""What tables and figures call names of a config: those that the headers of the choices' files list.

A line such as `# Labels     sst2: SST-2` above the first key of a file says how its name, and other names that belong
to it, are written. Files of extensions count as well.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from kleiber.config.extensions import conf_dir, extension_folders

LINE = re.compile(r"# Labels\s+(.+)")
PAIR = re.compile(r"([^:,\s]+): ([^,]+)")


def readable(name: str) -> str:
    """Returns a name as its label, or with spaces for underscores and labels in place of its parts.

    `no QK-norm` for no_qk_norm, `AG News` for ag_news.
    """
    labels = _labels((conf_dir(), *extension_folders()))
    return labels.get(name) or " ".join(labels.get(part, part) for part in name.split("_"))


def data_label(name: str) -> str:
    """Returns what figures call data of a name, such as `builtin docs` for builtin/docs."""
    return readable(name.replace("/", "_"))


@cache
def _labels(folders: tuple[Path, ...]) -> dict[str, str]:
    """The labels of all config files in folders; the first of a name counts."""
    labels: dict[str, str] = {}
    for file in (file for folder in folders for file in sorted(folder.rglob("*.yaml"))):
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            if match := LINE.fullmatch(line):
                for name, label in PAIR.findall(match[1]):
                    labels.setdefault(name, label)
    return labels
