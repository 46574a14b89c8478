"""Which files of a data set are read, and in which split: one listing for text, tables, streams and descriptions.

A data set on the hub, and a folder with a dataset card, have the splits that they declare. So has a folder with the
hub's names of shards. Of every other folder, and of a pattern or URL, all files are read: tables, whose rows have a
column of text, and files of text in UTF-8 with any ending, each of which is a document. They are one split, unless
`data.splits=files` takes splits from their names. What is not read is listed with the reason.

Rows of JSON lines and Parquet, and texts, are read where they are. CSV and JSON become tables of `datasets` first
(`dataset`), which also reads what a card or the hub declares in other forms.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from kleiber.config.errors import ConfigError
from kleiber.data.folders import File, LeftOut, describe_left_out, is_table, suffix
from kleiber.data.layout import named_splits, shard_splits, split_of_name
from kleiber.data.listing import NO_SPLIT, NO_TABLE, ROWS, Listing
from kleiber.data.location import Location
from kleiber.data.read_errors import is_url, unwanted_content


def list_files(location: Location, config: str | None, download: bool = True) -> Listing:
    """Returns the files of a data set.

    download  whether files on the hub are downloaded; else they are URLs

    Raises ValueError for a table that is damaged, for a config of files that have none, and where nothing can be read,
    and the errors of `datasets`.
    """
    _refuse_compressed_parquet(location)
    if location.on_hub or location.has_card:
        return _declared_files(location, config, download)
    if config is not None:
        raise ConfigError(
            f"data.config={config}: data.path={location.name} has no configs, as only data sets on the hub and folders "
            "with a dataset card have: remove data.config"
        )
    if location.is_file:
        (file,) = location.files
        check_content([file], location)
        return Listing({"train": [file]}, frozenset() if is_table(file.path) else frozenset([file.name]))
    return _all_files(location)


def _all_files(location: Location) -> Listing:
    """Returns the listing of a folder without a card, a pattern or a URL."""
    contents = location.contents
    for content in contents.values():
        if content.defect:
            raise ConfigError(f"data.path={location.name} {content.defect.removeprefix('data.path ')}")
    readable = [file for file in location.files if not contents[file.name].reason]
    splits, named = _splits_of(location, [file.name for file in readable])
    reasons = {name: content.reason or NO_SPLIT for name, content in contents.items() if name not in splits}
    files: dict[str, list[File]] = {}
    for file in location.files:
        if file.name in splits:
            files.setdefault(splits[file.name], []).append(file)
    columns = {name: contents[name].columns for name in splits if is_table(name) and contents[name].columns}
    left_out = [LeftOut(file.name, reasons[file.name], file.size) for file in location.files if file.name in reasons]
    listing = Listing(files, frozenset(splits.keys() - columns.keys()), tuple(left_out), columns=columns, named=named)
    if location.from_local_copy and columns:  # a text next to the tables of a data set of the hub describes them
        listing = listing.without(listing.texts, NO_TABLE)
    if not listing.files:
        left = describe_left_out([*listing.left_out, *location.left_out])
        raise ConfigError(f"data.path={location.name} must contain text or tables; left out are {left}")
    check_content((file for _, file in listing.all_files() if file.name in columns), location)
    return listing


def _splits_of(location: Location, names: list[str]) -> tuple[dict[str, str], bool]:
    """Returns the splits of files, and whether their names decide about them. Raises ValueError for names that do not.

    A local copy of a data set on the hub has the splits of its names, as it would have on the hub.
    """
    if location.by_name:
        splits = named_splits(names)
        if names and not any(map(split_of_name, names)):
            raise ConfigError(
                f"data.splits=files: data.path={location.name} has no file or folder that is named after a split, such "
                "as train, validation or test: rename them, or remove data.splits"
            )
        if names and "train" not in splits.values():
            raise ConfigError(
                f"data.splits=files: data.path={location.name} has files of {' and '.join(sorted({*splits.values()}))} "
                "only: add training files, or remove data.splits"
            )
        return splits, True
    shards = shard_splits(names)
    if shards is not None:
        return shards, True
    return (named_splits(names), True) if location.from_local_copy else (dict.fromkeys(names, "train"), False)


def check_content(files: Iterable[File], location: Location) -> None:
    """Raises ValueError for a file that would be read as something else than its author meant."""
    for file in files:
        reason = None if is_url(file.path) else unwanted_content(Path(file.path))
        if reason is not None:
            raise ConfigError(f"data.path={location.name} cannot be read: {reason}")


def _refuse_compressed_parquet(location: Location) -> None:
    """Raises ValueError for a file of Parquet that is compressed as a whole, within which rows cannot be found."""
    for file in location.files:
        if suffix(file.path) == ".parquet" and not file.name.lower().endswith(".parquet"):
            raise ConfigError(
                f"data.path={location.name} has {file.name}, but compressed files of Parquet are not read: "
                "decompress it"
            )


def _declared_files(location: Location, config: str | None, download: bool) -> Listing:
    """Returns the files of each split that a card or the hub declares."""
    from datasets import DownloadConfig, DownloadManager, load_dataset_builder

    config, path = choose_config(location, config), location.name if location.local is None else str(location.local)
    try:
        builder = load_dataset_builder(path, config)
    except ValueError as error:
        raise _config_error(location, config, path) or error from error
    options, data_files = vars(builder.config), builder.config.data_files
    paths = {str(split): [str(file) for file in files] for split, files in (data_files or {}).items()}
    kinds = {suffix(path) for files in paths.values() for path in files}
    altered = any(options.get(option) is not None for option in ("field", "filters"))
    declared = altered or not (kinds and (kinds <= {*ROWS} or kinds == {".txt"}))
    if location.local is not None:
        return replace(_declared_in_folder(location, paths), config=config or "", declared=declared)
    if download and not declared:
        manager = DownloadManager(download_config=DownloadConfig(disable_tqdm=True))
        paths = {split: manager.download(files) for split, files in paths.items()}
        declared = {suffix(path) for files in paths.values() for path in files} != kinds
    files = {split: [File(path, path, 0, "") for path in of_split] for split, of_split in paths.items()}
    texts = frozenset(path for of_split in paths.values() for path in of_split if kinds == {".txt"})
    return Listing(files, texts, config=config or "", declared=declared)


def _config_error(location: Location, config: str | None, path: str) -> ConfigError | None:
    """Returns what is wrong with data.config, given a data set that was not opened with it; None where it is right."""
    from datasets import get_dataset_config_names

    names = get_dataset_config_names(path)
    if config in names or (config is None and len(names) < 2):
        return None
    wrong = "has several configs" if config is None else f"has no config {config}"
    return ConfigError(
        f"data.path={location.name} {wrong}: set data.config to one of {', '.join(names)}; in a list of data sets, "
        f"such as init.upstream or --data, write {location.name}/{names[0]}"
    )


def _declared_in_folder(location: Location, paths: Mapping[str, list[str]]) -> Listing:
    """Returns the listing of a folder whose card names these paths. Raises ValueError for one outside of the folder."""
    present = {_place(file.path): file for file in location.files}
    files: dict[str, list[File]] = {}
    for split, of_split in paths.items():
        for path in of_split:
            if _place(path) not in present:
                raise ConfigError(
                    f"data.path={location.name} has a dataset card that names {path}, which is no file in it, or is "
                    "hidden or a link: copy that file into the folder"
                )
            files.setdefault(split, []).append(present[_place(path)])
    names = {file.name for of_split in files.values() for file in of_split}
    left_out = tuple(LeftOut(file.name, NO_SPLIT, file.size) for file in location.files if file.name not in names)
    check_content((file for file in location.files if file.name in names), location)
    return Listing(files, frozenset(name for name in names if not is_table(name)), left_out)


def _place(path: str) -> str:
    """Returns a path that is equal for all spellings of a file; a link is not followed."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def choose_config(location: Location, config: str | None) -> str | None:
    """Returns the config to read: for None the first one of a local copy, which may lack the hub's default config."""
    if config is not None or not location.from_local_copy:
        return config
    from datasets import get_dataset_config_names

    return get_dataset_config_names(str(location.local))[0]
