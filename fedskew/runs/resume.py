"""Start a run in a new folder, or go on in an old one from its last finished round."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fedskew.config import Config, ConfigError, load_config
from fedskew.config.load import to_mapping
from fedskew.paths import runs_directory
from fedskew.runs.folder import CONFIG, Checkpoint, RunFolder, RunFolderError

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


def new_folder(config: Config) -> RunFolder:
    """A new run folder named by `run.name`, or by date, preset, method and seed."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = config.run.name or f"{stamp}-{config.preset}-{config.prune.method}-seed{config.run.seed}"
    return RunFolder.create(runs_directory(config.run.output_dir), name)


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


def differences(
    saved: Config, wanted: Config, may_change: Mapping[str, Collection[str] | None] = MAY_CHANGE
) -> list[str]:
    """`section.key was A, is B` for every setting that must not change: by default, when a run is resumed.

    Args:
        may_change: by section, the keys that may differ; None: all of them.
    """
    old, new = to_mapping(saved), to_mapping(wanted)
    found = []
    for section, allowed in may_change.items():
        if allowed is None:
            continue
        for key, value in new[section].items():
            if key not in allowed and old[section][key] != value:
                found.append(f"{section}.{key} was {_short(old[section][key])}, is {_short(value)}")
    return found


def _short(value: Any) -> str:
    return repr(value)[:60]


def open_checkpoint(path: Path) -> tuple[RunFolder, Checkpoint | None]:
    """The run folder and its last whole checkpoint; None if it was killed before its first."""
    folder = RunFolder(path)
    return folder, folder.latest() if folder.checkpoints() else None
