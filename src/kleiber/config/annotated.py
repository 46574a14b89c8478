"""A composed config as YAML: each value with its source, and the defaults of classes (`kleiber config`).

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass

import yaml
from omegaconf import DictConfig, OmegaConf

from kleiber.config.check import PLAIN
from kleiber.config.hydra_keys import HYDRA_KEYS
from kleiber.config.layer_checks import SHARED
from kleiber.config.provenance import NESTED, Sources
from kleiber.config.targets import SUPPLIED, signature
from kleiber.types import Config

COMMENT_COLUMN = 44
NOT_LITERAL = "..."  # a default that is computed


def annotated_yaml(config: Config, sources: Sources) -> Iterator[str]:
    """Yields the lines of a config as YAML, each value with its source as a comment.

    Arguments that no file and no override sets follow with the default of their class.
    """
    model: Config = config.get("model") or {}
    passed = {name: model[name] for name in SHARED if model.get(name) is not None}
    if passed.get("positions") == "learned":
        passed["positions"] = "none"
    yield from _lines(config, sources, passed, "", 0)


def _lines(node: Config, sources: Sources, passed: Config, path: str, depth: int) -> Iterator[str]:
    """Yields the lines of a node; `passed` are the options of the attention that the model decides."""
    for name, value in node.items():
        key = f"{path}{NESTED}{name}" if path else str(name)
        start = f"{'  ' * depth}{name}:"
        if isinstance(value, Mapping) and value:
            yield start
            yield from _lines(value, sources, passed, key, depth + 1)
        else:
            yield _line(f"{start} {flow(value)}", sources.of(key))
    for name, text, source in unset_arguments(node, path):
        if path.startswith("model.attention") and name in passed:
            text, source = flow(passed[name]), f"model.{name}"
        yield _line(f"{'  ' * depth}{'# ' * (text == NOT_LITERAL)}{name}: {text}", source)


def _line(text: str, source: str) -> str:
    return f"{text:{COMMENT_COLUMN}}  # {source}"


def unset_arguments(node: Config, path: str) -> Iterator[tuple[str, str, str]]:
    """Yields name, default and source of every argument that a node leaves to the default of its class."""
    if "_target_" in node:
        target = str(node["_target_"])
        for name, parameter in signature(target).parameters.items():
            if name not in node and name not in SUPPLIED and name not in HYDRA_KEYS and not parameter.required:
                text = flow(parameter.default) if parameter.is_literal else NOT_LITERAL
                yield name, text, f"default of {target}"
    plain = PLAIN.get(path)
    if isinstance(plain, type) and is_dataclass(plain):
        for field in fields(plain):
            if field.name not in node and field.default is not MISSING:
                yield field.name, flow(field.default), f"default of {path}"


def flow(value: object) -> str:
    """Returns a value as YAML in one line."""
    plain = OmegaConf.to_container(value) if isinstance(value, DictConfig) else value
    if isinstance(plain, tuple):
        plain = list(plain)
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
