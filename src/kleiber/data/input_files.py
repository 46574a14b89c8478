"""The files of a data set of text whose rows are read without a copy of them.

Rows of JSON lines and Parquet, and folders of .txt files, are read where they are. Everything else that `datasets`
reads, such as CSV, becomes tables of it first (`dataset`).
"""

from __future__ import annotations

from kleiber.data.location import KINDS, WILDCARDS, Location, suffix
from kleiber.data.read_errors import is_url


def row_files(location: Location, config: str | None, download: bool = True) -> tuple[dict[str, list[str]], str] | None:
    """Returns the files of a data set by split, and its config; None where only `datasets` can read them.

    download  whether files on the hub are downloaded; else they are URLs

    Raises the errors of `datasets`.
    """
    files, config = split_files(location, config, download)
    kinds = {suffix(path) for paths in files.values() for path in paths}
    return (files, config) if kinds <= {".jsonl", ".parquet"} or kinds == {".txt"} else None


def split_files(location: Location, config: str | None, download: bool = True) -> tuple[dict[str, list[str]], str]:
    """Returns the files of each split of a data set, by the data set's own names of splits, and its config."""
    if location.matches:
        return _files_by_name(location), ""
    if location.kind:
        return {"train": [str(location.local)]}, ""
    from datasets import DownloadConfig, DownloadManager, load_dataset_builder

    config = choose_config(location, config)
    builder = load_dataset_builder(location.name if location.local is None else str(location.local), config)
    options = vars(builder.config)
    if builder.config.data_files is None or any(options.get(option) is not None for option in ("field", "filters")):
        return {"train": [""]}, ""
    files = {str(split): [str(file) for file in paths] for split, paths in builder.config.data_files.items()}
    if location.local is None and download:
        manager = DownloadManager(download_config=DownloadConfig(disable_tqdm=True))
        files = {split: manager.download(paths) for split, paths in files.items()}
    return files, config or ""


def choose_config(location: Location, config: str | None) -> str | None:
    """Returns the config to read: for None the first one of a local copy, which may lack the hub's default config."""
    if config is not None or not location.from_local_copy:
        return config
    from datasets import get_dataset_config_names

    return get_dataset_config_names(str(location.local))[0]


def _files_by_name(location: Location) -> dict[str, list[str]]:
    """Returns the files of a pattern as train, or those in a folder that a URL names by the splits in their names."""
    paths = [match.path for match in location.matches if suffix(match.path) in KINDS]
    if not paths:
        raise ValueError(
            f"the names of its files must end in {', '.join(KINDS)}, with or without .gz or .zst (.parquet without)"
        )
    if not is_url(location.name) or any(sign in location.name for sign in WILDCARDS) or suffix(location.name) in KINDS:
        return {"train": paths}
    from datasets.data_files import DataFilesDict, get_data_patterns

    patterns = get_data_patterns(location.name)
    files = DataFilesDict.from_patterns(patterns, base_path=location.name, allowed_extensions=[*KINDS])
    return {str(split): [str(path) for path in paths] for split, paths in files.items()}
