"""Names in a configuration that plugins can add to: whether there is such a thing here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

from fedskew.config.registry import REGISTRIES, unknown_name
from fedskew.config.schema import Config, ConfigError


def check_names(config: Config) -> None:
    """Raise `ConfigError` if a configuration names a criterion or a method that there is not (here)."""
    for section, spec, value in extensible(config):
        check_name(f"{section}.{spec.name.replace('_', '-')}", value, spec)


def extensible(config: Any) -> Iterator[tuple[str, Field[Any], str]]:
    """Section, field and value of everything that plugins can add names to."""
    for section in fields(config):
        part = getattr(config, section.name)
        for spec in fields(part) if is_dataclass(part) else ():
            if spec.metadata.get("extensible"):
                yield section.name, spec, getattr(part, spec.name)


def check_name(key: str, value: str, spec: Field[Any]) -> None:
    """Raise `ConfigError` if a setting has a name that there is not; the nearest one is told."""
    names = (*spec.metadata["choices"], *REGISTRIES[key])
    if value not in names:
        raise ConfigError(unknown_name(key, value, names))
