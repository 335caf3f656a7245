"""What a model card says of a run, out of its folder: data, whose data, and how good the model is on test images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedskew.config.load import load_saved
from fedskew.config.schema import Config
from fedskew.files import file_sha256
from fedskew.metrics import Predictions, classification_metrics
from fedskew.metrics.groups import OF_GROUPS, Estimate, by_group
from fedskew.report.coverage import NOT_ON_RECORD, SiteRow, coverage_of
from fedskew.runs.folder import CONFIG, METRICS, SPLIT, RunFolder, RunFolderError
from fedskew.runs.predictions import read_predictions
from fedskew.runs.reading import PREDICTIONS
from fedskew.tools.evaluate import config_beside


@dataclass(frozen=True)
class RunFacts:
    """A run folder as a model card sees it.

    Attributes:
        predictions: of the exported model on the test images; None if they are not there, or of another model.
    """

    folder: Path
    config: Config
    records: Sequence[Mapping[str, Any]]
    split: Mapping[str, Any]
    predictions: Predictions | None

    @property
    def unfinished(self) -> str:
        """How far the run has come; empty for one that is through."""
        done, wanted = self.records[-1]["round"], self.config.federation.rounds
        if done >= wanted:
            return ""
        return f"the run is unfinished, {done} of {wanted} rounds: this model has not been trained to its end"


def read_run(model: Path, *, best: bool) -> RunFacts | None:
    """The run that a model file lies in; None for a file elsewhere.

    Raises:
        RunFolderError, ConfigError, PredictionsError: a file of the run is damaged.
    """
    beside = config_beside(model, best=best)
    if not beside.is_file():
        return None
    folder, file = beside.parent, model.parent / PREDICTIONS
    records = _read(folder / METRICS, RunFolder(folder).records)
    if not records:
        raise RunFolderError(f"{folder} holds no finished round; export it when the first one is done")
    split = _read(folder / SPLIT, lambda: json.loads((folder / SPLIT).read_text(encoding="utf-8")))
    predictions = read_predictions(file) if file.is_file() else None
    if predictions is not None and predictions.model not in ("", file_sha256(model)):
        predictions = None
    return RunFacts(folder, load_saved(folder / CONFIG), records, split, predictions)


def _read(file: Path, read: Any) -> Any:
    try:
        return read()
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{file} is damaged or missing ({error}); without it nothing says what is in the model"
        ) from None


def data_lines(run: RunFacts | None) -> list[str]:
    """What a run trained and tests on, without the place of the data."""
    if run is None:
        return ["Not on record: the model file was exported without its run folder."]
    settings, counts = run.config.data, run.split["counts"]
    parts = [len(part) for part in run.split["ids"]["parts"]]
    kind = {"generated": "images that a program drew", "folder": "a data set in a folder or archive"}[settings.source]
    total = {part: sum(found.values()) for part, found in counts.items() if part != "parts"}
    lines = [
        f"Of the server: {kind}; {total['test']} test images and {total['open']} open ones, on which units were scored "
        f"({len(run.split['held_back'])} of them held back to judge rounds).",
        f"Of each class in the test set: {', '.join(f'{name} {count}' for name, count in counts['test'].items())}.",
        f"Split by {(unit := run.split['unit'])}, seed {run.split['seed']}: images of one {unit} are in one part only.",
    ]
    if settings.clients == "own":
        return [*lines, "Sites trained on their own images, whose number they need not tell."]
    how = f"{settings.partition}" + (f" with alpha {settings.alpha:g}" if settings.partition == "dirichlet" else "")
    return [
        *lines,
        f"{len(parts)} simulated sites share {sum(parts)} other images ({how}): {', '.join(map(str, parts))}.",
    ]


def coverage(run: RunFacts | None, last: int) -> dict[str, Any]:
    """`line` and `sites`: whose updates are in the model, in how many rounds, and what became of the others.

    Args:
        last: the round that the model is of.
    """
    found = coverage_of(run.folder, last) if run else NOT_ON_RECORD
    return {"line": found.line, "sites": [_site(row, len(found.rounds)) for row in found.sites]}


def _site(row: SiteRow, rounds: int) -> dict[str, str]:
    others = [f"{word} {count}" for word, count in row.words.items()]
    others += [f"not asked {rounds - row.rounds}"] if row.rounds < rounds else []
    return {"name": row.name, "part": f"{row.contributed} of {rounds}", "not_in": ", ".join(others) or "–"}


def quality(run: RunFacts | None) -> dict[str, Any]:
    """`line`, `classes`, `groups` and `calibration` of a card."""
    if run is None or run.predictions is None:
        why = "no run folder was given" if run is None else "its predictions were not kept in the run folder"
        return {"line": f"Not on record for this model: {why}.", "classes": [], "groups": [], "calibration": ""}
    found = run.predictions
    metrics = classification_metrics(found.labels, found.probabilities, found.classes)
    figures = ("balanced_accuracy", "accuracy", "f1_macro", "auroc_macro")
    told = ", ".join(f"{name.replace('_', ' ')} {_three(metrics[name])}" for name in figures)
    return {
        "line": f"In float32, on the {metrics['examples']} test images of the run, which trained nothing: {told}.",
        "classes": [_class(name, metrics) for name in found.classes],
        "groups": list(_groups(found)),
        "calibration": _three(metrics["expected_calibration_error"]),
    }


def _class(name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    images, recall = metrics["support"][name], metrics["recall"][name]
    return {"name": name, "images": images, "found": 0 if recall is None else round(recall * images),
            "recall": _three(recall), "auroc": _three(metrics["auroc"][name])}  # fmt: skip


def _groups(found: Predictions) -> Iterator[dict[str, Any]]:
    for row in by_group(found):
        accuracy, balanced = (row.metrics[name] for name in OF_GROUPS)
        yield {"kind": row.kind, "name": row.name, "images": row.images, "classes": row.classes,
               "accuracy": _range(accuracy), "balanced": _range(balanced)}  # fmt: skip


def _range(found: Estimate) -> str:
    return f"{_three(found.value)} ({_three(found.low)}–{_three(found.high)})"


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
