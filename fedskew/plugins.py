"""Criteria, methods and presets of one's own, without editing this package: docs/plugins.md.

A plugin is one Python file that registers names (`register_criterion`, `register_method`, `register_preset`). It is
given with `--plugin`, or lies in `plugins/` beside `clientapp.py`, where Flower ships it to every node and the hash
that a site approves covers it, or is a module that an installed package names in its entry points (`fedskew.plugins`).

What is loaded is state of the process, on purpose, as are the registries (`config.registry`): Python can load code no
other way. A run's record names the plugins whose names its configuration uses, with their hashes.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from fedskew.config.registry import REGISTRIES
from fedskew.config.schema import Config
from fedskew.errors import FedskewError

GROUP = "fedskew.plugins"  # of entry points
FOLDER = "plugins"  # beside clientapp.py
_PREFIX = "fedskew_plugin_"  # of the names under which Python knows the files


class PluginError(FedskewError, ValueError):
    """A plugin that cannot be loaded; names it and says why."""


@dataclass(frozen=True)
class Plugin:
    """A plugin that is loaded.

    Attributes:
        name: of its file, or of its module if a package brings it.
        sha256: of its content.
        names: what it registered, as `(key, name)`.
        file: that was given or found; None if a package brings it.
    """

    name: str
    sha256: str
    names: frozenset[tuple[str, str]]
    file: Path | None = None


_loaded: dict[str, Plugin] = {}


def loaded() -> tuple[Plugin, ...]:
    """The plugins of this process."""
    return tuple(_loaded.values())


def taking_part(config: Config) -> dict[str, str]:
    """SHA-256 by name of the plugins whose names a configuration uses."""
    used = {
        ("prune.criterion", config.prune.criterion),
        ("federation.method", config.federation.method),
        ("preset", config.preset),
    }
    return {plugin.name: plugin.sha256 for plugin in _loaded.values() if plugin.names & used}


def load_plugins(files: Iterable[str | Path] = (), *, app: Path | None = None) -> None:
    """Load the plugins of installed packages, of an app's folder, and some files, in this order; each once.

    Args:
        app: folder that holds `clientapp.py`.

    Raises:
        PluginError: one cannot be loaded.
    """
    for point in entry_points(group=GROUP):
        _load_module(point.module)
    beside = sorted((app / FOLDER).glob("*.py")) if app else []
    for file in (*(path for path in beside if not path.name.startswith("_")), *files):
        load_plugin(file)


def load_plugin(file: str | Path) -> Plugin:
    """Run a plugin's file, so that it registers its names. The same file is run once.

    Raises:
        PluginError: it is not there, raises, takes a name that is taken, or registers nothing.
    """
    path = Path(file).expanduser().resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PluginError(f"plugin {file} cannot be read: {error.strerror}; give the path of a Python file") from None
    digest = hashlib.sha256(content).hexdigest()
    if known := _loaded.get(path.name):
        if known.sha256 == digest:
            return known
        raise PluginError(f"two plugins are called {path.name}: {known.file} and {path}; rename one of them")

    def run() -> None:
        module = ModuleType(_PREFIX + path.stem)
        module.__file__ = str(path)
        sys.modules[module.__name__] = module  # where dataclasses look for what their annotations name
        exec(compile(content, str(path), "exec"), module.__dict__)

    return _registered(path.name, digest, run, path)


def _load_module(name: str) -> None:
    if name in _loaded:
        return
    try:
        spec = find_spec(name)
        content = Path(spec.origin or "").read_bytes() if spec else b""
    except (ImportError, OSError, ValueError) as error:
        raise PluginError(f"plugin {name}, which an installed package names, cannot be found: {error}") from error
    if spec is None:
        raise PluginError(f"plugin {name}, which an installed package names, is not there; install the package anew")
    _registered(name, hashlib.sha256(content).hexdigest(), lambda: importlib.import_module(name))


def _registered(name: str, digest: str, run: Callable[[], object], file: Path | None = None) -> Plugin:
    """Run a plugin; what it registers, it registers as a whole or not at all."""
    before, undo = _names(), snapshot()
    try:
        run()
        added = frozenset(_names() - before)
        if not added:
            raise PluginError(
                "it registers nothing: register_criterion, register_method and register_preset give names "
                "(docs/plugins.md)"
            )
    except Exception as error:
        undo()
        why = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}{_line(error, file)}"
        raise PluginError(f"plugin {file or name} cannot be loaded: {why}") from error
    _loaded[name] = Plugin(name, digest, added, file)
    return _loaded[name]


def _line(error: BaseException, file: Path | None) -> str:
    """Where in the plugin an error was raised."""
    place, line = error.__traceback__, 0
    while place:
        line = place.tb_lineno if place.tb_frame.f_code.co_filename == str(file) else line
        place = place.tb_next
    return f" (line {line})" if line else ""


def _names() -> set[tuple[str, str]]:
    return {(key, name) for key, registry in REGISTRIES.items() for name in registry}


def snapshot() -> Callable[[], None]:
    """A function that undoes all loading and registering from now on."""
    entries: Mapping[str, dict[str, object]] = {key: registry.entries() for key, registry in REGISTRIES.items()}
    plugins, modules = dict(_loaded), set(sys.modules)

    def undo() -> None:
        for key, registry in REGISTRIES.items():
            registry.set_entries(entries[key])
        _loaded.clear()
        _loaded.update(plugins)
        for name in [name for name in sys.modules if name.startswith(_PREFIX) and name not in modules]:
            del sys.modules[name]

    return undo
