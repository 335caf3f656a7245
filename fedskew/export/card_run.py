"""What a model card says of a run, out of its folder: data, whose data, and how good the model is on test images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedskew.config.load import load_saved
from fedskew.config.schema import Config
from fedskew.data.samples import UNKNOWN, Sample
from fedskew.files import file_sha256
from fedskew.metrics import Predictions, classification_metrics
from fedskew.runs.folder import CONFIG, METRICS, SPLIT, RunFolder, RunFolderError
from fedskew.runs.predictions import read_predictions
from fedskew.runs.reading import IN, PREDICTIONS
from fedskew.tools.evaluate import config_beside
from fedskew.tools.participation import RoundShares, read_participation, sites_of

AGES = ((0, "under 30"), (30, "30 to 49"), (50, "50 to 69"), (70, "70 and over"))  # from how many years on


@dataclass(frozen=True)
class RunFacts:
    """A run folder as a model card sees it.

    Attributes:
        rounds: what became of every site; None where an earlier version did not record it.
        predictions: of the exported model on the test images; None if they are not there, or of another model.
    """

    folder: Path
    config: Config
    records: Sequence[Mapping[str, Any]]
    split: Mapping[str, Any]
    rounds: Sequence[RoundShares] | None
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
    recorded = all("participation" in record for record in records)
    predictions = read_predictions(file) if file.is_file() else None
    if predictions is not None and predictions.model not in ("", file_sha256(model)):
        predictions = None
    return RunFacts(folder, load_saved(folder / CONFIG), records, split,
                    read_participation(folder) if recorded else None, predictions)  # fmt: skip


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
    if run is None or run.rounds is None:
        return {"line": "Whose data is in this model is not on record.", "sites": []}
    rounds = [row for row in run.rounds if row.number <= last]
    if not rounds:
        return {"line": "No site's data is in it: it is the model that the server began with.", "sites": []}
    rows = [_site(site, rounds) for site in sites_of(rounds)]
    whole = sum(row["count"] == len(rounds) for row in rows)
    none = [row["name"] for row in rows if not row["count"]]
    kept = sum(bool(row.kept) for row in rounds)
    line = f"{whole} of {len(rows)} sites are in every one of the {len(rounds)} rounds"
    line += f"; never in it: {', '.join(none)}" if none else ""
    line += f"; {kept} rounds were not accepted and changed nothing" if kept else ""
    return {"line": f"{line}.", "sites": rows}


def _site(site: str, rounds: Sequence[RoundShares]) -> dict[str, Any]:
    told = [row.shares[site] for row in rounds if site in row.shares]
    count = sum(share.outcome == IN for share in told)
    words: dict[str, int] = {}
    for share in told:
        if share.outcome != IN:
            words[share.outcome] = words.get(share.outcome, 0) + 1
    absent = len(rounds) - len(told)
    others = [f"{word} {number}" for word, number in words.items()] + ([f"not asked {absent}"] if absent else [])
    return {"name": site, "count": count, "part": f"{count} of {len(rounds)}", "not_in": ", ".join(others) or "–"}


def quality(run: RunFacts | None, samples: Sequence[Sample]) -> dict[str, Any]:
    """`line`, `classes`, `groups` and `calibration` of a card.

    Args:
        samples: of the data set that the export was checked on; what they tell of a test image makes its groups.
    """
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
        "groups": list(_groups(found, samples)),
        "calibration": _three(metrics["expected_calibration_error"]),
    }


def _class(name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    images, recall = metrics["support"][name], metrics["recall"][name]
    return {"name": name, "images": images, "found": 0 if recall is None else round(recall * images),
            "recall": _three(recall), "auroc": _three(metrics["auroc"][name])}  # fmt: skip


def _groups(found: Predictions, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    known = {sample.image_id: (sample.site, sample.sex, _band(sample.age)) for sample in samples}
    shown = [known.get(image, (None, None, None)) for image in found.images.tolist()]
    for kind, values in zip(("site", "sex", "age"), zip(*shown, strict=True), strict=True):
        column = np.array([value or UNKNOWN for value in values])
        names = set(column.tolist())
        for name in sorted(names, key=_place) if names != {UNKNOWN} else ():
            part = column == name
            metrics = classification_metrics(found.labels[part], found.probabilities[part], found.classes)
            yield {"kind": kind, "name": name, "images": int(part.sum()),
                   "classes": sum(count > 0 for count in metrics["support"].values()),
                   "accuracy": _three(metrics["accuracy"]),
                   "balanced": _three(metrics["balanced_accuracy"])}  # fmt: skip


def _band(years: float | None) -> str | None:
    return next((name for start, name in reversed(AGES) if years is not None and years >= start), None)


def _place(name: str) -> tuple[bool, int, str]:
    """Bands of ages in their order, what is unknown last."""
    bands = [band for _, band in AGES]
    return name == UNKNOWN, bands.index(name) if name in bands else 0, name


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
