"""Settings whose values are names that plugins can add to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

from fedskew.config.registry import REGISTRIES, unknown_name
from fedskew.config.schema import ConfigError


def extensible(config: Any) -> Iterator[tuple[str, Field[Any], str]]:
    """Section, field and value of everything that plugins can add names to."""
    for section in fields(config):
        part = getattr(config, section.name)
        for spec in fields(part) if is_dataclass(part) else ():
            if spec.metadata.get("extensible"):
                yield section.name, spec, getattr(part, spec.name)


def check_name(key: str, value: str, spec: Field[Any]) -> None:
    """Raise `ConfigError` unless a value is one of fedskew's own names or of those that plugins added."""
    names = (*spec.metadata["choices"], *REGISTRIES[key])
    if value not in names:
        raise ConfigError(unknown_name(key, value, names))
