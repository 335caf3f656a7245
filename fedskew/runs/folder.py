"""The run folder: configuration, split, one line of metrics a round, checkpoints, the latest and the best model.

    config.yaml  split.json  metrics.jsonl  summary.json
    architecture.json  model.safetensors      the latest finished round
    predictions.npz                           what it says of every test image; absent if it was not evaluated
    best/                                     the same three of the best round
    checkpoints/round-0007/                   model, predictions, state.json and the optimisers' moments
                                              (companions.safetensors, where a run has them), complete or absent

A round counts when its checkpoint folder has been renamed into place; everything else can be derived from it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save
from torch import Tensor

from fedskew.architecture import Architecture
from fedskew.metrics import Predictions
from fedskew.model.pretrained import file_sha256
from fedskew.runs.atomic import link, sync_directory, write_bytes, write_json
from fedskew.runs.modelfile import ModelFileError, encode_model, read_model
from fedskew.runs.predictions import PREDICTIONS, encode_predictions

log = logging.getLogger("flwr.fedskew.runs")

MODEL, ARCHITECTURE, STATE = "model.safetensors", "architecture.json", "state.json"
COMPANIONS = "companions.safetensors"
METRICS, SUMMARY, CONFIG, SPLIT = "metrics.jsonl", "summary.json", "config.yaml", "split.json"


class RunFolderError(RuntimeError):
    """A run folder that cannot be written or resumed; the message names the folder and the remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """All that is needed to go on after a finished round."""

    round_number: int
    architecture: Architecture
    weights: dict[str, Tensor]
    progress: dict[str, Any]  # running sums, best metric, rounds below quorum
    companions: dict[str, Tensor] = field(default_factory=dict)  # optimisers' moments


