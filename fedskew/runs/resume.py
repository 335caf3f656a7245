"""Start a run in a new folder, or go on in an old one from its last finished round."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fedskew.config import Config, ConfigError
from fedskew.config.load import load_saved
from fedskew.files import read_json
from fedskew.paths import runs_directory
from fedskew.runs.checkpoint import Checkpoint
from fedskew.runs.folder import CONFIG, METRICS, SUMMARY, RunFolder, RunFolderError
from fedskew.runs.naming import name_is_taken, numbered_names
from fedskew.runs.reading import recorded_nodes
from fedskew.runs.starts import changed_settings

DEFAULT_NODES = 4

# What may differ when a run is resumed: where it runs, how long the server waits and for whom, how many rounds, and how
# it protects itself from the sites: who has been attacked must not have to begin again.
# Everything else decides the data, the model, what a round computes or which round is the best.
MAY_CHANGE: dict[str, Collection[str] | None] = {
    "data": {"dir", "manifest", "cache-dir"},
    "train": {"device", "threads"},
    "federation": {
        "rounds", "min-nodes", "join-deadline", "quorum", "round-deadline", "grace", "max-missed-rounds",
        "max-weight-ratio", "norm-bound", "rollback", "require-signatures",
    },
    "run": {"threads", "eval-batch-size", "evaluate-every", "keep-checkpoints", "report", "sinks"},
}  # fmt: skip
# A run folder that was moved, by a sweep for one, bears other names of itself than its configuration.
MAY_MOVE = MAY_CHANGE | {"run": {*(MAY_CHANGE["run"] or ()), "output-dir", "name"}}


def run_name(config: Config) -> str:
    """What a run is called: `run.name`, or date, preset, method and seed."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return config.run.name or f"{stamp}-{config.preset}-{config.prune.criterion}-seed{config.run.seed}"


def planned_folder(config: Config) -> Path:
    """Where a new run will lie. A name that a person chose is never changed; any other gets a number if it is taken.

    Raises:
        RunFolderError: there is something of the chosen name already.
    """
    parent = runs_directory(config.run.output_dir)
    names = [config.run.name] if config.run.name else numbered_names(run_name(config))
    for name in names:
        if not (parent / name).exists():
            return parent / name
    raise RunFolderError(name_is_taken(parent / config.run.name))


def new_folder(config: Config, files: Mapping[str, str] | None = None) -> RunFolder:
    """A new run folder with its first files, named as `planned_folder` says. Raises as `RunFolder.create`."""
    parent = runs_directory(config.run.output_dir)
    return RunFolder.create(parent, run_name(config), files, numbered=not config.run.name)


def resume_config(path: Path, *, file: str = "", overrides: str = "") -> Config:
    """The configuration to go on with: the run's own, with what a person overrides now.

    Raises:
        RunFolderError: no run folder there.
        ConfigError: an override changes something else than `MAY_CHANGE`; the difference is named.
    """
    saved = saved_config(path)
    if saved is None:
        raise RunFolderError(
            f'resume="{path}": no run folder there ({CONFIG} is missing); give the absolute path that the run printed'
        )
    wanted = load_saved(path / CONFIG, file=file, overrides=overrides)
    check_changes(path, saved, wanted)
    return wanted


def saved_config(path: Path) -> Config | None:
    """The configuration that a run folder was last started with; None if there is none."""
    return load_saved(path / CONFIG) if (path / CONFIG).is_file() else None


def check_changes(
    path: Path, saved: Config, wanted: Config, may_change: Mapping[str, Collection[str] | None] = MAY_CHANGE
) -> None:
    """Raise `ConfigError` if a run may not go on with other settings; names each with both values."""
    different = differences(saved, wanted, may_change)
    if wanted.federation.rounds < saved.federation.rounds:
        different.append(f"federation.rounds was {saved.federation.rounds}, is {wanted.federation.rounds}: fewer")
    if different:
        allowed = (f"{section}.{key}" for section, keys in MAY_CHANGE.items() for key in sorted(keys or ()))
        raise ConfigError(
            f"{path} cannot be resumed with other settings: {'; '.join(different)}. Start a new run for these. What "
            f"may change: {', '.join(allowed)} (rounds can only become more)"
        )


def differences(
    saved: Config, wanted: Config, may_change: Mapping[str, Collection[str] | None] = MAY_CHANGE
) -> list[str]:
    """`section.key was A, is B` for every setting that must not change: by default, when a run is resumed.

    Args:
        may_change: by section, the keys that may differ; None: all of them.
    """
    found = []
    for key, old, new in changed_settings(saved, wanted):
        section, _, name = key.partition(".")
        allowed = may_change.get(section, ())
        if allowed is not None and name not in allowed:
            found.append(f"{key} was {_short(old)}, is {_short(new)}")
    return found


def _short(value: Any) -> str:
    return repr(value)[:60]


def open_checkpoint(path: Path) -> tuple[RunFolder, Checkpoint | None]:
    """The run folder and its last whole checkpoint; None if it was killed before its first.

    Raises:
        RunFolderError: it has finished rounds, but no whole checkpoint to go on from (any more).
    """
    folder = RunFolder(path)
    if folder.checkpoints():
        return folder, folder.latest()
    finished = max((record["round"] for record in folder.records()), default=0) if (path / METRICS).is_file() else 0
    if finished:
        raise RunFolderError(
            f"{path} has {finished} finished rounds, but its checkpoints are gone: it cannot go on from there. "
            "Nothing was changed; start a new run"
        )
    return folder, None


def is_finished(path: Path, config: Config) -> bool:
    """Whether a run has nothing left to do: its rounds are done, and its summary of them is written."""
    file = path / SUMMARY
    rounds = read_json(file).get("rounds", -1) if file.is_file() else -1
    newest = [folder.name for folder in RunFolder(path).checkpoints()[-1:]]
    return config.federation.rounds <= rounds and newest in ([], [f"round-{rounds:04d}"])


def finished_message(path: Path, config: Config) -> str:
    """What a person is told who resumes a finished run."""
    rounds = config.federation.rounds
    return (
        f"{path} is finished: all {rounds} rounds are done, and nothing was changed. "
        f"More rounds: federation.rounds above {rounds}"
    )


def node_count(resume: str | Path, asked: int | None) -> int:
    """How many nodes to simulate: as many as share the data of the run that is resumed, else as many as asked for.

    Raises:
        ConfigError: another number is asked for than the run was begun with.
    """
    recorded = recorded_nodes(Path(resume)) if resume else None
    if recorded and asked not in (None, recorded):
        raise ConfigError(
            f"--nodes {asked}, but {resume} was begun with {recorded} nodes, and others would get other images; "
            "leave --nodes out, or start a new run"
        )
    return recorded or asked or DEFAULT_NODES
