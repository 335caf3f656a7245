"""`fedskew options`: every setting with its default, what it can be, and what it is for."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from fedskew.config import Config, ConfigError
from fedskew.config.suggest import SYNONYMS, suggestion
from fedskew.text import nearest


@dataclass(frozen=True)
class Setting:
    """One setting: its full name as in `--set`, and what the schema says of it."""

    name: str
    default: Any
    allowed: str  # choices or bounds; empty: anything of its type
    doc: str


def settings() -> list[Setting]:
    """All settings, in the order of the schema."""
    found = []
    for section in fields(Config):
        kind = section.default_factory
        if not is_dataclass(kind):
            continue
        for spec in fields(kind):
            doc, choices, low, high = (spec.metadata[key] for key in ("doc", "choices", "low", "high"))
            allowed = " | ".join(map(str, choices)) if choices else _bounds(low, high)
            found.append(Setting(f"{section.name}.{spec.name.replace('_', '-')}", spec.default, allowed, doc))
    return found


def matching(pattern: str) -> list[Setting]:
    """Settings whose name or purpose holds a text, whatever its capitals; also by other projects' words for them.

    Those of that name come first.

    Raises:
        ConfigError: there is none; the nearest name is given.
    """
    everything, text = settings(), pattern.lower().replace("_", "-")
    called = [one for one in everything if text in one.name or SYNONYMS.get(text) == one.name]
    called.sort(key=lambda one: one.name.partition(".")[2] != text)  # exactly that one first
    found = called + [one for one in everything if pattern.lower() in one.doc.lower() and one not in called]
    if not found:
        keys: dict[str, list[str]] = {}
        for one in everything:
            section, _, key = one.name.partition(".")
            keys.setdefault(section, []).append(key)
        section, dot, key = pattern.partition(".")
        known = "" if dot else nearest(pattern, keys, 0.6)
        near = (
            f"; did you mean {known}?" if known else suggestion(key if dot else pattern, section if dot else "", keys)
        )
        remedy = near or "; `fedskew options` lists all of them, `fedskew options prune` those of a section"
        raise ConfigError(f"no setting matches {pattern!r}{remedy}")
    return found


def settings_text(found: Sequence[Setting], width: int) -> str:
    """Two lines or more for each: `train.lr = 0.0003  (0..1)`, and below it what it is for."""
    lines = []
    for one in found:
        default = ", ".join(one.default) if isinstance(one.default, tuple) else str(one.default)
        head = f"{one.name} = {default}".rstrip() + (f"   ({one.allowed})" if one.allowed else "")
        lines += _wrapped(head, width, "", "        ") + _wrapped(one.doc, width, "    ", "    ")
    return "\n".join(lines)


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _bounds(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    return f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}"