class RunFolder:
    """One run on disk. Every method leaves the folder usable if the process dies inside it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, parent: Path, name: str) -> RunFolder:
        """Make a new folder `parent/name`, with a number appended if the name is taken.

        Raises:
            RunFolderError: the parent cannot be written.
        """
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for suffix in ("", *(f"-{i}" for i in range(2, 10_000))):
                path = parent / f"{name}{suffix}"
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                (path / "checkpoints").mkdir()
                return cls(path)
        except OSError as error:
            raise RunFolderError(
                f"no run folder can be made in {parent} ({error}); set run.output-dir to a writable folder"
            ) from error
        raise RunFolderError(f"{parent} holds too many runs named {name}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one server; the lock goes when the process does.

        Raises:
            RunFolderError: another process runs in it.
        """
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise RunFolderError(f"another run is using {self.path}; wait for it, or stop it first") from None

    def check_split(self, manifest: Mapping[str, Any]) -> None:
        """Raise `RunFolderError` if the data splits otherwise than when the run began; names what differs."""
        path = self.path / SPLIT
        saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if saved and saved["split_hash"] != manifest["split_hash"]:
            counts = [
                f"{name} {sum(m['counts'][name].values())}" for m in (saved, manifest) for name in ("test", "open")
            ]
            raise RunFolderError(
                f"{self.path} cannot be resumed: its data was {saved['data']} ({counts[0]}, {counts[1]} images), "
                f"now it is {manifest['data']} ({counts[2]}, {counts[3]}) and splits otherwise. "
                "Give it the data it began with"
            )

    def write_text(self, name: str, text: str) -> None:
        """Write a small file of the folder atomically."""
        write_bytes(self.path / name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder atomically."""
        write_json(self.path / name, value)

    def finish_round(
        self,
        round_number: int,
        arch: Architecture,
        weights: Mapping[str, Tensor],
        record: dict[str, Any],
        progress: Mapping[str, Any],
        *,
        is_best: bool,
        keep: int,
        predictions: Predictions | None = None,
        companions: Mapping[str, Tensor] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a finished round: its line of metrics, then its checkpoint, then the copies for people.

        Args:
            predictions: of this round's model on the test set, if it was evaluated.
            about: what the model file says of itself, see `lineage.about_model`.

        Raises:
            RunFolderError: the disk is full or the folder read-only; the checkpoint before stays valid.
        """
        files = {MODEL: encode_model(arch, weights, about)}
        if predictions is not None:
            files[PREDICTIONS] = encode_predictions(predictions)
        if companions:
            files[COMPANIONS] = save({name: tensor.contiguous() for name, tensor in companions.items()})
        record = record | {"model_bytes": len(files[MODEL])}
        try:
            self._append_metrics(record)
            folder = self._write_checkpoint(round_number, files, record, progress)
            self._publish_all(folder, arch, is_best=is_best)
            self._forget_old(keep)
        except OSError as error:
            raise RunFolderError(
                f"round {round_number} could not be saved in {self.path}: {error}. The rounds before it are intact; "
                f'free space and go on with resume="{self.path}"'
            ) from error

    def _write_checkpoint(
        self, number: int, files: Mapping[str, bytes], record: dict[str, Any], progress: Mapping[str, Any]
    ) -> Path:
        final = self._checkpoint_path(number)
        scratch = final.with_name(f".{final.name}.{os.getpid()}.tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            for name, content in files.items():
                write_bytes(scratch / name, content)
            state = {
                "round": number,
                "files_sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
                "progress": dict(progress),
                "record": record,
            }
            write_json(scratch / STATE, state | {"sha256": _digest(state)})
            shutil.rmtree(final, ignore_errors=True)  # a damaged checkpoint of the same round
            os.replace(scratch, final)
            sync_directory(final.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return final

    def republish(self, checkpoint: Checkpoint) -> None:
        """Make the copies for people those of a checkpoint: the process may have died between the two."""
        number = checkpoint.round_number
        is_best = (checkpoint.progress.get("best") or {}).get("round") == number
        self._publish_all(self._checkpoint_path(number), checkpoint.architecture, is_best=is_best)

    def _checkpoint_path(self, number: int) -> Path:
        return self.path / "checkpoints" / f"round-{number:04d}"

    def _publish_all(self, checkpoint: Path, arch: Architecture, *, is_best: bool) -> None:
        self._publish(checkpoint, arch, self.path)
        if is_best:
            self._publish(checkpoint, arch, self.path / "best")

    def publish_last_as_best(self) -> None:
        """Make the newest model the best one, where no round could be judged."""
        checkpoint = self.latest()
        self._publish(self._checkpoint_path(checkpoint.round_number), checkpoint.architecture, self.path / "best")

    def _publish(self, checkpoint: Path, arch: Architecture, target: Path) -> None:
        target.mkdir(exist_ok=True)
        (target / PREDICTIONS).unlink(missing_ok=True)  # never beside a model that they are not of
        link(checkpoint / MODEL, target / MODEL)
        if (checkpoint / PREDICTIONS).is_file():
            link(checkpoint / PREDICTIONS, target / PREDICTIONS)
        write_bytes(target / ARCHITECTURE, (json.dumps(json.loads(arch.to_json()), indent=1) + "\n").encode())

    def _append_metrics(self, record: dict[str, Any]) -> None:
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _forget_old(self, keep: int) -> None:
        for path in self.checkpoints()[:-keep]:
            shutil.rmtree(path)

    def checkpoints(self) -> list[Path]:
        """Folders of finished rounds, the oldest first."""
        return sorted((self.path / "checkpoints").glob("round-*"), key=lambda path: (len(path.name), path.name))

    def latest(self) -> Checkpoint:
        """The newest checkpoint that is whole; damaged ones are named in the log and passed over.

        Raises:
            RunFolderError: none is whole.
        """
        for path in reversed(self.checkpoints()):
            try:
                return read_checkpoint(path)
            except (OSError, ValueError, KeyError) as error:
                log.warning("checkpoint %s is damaged (%s); trying the one before", path, error)
        raise RunFolderError(f"{self.path} holds no whole checkpoint to resume from; start the run anew")

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics, one a round."""
        path = self.path / METRICS
        if not path.is_file():
            raise RunFolderError(f"{self.path} is no run folder: it holds no {METRICS}")
        return [json.loads(line) for line in _whole_lines(path)]

    def rewind(self, round_number: int) -> list[dict[str, Any]]:
        """Drop lines of metrics after a round (they were written, their checkpoint was not); returns what is left."""
        if not (self.path / METRICS).is_file():
            return []
        kept = [record for record in self.records() if record["round"] <= round_number]
        write_bytes(self.path / METRICS, "".join(json.dumps(record) + "\n" for record in kept).encode())
        return kept


def _whole_lines(path: Path) -> list[str]:
    """Lines that end in a newline: a process killed in mid-write leaves a last line without one."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder and compare its hashes.

    Raises:
        ValueError, KeyError, OSError: it is damaged.
    """
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.pop("sha256") != _digest(state):
        raise ValueError(f"{STATE} does not match its hash")
    for name, expected in _file_hashes(state).items():
        if file_sha256(path / name) != expected:
            raise ModelFileError(f"{name} does not match its hash")
    arch, weights = read_model(path / MODEL)
    progress = dict(state["progress"])
    if "best_round" in progress:  # of a version that chose by the test set: what is best is found anew
        progress = {name: value for name, value in progress.items() if name != "best_round"} | {"best": None}
    companions = load_file(path / COMPANIONS) if (path / COMPANIONS).is_file() else {}
    return Checkpoint(state["round"], arch, weights, progress, companions)


def _file_hashes(state: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of a checkpoint's files by name; versions before predictions were kept noted the model's only."""
    return state["files_sha256"] if "files_sha256" in state else {MODEL: state["model_sha256"]}


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
