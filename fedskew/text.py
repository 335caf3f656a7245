"""Text that others wrote, made fit for a terminal, and YAML that others wrote, read without harm."""

from __future__ import annotations

from typing import Any

import yaml


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


def read_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """`yaml.safe_load`, with one error for everything that is wrong.

    Raises:
        yaml.YAMLError: it is no YAML, or nested so deeply that it cannot be read.
    """
    try:
        return yaml.load(text, loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested hundreds of levels deep, which no file needs") from None
    except ValueError as error:  # of PyYAML itself, as for the date 2026-13-45
        raise yaml.YAMLError(str(error)) from None
