"""Between the plain values of YAML and JSON and the types of the schema: never a lossy conversion."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedskew.config.option import ConfigError
from fedskew.text import nearest

TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def is_word(kind: Any) -> bool:
    """Whether a field holds a text, any or one of some."""
    return kind is str or get_origin(kind) is Literal


def convert(value: Any, kind: Any, key: str) -> Any:
    """A YAML value as the field's type; never a lossy conversion."""
    if is_named(kind):
        return _named_entries(value, get_args(kind)[0], key)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} must be a list, found {value!r}")
        return tuple(convert(item, get_args(kind)[0], key) for item in value)
    if isinstance(kind, types.UnionType):
        raise TypeError(f"unions are not supported in the schema: {key}")
    if kind is float and isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)  # YAML 1.1 reads 3e-4 (no dot) as a string
    if kind is float and type(value) in (int, float):
        return float(value)
    if is_word(kind):
        kind = str  # which words there may be is checked with the bounds
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # prune.mlp-group=8
    if kind in (int, bool, str) and type(value) is kind:
        return value
    if kind is str and isinstance(value, bool):
        raise ConfigError(f"{key} must be {TYPES[kind]}, found {value!r}: YAML reads no, off, yes and on as false and "
                          "true; put them in quotes, as \"no\"")  # fmt: skip
    raise ConfigError(f"{key} must be {TYPES[kind]}, found {value!r}")


def _named_entries(value: Any, kind: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} must map names to settings, found {value!r}")
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name != "name"}
    built = []
    for name, settings in value.items():
        if not isinstance(name, str) or not name or not isinstance(settings, Mapping | None):
            raise ConfigError(f"{key}: {name!r} must be a name with settings, as name: {{{', '.join(hints)}}}")
        for setting in settings or {}:
            if setting not in hints:
                raise ConfigError(f"{key}: unknown setting {setting!r} of {name!r}{did_you_mean(str(setting), hints)}")
        typed = {one: convert(item, hints[one], f"{key}: {name}.{one}") for one, item in (settings or {}).items()}
        try:
            built.append(kind(name=name, **typed))
        except ConfigError as error:
            raise ConfigError(f"{key.partition(': ')[0]}: {error}") from None
    return tuple(built)


def did_you_mean(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """`; did you mean train?`, or nothing if nothing is near."""
    near = nearest(name, valid)
    return f"; did you mean {prefix}{near}?" if near else ""


def plain(item: Any) -> Any:
    """A field's value for YAML: tuples as lists, named entries as a mapping."""
    if not isinstance(item, tuple):
        return item
    if not (item and is_dataclass(item[0])):
        return list(item)
    return {
        entry.name: {
            spec.name: plain(value)
            for spec in fields(entry)
            if spec.name != "name" and (value := getattr(entry, spec.name)) != ()
        }
        for entry in item
    }


def is_named(kind: Any) -> bool:
    """Whether a field holds named entries: a tuple of dataclasses with a `name`, a mapping in YAML."""
    return get_origin(kind) is tuple and is_dataclass(get_args(kind)[0])
