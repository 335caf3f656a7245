"""A study: the file that `fedskew sweep` runs. Cells (named settings) times seeds, each a run with a folder of its own.

    preset: ham10000-small          # also data-dir, nodes, config, set, seeds: for all cells, unless a cell has its own
    seeds: [0, 1, 2]
    order: seed                     # every cell with the first seed, then with the second; `cell`: cell by cell
    threads: 1                      # what run.threads and train.threads become where they are 0
    cells:                          # the most important first
      dense:  {set: prune.criterion=none}
      pruned: {set: [prune.rule=sign, prune.last-round=12], priority: 1}     # before cells of a lower priority (0)
      pooled: {set: prune.criterion=none, nodes: 1}

A cell may start from what another one made: `set: model.from-run=@dense`, see `references`.
`set` adds up: the study's, the cell's, then that of the command line; the later wins. Paths are relative to the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fedskew.config import Config, ConfigError, load_config
from fedskew.errors import FedskewError
from fedskew.model.catalogue import dense_architecture
from fedskew.runs.start_checks import check_combination, check_pruning
from fedskew.sweeps.references import PlannedRun, resolved, run_name, unmet
from fedskew.text import nearest, read_yaml

CELL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ORDERS = ("seed", "cell")
CELL_KEYS = ("preset", "config", "set", "data-dir", "nodes", "seeds", "priority")
STUDY_KEYS = ("preset", "config", "set", "data-dir", "nodes", "seeds", "order", "threads", "cells")
OWN_KEYS = {"run.seed": "seeds", "run.name": "the cell's name", "run.output-dir": "--out"}
DEFAULT_NODES = 4  # as `fedskew simulate`


class StudyError(FedskewError, ValueError):
    """A study that cannot be run; the message lists all that is wrong with it, by cell."""


@dataclass(frozen=True)
class Given:
    """What the command line says; it wins over the study's own values, not over a cell's (`set` wins over both)."""

    data_dir: str = ""
    nodes: int = 0
    seeds: tuple[int, ...] = ()
    overrides: str = ""


@dataclass(frozen=True)
class Study:
    """A validated study."""

    path: Path
    cells: tuple[str, ...]  # in the order of the file
    runs: tuple[PlannedRun, ...]  # in the order in which they are started


@dataclass(frozen=True)
class _Cell:
    """A cell with the study's values filled in."""

    name: str
    preset: str
    config: str
    overrides: str
    data_dir: str
    nodes: int
    seeds: tuple[int, ...]
    priority: int


def read_study(path: Path, out: Path, given: Given = Given()) -> Study:
    """Read and check a study; nothing is started or written.

    Args:
        out: folder that the run folders are made in.

    Raises:
        StudyError: everything that is wrong with the file, its cells and their settings, a line each.
    """
    problems: list[str] = []
    content = _read(path)
    _unknown_keys(content, STUDY_KEYS, "the study", problems)
    order = _value(content, "order", "seed", _one_of(ORDERS), "the study", problems)
    threads = _value(content, "threads", 1, _count, "the study", problems)
    common = _common(content, path, given, problems)
    cells = [_cell(str(name), own, common, path, given, problems) for name, own in _cells(content, problems)]
    planned = [
        (_rank(cell, order, i, j), run)
        for i, cell in enumerate(cells)
        if cell is not None
        for j, run in enumerate(_runs(cell, threads, out, problems))
    ]
    problems += unmet(run for _, run in planned)
    if problems:
        raise StudyError(f"{path} cannot be run:\n" + "\n".join(f"  {line}" for line in problems))
    runs = tuple(run for _, run in sorted(planned, key=lambda pair: pair[0]))
    return Study(path, tuple(cell.name for cell in cells if cell is not None), runs)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"there is no study {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"the study {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} is no study: expected the keys {', '.join(STUDY_KEYS)}")
    return content


def _cells(content: Mapping[str, Any], problems: list[str]) -> list[tuple[Any, Any]]:
    cells = content.get("cells")
    if isinstance(cells, dict) and cells:
        return list(cells.items())
    problems.append(f"the study: cells must name at least one cell with its settings, found {cells!r}")
    return []


def _common(content: Mapping[str, Any], path: Path, given: Given, problems: list[str]) -> _Cell:
    """What every cell starts from: the study's values, or those of the command line."""
    return _Cell(
        name="",
        preset=_value(content, "preset", "", _text, "the study", problems),
        config=_value(content, "config", "", _path_from(path), "the study", problems),
        overrides=_value(content, "set", "", _settings, "the study", problems),
        data_dir=given.data_dir or _value(content, "data-dir", "", _path_from(path), "the study", problems),
        nodes=given.nodes or _value(content, "nodes", DEFAULT_NODES, _count, "the study", problems),
        seeds=given.seeds or _value(content, "seeds", (0,), _seeds, "the study", problems),
        priority=0,
    )


