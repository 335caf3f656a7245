"""The run folder: configuration, split, one line of metrics a round, checkpoints, the latest and the best model.

    config.yaml  split.json                   the resolved configuration; who has which images, and the number of nodes
    starts.jsonl                              a line for every start: when, where, and what changed from which round on
    metrics.jsonl  summary.json
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor

from fedskew.files import link, sync_directory, write_bytes, write_json
from fedskew.metrics import Predictions
from fedskew.model.architecture import Architecture
from fedskew.model.modelfile import encode_model
from fedskew.runs.checkpoint import COMPANIONS, Checkpoint, digest, read_checkpoint
from fedskew.runs.naming import name_is_taken, remove_folder, rename_to_free, scratch_for
from fedskew.runs.predictions import encode_predictions
from fedskew.runs.reading import (
    CONFIG,
    METRICS,
    MODEL,
    PREDICTIONS,
    SPLIT,
    STATE,
    SUMMARY,
    RunFolderError,
    read_records,
)

__all__ = ["ARCHITECTURE", "CONFIG", "METRICS", "MODEL", "PREDICTIONS", "SPLIT", "SUMMARY", "RunFolder",
           "RunFolderError", "summary_time"]  # fmt: skip

log = logging.getLogger("flwr.fedskew.runs")

ARCHITECTURE = "architecture.json"


class RunFolder:
    """One run on disk. Every method leaves the folder usable if the process dies inside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock", timeout=0)
        self._made: tuple[Path, ...] = ()  # parents that were made for it, the deepest first

    @classmethod
    def create(
        cls, parent: Path, name: str, files: Mapping[str, str] | None = None, *, numbered: bool = True
    ) -> RunFolder:
        """Make a new folder `parent/name` with its first files: whole, or not at all.

        Args:
            files: text by file name.
            numbered: append a number if the name is taken.

        Raises:
            RunFolderError: the name is taken and not to be numbered, or the parent cannot be written.
        """
        made = tuple(path for path in (parent, *parent.parents) if not os.path.exists(path))
        scratch = scratch_for(parent / name)
        try:
            (scratch / "checkpoints").mkdir(parents=True)
            for file, text in (files or {}).items():
                write_bytes(scratch / file, text.encode())
            path = rename_to_free(scratch, parent / name, numbered=numbered)
            sync_directory(parent)
        except OSError as error:
            remove_folder(scratch, made)
            raise RunFolderError(
                f"no run folder can be made in {parent} ({error}); set run.output-dir to a writable folder"
            ) from error
        if path is None:
            remove_folder(scratch, made)
            raise RunFolderError(name_is_taken(parent / name))
        folder = cls(path)
        folder._made = made
        return folder

    def discard(self) -> None:
        """Remove the folder of a run that did not get as far as its first checkpoint, and parents made for it."""
        remove_folder(self.path, self._made)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one server; the lock goes when the process does. May be nested.

        Raises:
            RunFolderError: another process runs in it, or it cannot be written.
        """
        try:
            self._lock.acquire()
        except Timeout:
            raise RunFolderError(f"another run is using {self.path}; wait for it, or stop it first") from None
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written ({error}); make it writable, or copy it") from error
        try:
            yield
        finally:
            self._lock.release()

    def write_text(self, name: str, text: str) -> None:
        """Write a small file of the folder atomically. Raises as `finish_round`."""
        with self._saving(name):
            write_bytes(self.path / name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder atomically. Raises as `finish_round`."""
        with self._saving(name):
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
    ) -> dict[str, Any]:
        """Record a finished round: its line of metrics, then its checkpoint, then the copies for people.

        Args:
            predictions: of this round's model on the test set, if it was evaluated.
            about: what the model file says of itself, see `lineage.about_model`.

        Returns:
            The line of metrics as it was written.

        Raises:
            RunFolderError: the disk is full or the folder read-only; the checkpoint before stays valid.
        """
        files = {MODEL: encode_model(arch, weights, about)}
        if predictions is not None:
            of_model = replace(predictions, model=hashlib.sha256(files[MODEL]).hexdigest())
            files[PREDICTIONS] = encode_predictions(of_model)
        if companions:
            files[COMPANIONS] = save({name: tensor.contiguous() for name, tensor in companions.items()})
        record = record | {"model_bytes": len(files[MODEL])}
        with self._saving(f"round {round_number}"):
            self._append_metrics(record)
            folder = self._write_checkpoint(round_number, files, record, progress)
            self._publish_all(folder, arch, is_best=is_best)
            self._forget_old(keep)
        return record

    @contextmanager
    def _saving(self, what: str) -> Iterator[None]:
        """What the operating system says becomes one message with the way to go on."""
        try:
            yield
        except OSError as error:
            way = "Free space, or set run.output-dir to another disk, and start again"
            if self.checkpoints():
                way = f'The rounds before it are intact; free space and go on with resume="{self.path}"'
            raise RunFolderError(f"{what} could not be saved in {self.path}: {error}. {way}") from error

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
            write_json(scratch / STATE, state | {"sha256": digest(state)})
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
        with self._saving(f"the model of round {number}"):
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
        with self._saving("the best model"):
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
        """The lines of metrics, one a round. Raises as `read_records`."""
        return read_records(self.path)

    def rewind(self, round_number: int) -> list[dict[str, Any]]:
        """Drop lines of metrics after a round (they were written, their checkpoint was not); returns what is left."""
        if not (self.path / METRICS).is_file():
            return []
        kept = [record for record in self.records() if record["round"] <= round_number]
        self.write_text(METRICS, "".join(json.dumps(record) + "\n" for record in kept))
        return kept


def summary_time(path: Path) -> int:
    """When a run's summary was written, in ns: it is the last thing that a run does. 0 if it has none."""
    file = path / SUMMARY
    return file.stat().st_mtime_ns if file.is_file() else 0
