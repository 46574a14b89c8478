"""What a run is trained on: the processor, the versions of packages, and the commit of the code."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kleiber.types import Json

PACKAGES = ("torch", "lightning", "hydra-core", "torchmetrics", "wandb", "datasets", "transformers", "tokenizers",
            "numpy")  # fmt: skip


@cache
def cpu_name() -> str:
    """The model name of the processor, or its architecture where the system does not report the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages among PACKAGES."""
    by_package = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:
            continue
    return by_package


@cache
def commit() -> Json:
    """The commit of the code, and whether the code differs from it ("dirty"); both None without a git checkout.

    Cached, because the imported code stays the same when the checkout changes.
    """
    unknown = {"commit": None, "dirty": None}
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():  # an installed package: a repository further up belongs to another project
        return unknown
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        head = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return unknown
    if head.returncode:
        return unknown
    name = head.stdout.strip()
    return {"commit": name.removesuffix("-dirty"), "dirty": name.endswith("-dirty")}
