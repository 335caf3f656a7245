"""Build the configuration from a preset, a person's own YAML file and `set` overrides, in that order.

load_config("ham10000-small", overrides="train.lr=1e-4 prune.max-stage=2")
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from fedskew.config.convert import convert, did_you_mean, is_named, is_word, plain
from fedskew.config.names import check_name, extensible
from fedskew.config.registry import PRESETS
from fedskew.config.schema import Config, ConfigError, Section
from fedskew.config.suggest import section_suggestion, suggestion
from fedskew.text import read_yaml

log = logging.getLogger("flwr.fedskew.config")

Given = str | Path | Mapping[str, Any]  # a YAML file, or the sections that it would hold

# What run folders and studies of earlier versions call it → what it is called now: taken, and said.
RENAMED = {"prune.method": "criterion", "prune.guard": "rollback"}
MOVED = {"prune.warm-start-epochs": "train.warm-start-epochs (a pruning step after it: prune.first-round=0)"}


def preset_directory() -> Path:
    """Where the presets lie: inside an installed wheel, or beside the package in a checkout or app bundle."""
    inside = Path(__file__).resolve().parent.parent / "conf"
    return inside if inside.is_dir() else inside.parent.parent / "conf"


def preset_names() -> tuple[str, ...]:
    """Names of the presets, sorted; those of plugins too."""
    return tuple(sorted([*(path.stem for path in preset_directory().glob("*.yaml")), *PRESETS]))


def register_preset(name: str, sections: Mapping[str, Any]) -> None:
    """Let `--preset NAME` be these settings, for plugins.

    Args:
        sections: as in a preset's YAML file: `{"train": {"lr": 1e-4}}`.

    Raises:
        ConfigError: the name is taken, or the settings cannot be.
    """
    if name in preset_names():
        raise ConfigError(f"preset {name} is there already; choose another name")
    from_mapping(sections, f"preset {name}")
    PRESETS.add(name, sections)


def preset_content(preset: str) -> tuple[Mapping[str, Any], str, str]:
    """The settings of a preset, what errors call them, and its name.

    Raises:
        ConfigError: no such preset; the nearest one is named.
    """
    if is_path(preset):
        return _read_yaml(Path(preset)), preset, Path(preset).stem
    if preset in PRESETS:
        return PRESETS[preset], f"preset {preset}", preset
    if preset not in preset_names():
        raise ConfigError(
            f"unknown preset {preset!r}{did_you_mean(preset, preset_names())}; presets: {', '.join(preset_names())}, "
            "or the path of a YAML file"
        )
    return _read_yaml(preset_directory() / f"{preset}.yaml"), f"conf/{preset}.yaml", preset


def is_path(preset: str) -> bool:
    """Whether a preset is given as the path of a file, not as a name."""
    return preset.endswith((".yaml", ".yml")) or any(mark in preset for mark in "/\\")


def load_config(preset: str = "", *, file: Given | Sequence[Given] = "", overrides: str = "") -> Config:
    """The validated configuration of a run.

    Args:
        preset: Name of a file in `conf/`, or path of such a file elsewhere; empty for the defaults.
        file: A person's own YAML file with the same sections, or several; later ones win, all win over the preset. What
            a command is for comes as a mapping of sections instead of a file.
        overrides: Space-separated `section.key=value`; they win over both.

    Raises:
        ConfigError: unknown preset, key or choice, wrong type, value out of bounds; the message names the key,
            the file and the nearest valid name.
    """
    return _load(preset, [file] if isinstance(file, str | Path | Mapping) else list(file), overrides)


def load_saved(path: Path, *, file: str | Path | Sequence[Given] = "", overrides: str = "") -> Config:
    """The configuration that a run folder holds, with what a person changes now; `file` as in `load_config`.

    Names in it that a plugin gave their meaning are taken as they are: whoever only looks at a run needs no plugin.
    Who starts one or prunes by it does, see `names.check_names`.

    Raises:
        ConfigError: as `load_config`.
    """
    return _load("", [path, file] if isinstance(file, str | Path) else [path, *file], overrides, saved=str(path))


def _load(preset: str, files: Sequence[Given], overrides: str, saved: str = "") -> Config:
    values: dict[str, dict[str, Any]] = {}
    origin: dict[str, str] = {}
    if preset:
        preset = _take_preset(values, origin, preset)
    for own in (given for given in files if given):
        content, where = (own, "the command") if isinstance(own, Mapping) else (_read_yaml(Path(own)), str(own))
        preset = preset or str(content.get("preset", ""))
        sections = {key: value for key, value in content.items() if key != "preset"}
        _merge(values, origin, sections, where, quiet=where == saved)
    _merge(values, origin, _parse_overrides(overrides), 'set="…"')
    return _build(values, origin, preset or "defaults", saved)


def from_mapping(mapping: Mapping[str, Any], where: str) -> Config:
    """Rebuild a configuration from the mapping that `to_mapping` made; `where` names it in errors.

    Raises:
        ConfigError: as `load_config`.
    """
    values: dict[str, dict[str, Any]] = {}
    origin: dict[str, str] = {}
    sections = {key: value for key, value in mapping.items() if key != "preset"}
    _merge(values, origin, sections, where)
    return _build(values, origin, str(mapping.get("preset", "defaults")))


def with_preset(mapping: Mapping[str, Any], where: str) -> Config:
    """A configuration from sections as in YAML, on top of the preset that they name, if any.

    Raises:
        ConfigError: as `load_config`.
    """
    values: dict[str, dict[str, Any]] = {}
    origin: dict[str, str] = {}
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where} is {mapping!r:.80}, expected sections ({', '.join(_sections())})")
    preset = str(mapping.get("preset", ""))
    name = _take_preset(values, origin, preset) if preset else ""
    _merge(values, origin, {key: value for key, value in mapping.items() if key != "preset"}, where)
    return _build(values, origin, name or "defaults")


def to_mapping(config: Config) -> dict[str, Any]:
    """The whole configuration as plain values, keys as in YAML."""
    sections: dict[str, Any] = {"preset": config.preset}
    for section in fields(config):
        value = getattr(config, section.name)
        if is_dataclass(value):
            items = {spec.name: getattr(value, spec.name) for spec in fields(value)}
            hints = get_type_hints(type(value))
            sections[section.name] = {
                name.replace("_", "-"): plain(item) for name, item in items.items()
                if item or not is_named(hints[name])  # as messages and files were before there were named entries
            }  # fmt: skip
    return sections


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML; `load_config(file=…)` reads it back."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)


def _take_preset(values: dict[str, dict[str, Any]], origin: dict[str, str], preset: str) -> str:
    """Begin with the values of a preset; returns what it is called."""
    content, where, name = preset_content(preset)
    _merge(values, origin, {key: value for key, value in content.items() if key != "preset"}, where)
    return str(content.get("preset", name))


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist; give an absolute path") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"configuration file {path} cannot be read as YAML in UTF-8: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections ({', '.join(_sections())}), found a {type(content).__name__}")
    return content


def _parse_overrides(text: str) -> Mapping[str, Any]:
    values: dict[str, dict[str, Any]] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"set={text!r} cannot be read: {error}") from error
    for word in words:
        key, equals, value = word.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            hint = suggestion(name or key, section if dot else "", _keys()) if equals else ""
            raise ConfigError(f'set="…": {word!r} is not of the form section.key=value{hint}')
        try:
            typed = _is_text(section, name) or not value  # a name or path stays what was typed: 007, 1.50, on
            values.setdefault(section, {})[name] = value if typed else read_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f'set="…": the value of {key} cannot be read: {error}') from error
    return values


def _is_text(section: str, key: str) -> bool:
    kind = _sections().get(section)
    return kind is not None and is_word(get_type_hints(kind).get(key.replace("-", "_")))


def _sections() -> dict[str, type[Section]]:
    hints = get_type_hints(Config)
    return {name: hint for name, hint in hints.items() if issubclass(hint, Section)}


def _keys() -> dict[str, list[str]]:
    """Names of all keys by section, as in YAML."""
    return {name: [spec.name.replace("_", "-") for spec in fields(kind)] for name, kind in _sections().items()}


def _merge(
    values: dict[str, dict[str, Any]],
    origin: dict[str, str],
    more: Mapping[str, Any],
    where: str,
    *,
    quiet: bool = False,
) -> None:
    """Take over settings; `quiet` where nobody can mend an old name, as in the folder of an earlier version's run."""
    sections = _sections()
    for section, content in more.items():
        if section not in sections:
            raise ConfigError(
                f"{where}: unknown section {section!r}{section_suggestion(str(section), content, _keys())}"
            )
        if not isinstance(content, Mapping):
            raise ConfigError(f"{where}: section {section!r} must hold keys, found {content!r}")
        known = {spec.name.replace("_", "-"): spec.name for spec in fields(sections[section])}
        for key, value in content.items():
            name = str(key).replace("_", "-")
            if new := MOVED.get(f"{section}.{name}"):
                raise ConfigError(f"{where}: {section}.{name} is called {new} now")
            if new := RENAMED.get(f"{section}.{name}"):
                if not quiet:
                    log.warning("%s: %s.%s is called %s.%s now", where, section, name, section, new)
                name = new
            if name not in known:
                raise ConfigError(f"{where}: unknown key {section}.{key}{suggestion(name, section, _keys())}")
            if name != key and name in content:
                raise ConfigError(f"{where}: {section}.{name} is there twice, as {key!r} too; keep one of them")
            values.setdefault(section, {})[known[name]] = value
            origin[f"{section}.{name}"] = where


def _build(values: dict[str, dict[str, Any]], origin: dict[str, str], preset: str, saved: str = "") -> Config:
    """Check and build; names out of the file `saved` need not be known (any more)."""
    built: dict[str, Any] = {"preset": preset}
    for section, kind in _sections().items():
        hints = get_type_hints(kind)
        typed = {}
        for name, value in values.get(section, {}).items():
            key = f"{section}.{name.replace('_', '-')}"
            typed[name] = convert(value, hints[name], f"{origin[key]}: {key}")
        try:
            built[section] = kind(**typed)
        except ConfigError as error:
            key = str(error).split(" ", 1)[0]
            raise ConfigError(f"{origin[key]}: {error}" if key in origin else str(error)) from None
    config = Config(**built)
    for section, spec, value in extensible(config):
        key = f"{section}.{spec.name.replace('_', '-')}"
        where = origin.get(key, "")
        if not saved or where != saved:
            try:
                check_name(key, value, spec)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}" if where else str(error)) from None
    return config
