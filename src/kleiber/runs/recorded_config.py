"""The config that a run has recorded, as it is read to open the run or to start from it. Imports no torch.

It passes the same check as a config from the command line before any class that it names is built. A path that is gone,
because its study was moved or copied, leads to the present place of the run or of the copied tokenizer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kleiber.config.check import check
from kleiber.config.errors import ConfigError
from kleiber.config.foreign import check_foreign
from kleiber.config.nested import map_strings
from kleiber.config.stages import stage_configs, text_settings
from kleiber.records.files import copy_file, write_text
from kleiber.records.folder import TOKENIZER, read_config, study_folder
from kleiber.records.regular_files import make_folder
from kleiber.types import Config, Json

if TYPE_CHECKING:
    from kleiber.types.tokenizer import Tokenizer

HARDWARE = {"_target_": "kleiber.training.Local"}
# Nodes that opening a run does not build, as they are checked: the packages that they need may not be installed.
UNUSED: Json = {
    "trainer": HARDWARE, "launcher": {"_target_": "kleiber.launch.Basic"}, "logger": {},
    "callbacks": {"checkpoints": {"_target_": "kleiber.training.callbacks.Checkpoints"}}, "privacy": None,
    "evals": None, "eval": {}, "design": None, "study": None, "experiment": None,
}  # fmt: skip
DATA_PATHS = ("path", "validation")  # arguments of data whose values may be relative paths
TOKENIZER_COPY = "tokenizer-copy"  # folder in that of the run, with the folder of the tokenizer that its config names


def recorded_configs(folder: Path, last: str) -> dict[str, Json]:
    """Returns the configs of the stages of a run up to the stage `last`, by name and in order.

    A branch of a tree has the config of the run. Raises ValueError when the recorded config does not pass the check, or
    would do what only the reader's command line can allow. Only the nodes that opening builds are checked, so a run
    that was trained on GPUs or logged by another package can be opened without them; data is when it is read.
    """
    config = read_config(folder)
    try:
        check({**config, **UNUSED})
    except ConfigError as error:
        raise ValueError(f"{folder / 'config.yaml'}: {error}") from None
    configs = stage_configs(with_present_paths(config, folder))
    for stage in configs.values():
        check_foreign({**stage, **UNUSED, "data": None}, folder / "config.yaml")
    if last not in configs:
        return {last: with_present_paths(config, folder)}
    names = list(configs)
    return {name: configs[name] for name in names[: names.index(last) + 1]}


def with_present_paths(config: Config, folder: Path) -> Json:
    """Returns the config of the run in `folder` with the present paths of runs and tokenizers that were moved with it.

    A run counts as moved where its recorded path is gone, and a run of the same name, or of the same study and name, is
    beside this one. The copy of a tokenizer counts where its folder is gone. A relative path of data that is not here
    leads to where it was when the run was trained, if the study is still in its root there.
    """
    home = folder.absolute().parent
    tokenizer = text_settings(config["data"]).get("tokenizer")

    def present(text: str) -> str:
        """Returns a path of the config as it is now; other text as it is."""
        path = Path(text)
        if path.is_absolute() and not _exists(path):
            path = _moved(path, home) or path
        if text == tokenizer and not _exists(path.expanduser()):
            copy = folder.absolute() / TOKENIZER_COPY / path.name
            path = copy if copy.is_dir() else path
        return text if path == Path(text) else str(path)

    launched = _launch_folder(config, home)
    present_config = map_strings(config, present)
    return present_config if launched is None else _with_data_in(launched, present_config)


def _launch_folder(config: Config, home: Path) -> Path | None:
    """Returns the folder in which a run of the study in `home` was launched; None where its root does not tell."""
    study = Path(config.get("root", ""), config.get("name", ""))
    depth = len(study.parts)
    is_in_its_root = depth > 0 and not study.is_absolute() and home.parts[-depth:] == study.parts
    return home.parents[depth - 1] if is_in_its_root else None


def _with_data_in(launched: Path, config: Json, is_data: bool = False) -> Json:
    """Returns the config with the relative paths of data that is not here, but in the folder of the launch."""
    changed: Json = {
        key: _with_data_in(launched, node, is_data or key == "data")
        for key, node in config.items()
        if isinstance(node, dict)
    }
    for key in DATA_PATHS if is_data else ():
        path = config.get(key)
        if isinstance(path, str) and not os.path.lexists(path) and os.path.lexists(launched / path):
            changed[key] = str(launched / path)
    return {**config, **changed}


def with_paths_to_study(config: Config, folder: Path) -> Json:
    """Returns the config as `with_present_paths`, in which runs of the same study that are gone are beside `folder`.

    They may be in the archive there, without folders of their own.
    """
    home = folder.absolute().parent
    recorded = (f"{config['root']}/{config['name']}/", f"{study_folder(config)}/")

    def present(text: str) -> str:
        study = next((study for study in recorded if text.startswith(study)), None)
        if study is None or Path(study, text.removeprefix(study).split("/")[0]).exists():
            return text
        return f"{home}/{text.removeprefix(study)}"

    return map_strings(with_present_paths(config, folder), present)


def _exists(path: Path) -> bool:
    """Whether a path is that of a file or folder, or RUN/STAGE."""
    return os.path.exists(path) or os.path.isfile(path.parent / "config.yaml")


def _moved(path: Path, home: Path) -> Path | None:
    """Returns the present place of a path in the folder of a run, below the study's folder `home` or beside it."""
    for start in range(1, len(path.parts)):
        for base, depth in ((home, 1), (home.parent, 2)):
            run = base.joinpath(*path.parts[start : start + depth])
            if len(path.parts) >= start + depth and os.path.isfile(run / "config.yaml"):
                return base.joinpath(*path.parts[start:])
    return None


def keep_tokenizer(tokenizer: Tokenizer, config: Config, folder: Path) -> None:
    """Copies the tokenizer that a run has trained, or the folder that its config names, into the folder of the run.

    So other runs can start from the run, and it can be opened on its own.
    """
    from kleiber.data.tokenizers import CONFIG, EOS, FILE, MASK

    source = Path(str(text_settings(config["data"]).get("tokenizer"))).expanduser()
    if tokenizer.path is not None:
        home = make_folder(folder, TOKENIZER)
        copy_file(tokenizer.path, home / FILE)
        write_text(home / CONFIG, json.dumps({"eos_token": EOS, "mask_token": MASK}))
    elif source.is_dir() and tokenizer.name not in ("bytes", "bpe"):
        from kleiber.data.pretrained_tokenizer import copy_files

        copy_files(source, make_folder(folder, TOKENIZER_COPY, *source.parts[-1:]))
