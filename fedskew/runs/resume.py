"""Start a run in a new folder, or go on in an old one from its last finished round."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fedskew.config import Config, ConfigError, load_config
from fedskew.config.load import to_mapping
from fedskew.paths import runs_directory
from fedskew.runs.folder import CONFIG, SPLIT, Checkpoint, RunFolder, RunFolderError

DEFAULT_NODES = 4

# What may differ when a run is resumed. Everything else decides the data, the model or what the rounds did.
MAY_CHANGE = {
    "data": {"dir", "cache-dir"},  # the split's hash tells whether it is the same data
    "model": {"pretrained", "pretrained-sha256"},
    "train": None,  # every key
    "prune": {
        "method", "rule", "share", "first-round", "last-round", "interval", "steps-per-stage", "max-stage", "calibrate",
        "freeze", "max-share", "min-heads", "min-width", "min-parameters", "min-macs", "guard", "batch-size", "reading",
        "mlp-activation", "heads", "mlp", "views", "order", "thaw",
    },
    "federation": None,
    "run": {"output-dir", "name", "best-metric", "threads", "eval-batch-size", "keep-checkpoints",
            "evaluate-every"},
}  # fmt: skip


def run_name(config: Config) -> str:
    """What a run is called: `run.name`, or date, preset, method and seed."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return config.run.name or f"{stamp}-{config.preset}-{config.prune.method}-seed{config.run.seed}"


def planned_folder(config: Config) -> Path:
    """Where a new run will lie. A name that a person chose is never changed; any other gets a number if it is taken.

    Raises:
        RunFolderError: there is something of the chosen name already.
    """
    parent, name = runs_directory(config.run.output_dir), run_name(config)
    for candidate in [name] if config.run.name else [name, *(f"{name}-{number}" for number in range(2, 10_000))]:
        if not (parent / candidate).exists():
            return parent / candidate
    path = parent / name
    raise RunFolderError(f'{path} is there already; go on in it with resume="{path}", or set another run.name')


def new_folder(config: Config) -> RunFolder:
    """A new run folder, named by `run_name`."""
    return RunFolder.create(runs_directory(config.run.output_dir), run_name(config))


def resume_config(path: Path, *, file: str = "", overrides: str = "") -> Config:
    """The configuration to go on with: the run's own, with what a person overrides now.

    Raises:
        RunFolderError: no run folder there.
        ConfigError: an override changes the data split or what defines the architecture; the difference is named.
    """
    if not (path / CONFIG).is_file():
        raise RunFolderError(
            f'resume="{path}": no run folder there ({CONFIG} is missing); give the absolute path that the run printed'
        )
    saved = load_config(file=path / CONFIG)
    wanted = load_config(file=path / CONFIG, overrides=overrides) if not file else _merged(path, file, overrides)
    if different := differences(saved, wanted):
        raise ConfigError(
            f"{path} cannot be resumed with other settings: {'; '.join(different)}. Start a new run for these"
        )
    return wanted


def _merged(path: Path, file: str, overrides: str) -> Config:
    """A person's own file on top of the run's configuration."""
    return load_config(file=(path / CONFIG, file), overrides=overrides)


def differences(saved: Config, wanted: Config) -> list[str]:
    """`section.key: was A, is B` for every setting that must not change when a run is resumed."""
    old, new = to_mapping(saved), to_mapping(wanted)
    found = []
    for section, allowed in MAY_CHANGE.items():
        if allowed is None:
            continue
        for key, value in new[section].items():
            if key not in allowed and old[section][key] != value:
                found.append(f"{section}.{key} was {_short(old[section][key])}, is {_short(value)}")
    return found


def _short(value: Any) -> str:
    return repr(value)[:60]


def node_count(resume: str | Path, asked: int | None) -> int:
    """How many nodes to simulate: as many as share the data of the run that is resumed, else as many as asked for.

    Raises:
        ConfigError: another number is asked for than the run was begun with.
    """
    split = Path(resume) / SPLIT
    parts = json.loads(split.read_text(encoding="utf-8"))["ids"]["parts"] if resume and split.is_file() else []
    if parts and asked not in (None, len(parts)):
        raise ConfigError(
            f"--nodes {asked}, but {resume} was begun with {len(parts)} nodes, and others would get other images; "
            "leave --nodes out, or start a new run"
        )
    return len(parts) or asked or DEFAULT_NODES


def open_checkpoint(path: Path) -> tuple[RunFolder, Checkpoint | None]:
    """The run folder and its last whole checkpoint; None if it was killed before its first."""
    folder = RunFolder(path)
    return folder, folder.latest() if folder.checkpoints() else None
