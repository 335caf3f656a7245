"""What is written down at every start of a run, and what a run that goes on must find unchanged.

`starts.jsonl` has a line for each start: when, before which round, as which run of Flower (sites' audit logs name it
too), on what device and in which precision, with which versions and plugins, and what differs from the start before.
`split.json` says who has which images and how many nodes share them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fedskew import __version__
from fedskew.config import Config
from fedskew.config.load import to_mapping
from fedskew.data.samples import Sample
from fedskew.learning.optimiser import learning_rate
from fedskew.learning.precision import choose_precision
from fedskew.learning.train import pick_device
from fedskew.plugins import loaded, taking_part
from fedskew.runs.folder import RunFolder
from fedskew.runs.reading import (
    STARTS,
    Change,
    RunFolderError,
    changes_in,
    read_changes,
    read_precision,
    read_split,
    read_starts,
    recorded_nodes,
)

PLUGINS = "plugins"


def changed_settings(saved: Config, wanted: Config) -> Iterator[tuple[str, Any, Any]]:
    """`section.key`, old and new value of every setting in which two configurations differ."""
    old, new = to_mapping(saved), to_mapping(wanted)
    for section, values in new.items():
        if isinstance(values, Mapping):
            before = old[section]
            keys = [*values, *(key for key in before if key not in values)]
            yield from ((f"{section}.{key}", before.get(key), values.get(key))
                        for key in keys if _text(before.get(key)) != _text(values.get(key)))  # fmt: skip


def _text(value: Any) -> str:
    """A setting as text: the order of `model.metadata` counts, as it is that of the model's embeddings."""
    return json.dumps(value)


def first_start(config: Config, run_id: int) -> str:
    """The first line of a run's `starts.jsonl`."""
    return _line(0, run_id, config, [])


def curve_note(saved: Config, config: Config, finished: int) -> str:
    """That more rounds stretch the curve of the learning rate, from here on; empty if there are as many as before."""
    rounds = [one.federation.rounds for one in (saved, config)]
    if rounds[0] == rounds[1]:
        return ""
    before, after = (learning_rate(config.train, finished / number) for number in rounds)
    return (
        f"the learning rate follows the curve of {rounds[1]} rounds from round {finished + 1} on: it begins there at "
        f"{after:.3g}, with {rounds[0]} rounds it was to be {before:.3g}"
    )


def add_start(folder: RunFolder, saved: Config, config: Config, round_number: int, run_id: int) -> list[Change]:
    """Write down that a run goes on, and with what it differs from its last start.

    Args:
        saved: the configuration so far.
        round_number: the first round from now on.
        run_id: Flower's number of this attempt.

    Returns:
        The changes, without those of places.
    """
    before = read_starts(folder.path)
    machine = _machine(config)
    last = before[-1] if before else machine
    moved = [(key, last[key], value) for key, value in machine.items() if last.get(key, value) != value]
    line = _line(round_number, run_id, config, [*changed_settings(saved, config), *moved])
    folder.write_text(STARTS, "".join(f"{json.dumps(known)}\n" for known in before) + line)
    return changes_in([json.loads(line)])


def summary_of_starts(path: Path) -> dict[str, Any]:
    """What `summary.json` tells of a run's starts: what it computed in at last, and what changed on the way."""
    return {"precision": read_precision(path), "changes": [change.as_json() for change in read_changes(path)]}


def check_plugins(path: Path) -> None:
    """Raise `RunFolderError` unless the plugins that take part in a run are loaded, and still what they were."""
    starts, here = read_starts(path), {plugin.name: plugin.sha256 for plugin in loaded()}
    for name, digest in (starts[-1].get(PLUGINS, {}) if starts else {}).items():
        if name not in here:
            raise RunFolderError(
                f"{path} was begun with the plugin {name} (SHA-256 {digest[:12]}…), which is not loaded: give --plugin "
                f"with the path of {name}, or put it into plugins/ of the app (docs/plugins.md)"
            )
        if here[name] != digest:
            raise RunFolderError(
                f"{path} was begun with another plugin {name}: its SHA-256 was {digest[:12]}…, now it is "
                f"{here[name][:12]}…. Give it the file that it was begun with, or start a new run"
            )


def _line(round_number: int, run_id: int, config: Config, changes: Iterable[tuple[str, Any, Any]]) -> str:
    said = [{"key": key, "old": old, "new": new} for key, old, new in changes]
    time = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"time": time, "round": round_number, "flower_run": run_id}
    plugins = {PLUGINS: found} if (found := taking_part(config)) else {}
    return json.dumps({**about, **_machine(config), **plugins, "changes": said}) + "\n"


def _machine(config: Config) -> dict[str, str]:
    """What the server's figures depend on besides the configuration."""
    device = pick_device(config.train.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    precision = choose_precision(config.train.precision, device)
    return {"fedskew": __version__, "torch": torch.__version__, "device": name, "precision": precision}


def samples_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 over labels and metadata: equal for the same data set wherever it lies."""
    rows = [{name: value for name, value in vars(sample).items() if name != "image"} for sample in samples]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()


def check_nodes(path: Path, nodes: int) -> None:
    """Raise `RunFolderError` if another number of nodes is connected than shares the data of a run."""
    recorded = recorded_nodes(path)
    if recorded not in (None, nodes):
        raise RunFolderError(
            f"{path} was begun with {recorded} nodes that share the data, and {nodes} are connected: every node would "
            f'get other images. Give flwr run --federation-config "num-supernodes={recorded}" (fedskew run and '
            "fedskew simulate do it by themselves)"
        )


def check_split(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise `RunFolderError` if anybody would get other images, labels or metadata than when a run began."""
    saved = read_split(path)
    if not saved:
        return
    names = {"test": "test set", "open": "open data", "parts": "nodes' parts"}
    differ = [text for name, text in names.items() if saved["ids"][name] != manifest["ids"][name]]
    if saved.get("samples_hash", manifest["samples_hash"]) != manifest["samples_hash"]:
        differ.append("labels or metadata")
    if differ or any(saved[name] != manifest[name] for name in ("unit", "seed", "counts")):
        counts = [f"{name} {sum(m['counts'][name].values())}" for m in (saved, manifest) for name in ("test", "open")]
        raise RunFolderError(
            f"{path} cannot be resumed: its data was {saved['data']} ({counts[0]}, {counts[1]} images), now it is "
            f"{manifest['data']} ({counts[2]}, {counts[3]}) and splits otherwise: {' and '.join(differ) or 'counts'} "
            "differ. Give it the data it began with"
        )
