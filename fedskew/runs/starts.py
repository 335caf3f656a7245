"""What is written down at every start of a run, and what a run that goes on must find unchanged.

`starts.jsonl` has a line for each start: when, before which round, as which run of Flower (sites' audit logs name it
too), on what device, with which versions and plugins, and what differs from the start before. `split.json` says who has
which images and how many nodes share them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fedskew import __version__
from fedskew.config import Config
from fedskew.config.load import to_mapping
from fedskew.data.samples import Sample
from fedskew.files import DamagedFileError, read_json, read_json_lines
from fedskew.learning.train import pick_device
from fedskew.plugins import loaded, taking_part
from fedskew.runs.folder import SPLIT, RunFolder, RunFolderError

STARTS, PLUGINS = "starts.jsonl", "plugins"
OF_CHANGE = frozenset({"key", "old", "new"})
# Where things lie. Their content is what the run began with: hashes of samples and split see to that.
PLACES = frozenset({"data.dir", "data.manifest", "data.cache-dir", "run.output-dir", "run.name"})


@dataclass(frozen=True)
class Change:
    """A setting, or a fact of the machine, that is another one since a run was resumed.

    Attributes:
        round_number: the first round that it holds for.
        key: `section.key`; of the machine `device`, `torch` or `fedskew`.
        time: of the start, in UTC (ISO 8601).
    """

    round_number: int
    key: str
    old: Any
    new: Any
    time: str

    def __str__(self) -> str:
        return f"{self.key} {self.old} → {self.new} from round {self.round_number}"

    def as_json(self) -> dict[str, Any]:
        """For `summary.json`."""
        return {"round": self.round_number, "key": self.key, "old": self.old, "new": self.new, "time": self.time}


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


def add_start(folder: RunFolder, saved: Config, config: Config, round_number: int, run_id: int) -> list[Change]:
    """Write down that a run goes on, and with what it differs from its last start.

    Args:
        saved: the configuration so far.
        round_number: the first round from now on.
        run_id: Flower's number of this attempt.

    Returns:
        The changes, without those of places.
    """
    path = folder.path / STARTS
    before = _lines(path)
    machine = _machine(config)
    moved = [(key, before[-1][key], value) for key, value in machine.items() if before and before[-1][key] != value]
    line = _line(round_number, run_id, config, [*changed_settings(saved, config), *moved])
    folder.write_text(STARTS, "".join(f"{json.dumps(known)}\n" for known in before) + line)
    return _changes([json.loads(line)])


def read_changes(path: Path) -> list[Change]:
    """Everything that is another one since a run in a folder began, in order, without places."""
    return _changes(_lines(path / STARTS))


def read_flower_runs(path: Path) -> list[tuple[int, int]]:
    """(first round, Flower's run id) of every start in a folder, in order; without those of earlier versions.

    Of several that begin with the same round only the last one finished it.
    """
    return [(line["round"], line["flower_run"]) for line in _lines(path / STARTS) if "flower_run" in line]


def _changes(lines: Iterable[Mapping[str, Any]]) -> list[Change]:
    return [
        Change(line["round"], change["key"], change["old"], change["new"], line["time"])
        for line in lines
        for change in line["changes"]
        if change["key"] not in PLACES
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Absent in runs of earlier versions."""
    lines = read_json_lines(path) if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        changes = line.get("changes")
        whole = isinstance(changes, list) and all(isinstance(one, dict) and one.keys() >= OF_CHANGE for one in changes)
        if not whole or type(line.get("round")) is not int or not isinstance(line.get("time"), str):
            raise DamagedFileError(f"{path}, line {number} is damaged: it is no line of a start: {line!r:.80}")
    return lines


def check_plugins(path: Path) -> None:
    """Raise `RunFolderError` unless the plugins that take part in a run are loaded, and still what they were."""
    starts, here = _lines(path / STARTS), {plugin.name: plugin.sha256 for plugin in loaded()}
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
    return {"fedskew": __version__, "torch": torch.__version__, "device": name}


def samples_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 over labels and metadata: equal for the same data set wherever it lies."""
    rows = [{name: value for name, value in vars(sample).items() if name != "image"} for sample in samples]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()


def read_split(path: Path) -> dict[str, Any]:
    """The split of a run folder; empty if it has none (yet).

    Raises:
        DamagedFileError: it is not what a run writes.
    """
    file = path / SPLIT
    split = read_json(file) if file.is_file() else {}
    ids, nodes = split.get("ids", {}), split.get("nodes")
    parts = ids.get("parts", []) if isinstance(ids, dict) else None
    lists = [ids.get("test", []), ids.get("open", []), *parts] if isinstance(parts, list) else [None]
    if type(nodes) not in (int, type(None)) or not all(map(_are_texts, lists)):
        raise DamagedFileError(f"{file} is damaged: expected lists of image ids and a number of nodes")
    return split


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def recorded_nodes(path: Path) -> int | None:
    """How many nodes share the data of a run; None if each has its own, or none is on record."""
    split = read_split(path)
    return split.get("nodes") or len(split.get("ids", {}).get("parts", ())) or None


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
