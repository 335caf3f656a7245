"""Text that others wrote: made fit for a terminal, likened to names that there are, and read as YAML without harm."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

import yaml

MOST_VALUES = 100_000  # of a YAML file
_MERGE = "tag:yaml.org,2002:merge"


def printable(text: str) -> str:
    """Text without anything that steers a terminal or turns lines around.

    Escape sequences, other control characters, bidirectional marks and the like are written as Python escapes
    (`\\x1b`, `\\u202e`), so that they are seen; letters of any script stay.
    """
    return text if text.isprintable() else "".join(_visible(character) for character in text)


def printable_lines(text: str) -> str:
    """`printable` for a text of several lines; tabs become spaces."""
    return "\n".join(printable(line.expandtabs()) for line in text.split("\n"))


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def nearest(name: str, valid: Iterable[str], cutoff: float = 0.4) -> str:
    """The name that was probably meant; empty if none is as like it as the cutoff (0 to 1)."""
    return next(iter(difflib.get_close_matches(name, list(valid), n=1, cutoff=cutoff)), "")


class UniqueKeys(yaml.SafeLoader):
    """YAML takes the last of two equal keys without a word; the first would be lost, and nobody would know."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """See `yaml.SafeLoader`; an error if a key is there twice. Later, merged maps (`<<`) would look like that."""
        node, lines = super().compose_mapping_node(anchor), dict[Any, int]()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != _MERGE:
                key, line = self.construct_object(key_node), key_node.start_mark.line + 1
                if key in lines:
                    text = f"{key!r} is there twice, in lines {lines[key]} and {line}; keep one of them"
                    raise yaml.constructor.ConstructorError(None, None, text, key_node.start_mark)
                lines[key] = line
        return node


def read_yaml(text: str, loader: type[UniqueKeys] = UniqueKeys) -> Any:
    """`yaml.safe_load`, but a key may be there only once; with one error for everything that is wrong.

    Raises:
        yaml.YAMLError: it is no YAML, holds a key twice, is nested so deeply that it cannot be read, or its aliases
            (`*name`) stand for more values than anybody writes, or for themselves: to show or walk these never ends.
    """
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is not None and _expanded(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {MOST_VALUES:,} values: an alias (*name) counts as what it names")
        return None if node is None else reader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested hundreds of levels deep, which no file needs") from None
    except ValueError as error:  # of PyYAML itself, as for the date 2026-13-45
        raise yaml.YAMLError(str(error)) from None
    finally:
        reader.dispose()


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for, each alias counted as what it names; infinite if that is itself.

    Args:
        known: those of nodes seen so far, by identity; filled on the way.
    """
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is being counted
        inside = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]


def duration(seconds: float) -> str:
    """`4m05s`, `2h10m`, `5d03h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours = minutes // 60
    if hours >= 100:
        return f"{hours // 24}d{hours % 24:02d}h"
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{hours}h{minutes % 60:02d}m"
