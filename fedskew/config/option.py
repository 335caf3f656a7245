"""One value that a person can set: its default, its bounds, and the line that says why it is there."""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from typing import Any

from fedskew.errors import FedskewError


class ConfigError(FedskewError, ValueError):
    """A configuration that cannot be used; the message names the key, the file and the remedy."""


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple[str | int, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    extensible: bool = False,
) -> Any:
    """A dataclass field with its documentation and bounds (inclusive) in the metadata.

    Args:
        extensible: plugins can add choices (`registry`): a name is looked up when a configuration is read or used.
    """
    about = {"doc": doc, "choices": choices, "low": low, "high": high, "extensible": extensible}
    return field(default=default, metadata=about)


def check_value(value: Any, spec: Field[Any], key: str) -> None:
    """Raise `ConfigError` if a value lies outside the choices or bounds of its field."""
    choices, low, high = (spec.metadata.get(name) for name in ("choices", "low", "high"))
    if choices and value not in choices and not spec.metadata.get("extensible"):
        raise ConfigError(f"{key} is {value!r}, expected one of {', '.join(map(str, choices))}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if low is not None and not value >= low:  # `not >=` also refuses NaN
            raise ConfigError(f"{key} is {value}, expected at least {low}")
        if high is not None and not value <= high:
            raise ConfigError(f"{key} is {value}, expected at most {high}")
        if value == math.inf:
            raise ConfigError(f"{key} is {value}, expected a finite number")


@dataclass(frozen=True)
class Section:
    """Base of the sections: bounds are checked however the section was built."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            check_value(getattr(self, spec.name), spec, f"{self._name}.{spec.name.replace('_', '-')}")

    _name = ""
