"""Names that stand for code or settings: criteria, methods and presets, fedskew's own and those that plugins add.

The three registries are state of the process, on purpose. They are filled before a configuration is read: fedskew's own
entries when `pruning.criteria` and `methods` are imported, others by `plugins`. No run changes them. They lie here so
that a configuration can be held against them without importing what the names stand for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from fedskew.config.schema import ConfigError
from fedskew.text import nearest

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
REMEDY = "a plugin's name needs --plugin FILE.py, or the file in plugins/ of the app (docs/plugins.md)"


class Registry(Mapping[str, T], Generic[T]):
    """What each name stands for.

    Args:
        key: of the configuration, that the names are values of.
        reserved: names that mean something else.
    """

    def __init__(self, key: str, reserved: tuple[str, ...] = ()) -> None:
        self.key, self._reserved = key, reserved
        self._entries: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, name: str, value: T) -> None:
        """Give a name its meaning.

        Raises:
            ConfigError: it is taken, or cannot be a name.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(f"{self.key} cannot be called {name!r:.80}: a name is letters, digits, dots and dashes")
        if name in self._entries or name in self._reserved:
            raise ConfigError(f"{self.key} {name} is there already; choose another name")
        self._entries[name] = value

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that gives a name its meaning and leaves that as it is; raises as `add`."""

        def registered(value: T) -> T:
            self.add(name, value)
            return value

        return registered

    def find(self, name: str) -> T:
        """What a name stands for.

        Raises:
            ConfigError: nothing; those that there are are listed.
        """
        if name not in self._entries:
            raise ConfigError(unknown_name(self.key, name, tuple(self._entries)))
        return self._entries[name]

    def entries(self) -> dict[str, T]:
        """A copy of all, to go back to with `set_entries`."""
        return dict(self._entries)

    def set_entries(self, entries: Mapping[str, T]) -> None:
        """Go back to earlier entries, when a plugin could not be loaded as a whole."""
        self._entries = dict(entries)


CRITERIA: Registry[Any] = Registry("prune.criterion", ("none",))
METHODS: Registry[Any] = Registry("federation.method", ("auto",))
PRESETS: Registry[Mapping[str, Any]] = Registry("preset")
REGISTRIES: Mapping[str, Registry[Any]] = {registry.key: registry for registry in (CRITERIA, METHODS, PRESETS)}


def unknown_name(key: str, name: str, names: tuple[str, ...]) -> str:
    """What is said of a name that nothing stands for."""
    near = nearest(name, names, 0.5)
    meant = f"did you mean {near}? Else " if near else ""
    return f"{key} is {name!r}, expected one of {', '.join(dict.fromkeys(names))}; {meant}{REMEDY}"
