"""Every config file opens with what it is and when to take it; a variant names the class that it is a variant of."""

import re
from pathlib import Path

import pytest
from yaml import safe_load

from kleiber.config.compose import Composer, config_files
from kleiber.config.errors import ConfigError

PLACES = config_files()
FILES = [*PLACES.values()]
GROUPS = {file: place.split("/")[0] for place, file in PLACES.items()}
LABELS = {"study": ("Paper", "Command", "Cost", "Expected"), "experiment": ("Command", "Cost", "Expected")}
BASES = [path for path in FILES if path.name.startswith("_")]
VARIANT = re.compile(r"Variant of (\w+) \(([\w/]+)=(\w+)\)")


def header(path: Path) -> list[str]:
    """The comment lines above the first key, without Hydra's package line and the comment signs."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return [line for line in lines if not line.startswith("@package")]


def class_name(path: Path) -> str:
    """The class that a choice builds, which it may inherit from a choice beside it; "" where it builds several."""
    node = safe_load(path.read_text()) or {}
    if "_target_" in node:
        return node["_target_"].rsplit(".", 1)[-1]
    beside = [path.parent / f"{name}.yaml" for name in node.get("defaults", []) if isinstance(name, str)]
    return next((name for other in beside if other.is_file() and (name := class_name(other))), "")


def test_every_file_says_what_it_is_and_when_to_use_it():
    wrong = {}
    for path in FILES:
        lines, group = header(path), GROUPS[path]
        labels = () if path in BASES else LABELS.get(group, ())
        missing = [label for label in ("Use it", *labels) if not any(line.startswith(f"{label} ") for line in lines)]
        if not lines or lines[0].startswith("Use it"):
            missing.insert(0, "what it is")
        if missing:
            wrong[str(path)] = missing
    assert wrong == {}


def test_the_command_of_a_study_or_an_experiment_takes_that_choice():
    wrong = [
        str(path)
        for group in LABELS
        for path in FILES
        if GROUPS[path] == group and path not in BASES
        if not re.search(rf"\b{group}={path.stem}\b", " ".join(header(path)))
    ]
    assert wrong == []


@pytest.mark.slow
def test_all_but_one_choice_of_a_class_say_that_they_are_variants_of_it():
    owners: dict[tuple[str, str], list[str]] = {}
    for path in FILES:
        group = GROUPS[path]
        if (name := class_name(path)) and not VARIANT.search(" ".join(header(path))):
            owners.setdefault((group, name), []).append(path.stem)
    assert {key: names for key, names in owners.items() if len(names) > 1} == {}


def test_a_variant_names_a_choice_and_its_class():
    wrong = []
    for path in FILES:
        for name, group, choice in VARIANT.findall(" ".join(header(path))):
            text = PLACES.get(f"{group}/{choice}")
            if text is None or not re.search(rf"_target_: .*\.{name}$", text.read_text(), re.MULTILINE):
                wrong.append(str(path))
    assert wrong == []


def test_the_base_files_of_studies_are_not_studies():
    composer = Composer("train")
    assert BASES and not {path.stem for path in BASES} & {*composer.choices("study")}
    for path in BASES:
        with pytest.raises(ConfigError, match=f"study={path.stem}"):
            composer.compose([f"study={path.stem}"])
