"""What may be built at all: checks of values that came from outside, each naming the field and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fedskew.errors import FedskewError


class ArchitectureError(FedskewError, ValueError):
    """An architecture that cannot be built; the message names the field, what was found and what is allowed."""


def check_integer(value: Any, where: str, low: int, high: int) -> None:
    """Raise `ArchitectureError` unless a value is a whole number from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ArchitectureError(f"{where} is {value!r:.80}, expected a whole number from {low} to {high}")


def check_flag(value: Any, where: str) -> None:
    """Raise `ArchitectureError` unless a value is true or false."""
    if type(value) is not bool:
        raise ArchitectureError(f"{where} is {value!r:.80}, expected true or false")


def check_choice(value: Any, where: str, choices: tuple[str, ...]) -> None:
    """Raise `ArchitectureError` unless a value is one of the choices."""
    if value not in choices:
        raise ArchitectureError(f"{where} is {value!r:.40}, expected one of {', '.join(choices)}")


def check_names(names: tuple[Any, ...], where: str, low: int, high: int = 1000) -> None:
    """Raise `ArchitectureError` unless there are `low` to `high` different texts of 1 to 200 characters."""
    check_integer(len(names), f"{where}: number of entries", low, high)
    if any(type(name) is not str or not 0 < len(name) <= 200 for name in names):
        raise ArchitectureError(f"{where}: expected texts of 1 to 200 characters, found {names!r:.120}")
    if len(set(names)) != len(names):
        raise ArchitectureError(f"{where}: names appear twice in {names!r:.120}")


def mapping_of(value: Any, kind: type, where: str) -> dict[str, Any]:
    """A JSON object that must have the fields of a dataclass as keys, no more and no less."""
    return mapping_with({field.name for field in fields(kind)}, value, where)


def mapping_with(keys: set[str], value: Any, where: str) -> dict[str, Any]:
    """A JSON object that must have these keys, no more and no less."""
    if not isinstance(value, Mapping):
        raise ArchitectureError(f"{where}: expected an object, found {value!r:.80}")
    if set(value) != keys:
        odd = sorted(keys ^ set(value), key=str)
        raise ArchitectureError(f"{where}: missing or unknown keys {odd!r:.200}")
    return dict(value)


def list_of(value: Any, where: str) -> list[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        raise ArchitectureError(f"{where}: expected a list, found {value!r:.80}")
    return value
