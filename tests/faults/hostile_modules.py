"""A folder with a module for each name of the standard library, which notes the process that imports it."""

import sys
from pathlib import Path

PACKAGES = ("hydra", "lightning", "numpy", "omegaconf", "pydantic", "submitit", "torch", "wandb", "yaml")
MODULE = """import sys
with open({mark!r}, "a") as file:
    file.write(f"{{__name__}} {{sys.orig_argv}}\\n")
sys.path[:] = [place for place in sys.path if place not in ("", {folder!r})]
sys.path_importer_cache.clear()
del sys.modules[__name__]
__import__(__name__)
"""


def write_hostile_modules(folder: Path) -> Path:
    """Fills a folder with modules, and returns the file in which they note the processes that import them.

    Each then gives way to the module that it replaces, so that a command goes on to its other processes.
    """
    folder.mkdir()
    mark = folder.with_name(f"{folder.name}-imported.txt")
    for name in {*sys.stdlib_module_names, *PACKAGES} - {*sys.builtin_module_names}:
        (folder / f"{name}.py").write_text(MODULE.format(mark=str(mark), folder=str(folder)))
    (folder / "hydra_plugins").mkdir()  # which Hydra looks for on the whole module path
    (folder / "hydra_plugins" / "plugin.py").write_text(MODULE.format(mark=str(mark), folder=str(folder)))
    return mark