def _cell(name: str, own: Any, common: _Cell, path: Path, given: Given, problems: list[str]) -> _Cell | None:
    """A cell with the study's values filled in; None, with its problems noted, if it cannot be read."""
    where, found = f"cell {name}", len(problems)
    if not CELL_NAME.fullmatch(name):
        problems.append(f"{where}: a cell's name is a folder's name: letters, digits, '.', '_' and '-'")
    own = {} if own is None else own
    if not isinstance(own, dict):
        problems.append(f"{where}: must hold keys ({', '.join(CELL_KEYS)}), found {own!r}")
        return None
    _unknown_keys(own, CELL_KEYS, where, problems)
    settings = _value(own, "set", "", _settings, where, problems)
    cell = _Cell(
        name,
        preset=_value(own, "preset", common.preset, _text, where, problems),
        config=_value(own, "config", common.config, _path_from(path), where, problems),
        overrides=" ".join(filter(None, (common.overrides, settings, given.overrides))),
        data_dir=_value(own, "data-dir", common.data_dir, _path_from(path), where, problems),
        nodes=_value(own, "nodes", common.nodes, _count, where, problems),
        seeds=_value(own, "seeds", common.seeds, _seeds, where, problems),
        priority=_value(own, "priority", 0, _integer, where, problems),
    )
    return cell if len(problems) == found else None


def _runs(cell: _Cell, threads: int, out: Path, problems: list[str]) -> list[PlannedRun]:
    try:
        config = _configured(cell, threads)
    except ConfigError as error:
        problems.append(f"cell {cell.name}: {error}")
        return []
    planned = []
    for seed in cell.seeds:
        own, needs = resolved(config, out, seed)
        own = replace(own, run=replace(own.run, seed=seed, name=run_name(cell.name, seed), output_dir=str(out)))
        planned.append(PlannedRun(cell.name, seed, cell.nodes, own, needs))
    return planned


def _configured(cell: _Cell, threads: int) -> Config:
    """The cell's configuration but for the seed and the folder, checked as far as that is possible without its data."""
    for word in cell.overrides.split():
        if (key := word.partition("=")[0].replace("_", "-")) in OWN_KEYS:
            raise ConfigError(f"{key} cannot be set in a study; it comes from {OWN_KEYS[key]}")
    if not (cell.preset or cell.config):
        raise ConfigError("no settings to start from: give a preset, or a config")
    config = load_config(cell.preset, file=cell.config, overrides=cell.overrides)
    data, train, run = config.data, config.train, config.run
    if cell.data_dir:
        data = replace(data, dir=cell.data_dir, source="folder")
    if data.source == "folder" and not data.dir:
        raise ConfigError("no data set: give data-dir in the study or --data-dir, or set data.source=generated")
    if data.source == "folder" and not Path(data.dir).exists():
        raise ConfigError(f"its data set {data.dir} does not exist")
    _check_model(config)
    train, run = (replace(part, threads=part.threads or threads) for part in (train, run))
    return replace(config, data=data, train=train, run=run)


def _check_model(config: Config) -> None:
    """Refuse now what would end the run at its start."""
    check_combination(config)
    architecture = dense_architecture(config.model, removed=config.prune.removed)
    if config.prune.criterion != "none":
        check_pruning(config, architecture)


def _rank(cell: _Cell, order: str, cell_index: int, seed_index: int) -> tuple[int, int, int]:
    place = (seed_index, cell_index) if order == "seed" else (cell_index, seed_index)
    return (-cell.priority, *place)


def _unknown_keys(content: Mapping[Any, Any], known: Sequence[str], where: str, problems: list[str]) -> None:
    for key in content:
        if key not in known:
            near = nearest(str(key), known)
            problems.append(f"{where}: unknown key {key!r}" + (f"; did you mean {near}?" if near else ""))


def _value(
    content: Mapping[str, Any], key: str, default: Any, convert: Callable[[Any], Any], where: str, problems: list[str]
) -> Any:
    """A key's value, or the default; a value that is wrong is noted and the default stands in for it."""
    if content.get(key) is None:
        return default
    try:
        return convert(content[key])
    except ValueError as error:
        problems.append(f"{where}: {key} must be {error}, found {content[key]!r}")
        return default


def _path_from(file: Path) -> Callable[[Any], str]:
    """A path in the study, as seen from its file."""
    return lambda value: str((file.parent / Path(_text(value)).expanduser()).resolve())


def _one_of(choices: Sequence[str]) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value

    return convert


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("a whole number")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("a whole number of at least 1")
    return value


def _seeds(value: Any) -> tuple[int, ...]:
    good = isinstance(value, list) and value and all(type(seed) is int and 0 <= seed < 2**31 for seed in value)
    if not good or len(set(value)) < len(value):
        raise ValueError("a list of different whole numbers of at least 0")
    return tuple(value)


def _settings(value: Any) -> str:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("section.key=value, or a list of these")
    return " ".join(words)
