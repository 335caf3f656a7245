"""What a run folder holds for a report: its records, the round that is judged, and what that model says of the test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fedskew.config import Config
from fedskew.config.load import load_saved
from fedskew.learning.judging import best_record, evaluated
from fedskew.metrics import Predictions
from fedskew.runs.predictions import read_predictions
from fedskew.runs.reading import (
    CONFIG,
    MODEL,
    PREDICTIONS,
    SUMMARY,
    Change,
    RunFolderError,
    changes_in,
    read_object,
    read_records,
    read_split,
    read_starts,
)

ABOUT = "fedskew-about"  # `model.modelfile.ABOUT`, which cannot be had without torch
NEEDED = ("round", "accuracy", "parameters", "dense_parameters", "macs", "dense_macs", "bytes_down", "bytes_up")


@dataclass(frozen=True)
class Content:
    """A run as a report sees it.

    Attributes:
        name: of the folder.
        records: one a finished round.
        judged: the record of the round whose figures are shown: the last that was evaluated, or the best.
        predictions: of that round's model on the test set; None if they are not there any more, or never were.
        missing: why, and how to make them.
        about: what the model file says of itself; empty if it is not there.
    """

    path: Path
    name: str
    config: Config | None
    records: Sequence[Mapping[str, Any]]
    judged: Mapping[str, Any]
    predictions: Predictions | None
    missing: str
    summary: Mapping[str, Any]
    split: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any]

    @property
    def last(self) -> Mapping[str, Any]:
        """The record of the last finished round."""
        return self.records[-1]

    @property
    def rounds(self) -> int:
        """How many rounds the run is to have; those that it has where that is not on record."""
        return self.config.federation.rounds if self.config else int(self.last["round"])

    @property
    def is_finished(self) -> bool:
        """Whether its last round is done and its summary written."""
        return bool(self.summary) and self.summary.get("rounds") == self.last["round"] >= self.rounds

    @property
    def stopped(self) -> str:
        """Why it ended before its last round, if it said so."""
        return "" if self.is_finished else str(self.summary.get("stopped") or "")

    @property
    def criterion(self) -> str:
        """What it prunes by; `none` for plain averaging."""
        return self.config.prune.criterion if self.config else str(self.summary.get("method", ""))

    @property
    def changes(self) -> list[Change]:
        """What is another one since it was resumed."""
        return changes_in(self.starts)


def read_content(path: Path, *, best: bool = False) -> Content:
    """Everything that is said of a run.

    Args:
        best: show the best round's model instead of the last that was evaluated.

    Raises:
        RunFolderError: no run, no finished round, a damaged file, or nothing judged that could be the best.
        ConfigError, PredictionsError: those files are damaged.
    """
    records = read_records(path)
    if not records:
        raise RunFolderError(f"{path} holds no finished round yet; once one is finished there is something to report")
    for record in records:
        if absent := [key for key in NEEDED if key not in record]:
            raise RunFolderError(f"{path}: a line of metrics.jsonl has no {absent[0]}; it is no record of a round that "
                                 "this version reads")  # fmt: skip
    judged, predictions, missing = _judged(path, records, best=best)
    return Content(
        path=path,
        name=path.resolve().name,
        config=load_saved(path / CONFIG) if (path / CONFIG).is_file() else None,
        records=records,
        judged=judged,
        predictions=predictions,
        missing=missing,
        summary=read_object(path / SUMMARY),
        split=read_split(path),
        starts=read_starts(path),
        about=_about(path / MODEL),
    )


def _judged(
    path: Path, records: Sequence[Mapping[str, Any]], *, best: bool
) -> tuple[Mapping[str, Any], Predictions | None, str]:
    """The round to show, what its model says, and if that is not known why.

    After a round without evaluation the folder holds no predictions of its own. Those of the last evaluated round lie
    in its checkpoint, as long as that is kept; after that the best round's are the newest that there are.
    """
    by_round = {record["round"]: record for record in records}
    if best:
        wanted = best_record(records)
        if wanted is None:
            raise RunFolderError(f"no round of {path} was judged by images beside its test set, so none is the best")
        places = [path / "best"]
    else:
        known = evaluated(records)
        wanted = known[-1] if known else records[-1]
        places = [path, *sorted((path / "checkpoints").glob("round-*"), reverse=True), path / "best"]
    there = [read_predictions(place / PREDICTIONS) for place in places if (place / PREDICTIONS).is_file()]
    usable = [found for found in there if found.round_number in by_round and found.round_number <= wanted["round"]]
    if usable:
        found = max(usable, key=lambda one: one.round_number)
        return by_round[found.round_number], found, ""
    if wanted["accuracy"] is None:
        return wanted, None, "no round of this run was evaluated on the test set yet"
    option = " --best" if best else ""
    target = path / "best" / PREDICTIONS if best else path / PREDICTIONS
    return wanted, None, (
        f"what the model of round {wanted['round']} says of each test image is not in this folder (any more): earlier "
        "versions did not write it, and rounds without evaluation replace it. Of a run's present model, "
        f"fedskew evaluate {path.name}{option} --data-dir DIR --predictions {target.relative_to(path.parent)} makes it"
    )  # fmt: skip


def _about(model: Path) -> dict[str, Any]:
    """What a model file says of itself. Raises `RunFolderError` if it is damaged."""
    if not model.is_file():
        return {}
    try:
        with safe_open(model, framework="np") as file:
            found = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise RunFolderError(f"{model} is damaged ({error}); restore it from a copy of the run") from error
    return found if isinstance(found, dict) else {}
