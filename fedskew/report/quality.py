"""How good a model is, as a report says it: values with intervals from predictions; without them, from the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedskew.metrics.calibration import ReliabilityBin, reliability
from fedskew.metrics.groups import Estimate, GroupResult, by_group, estimates
from fedskew.report.content import Content

HEADLINE = (
    ("balanced_accuracy", "Balanced accuracy", "mean of the recalls of all classes: rare ones count as much as common"),
    ("accuracy", "Accuracy", "share of the images whose likeliest class is right: common classes count most"),
    ("f1_macro", "Macro F1", "mean over the classes of F1, which false alarms lower too"),
    ("auroc_macro", "AUROC", "how well each class is told from the rest at any threshold, mean over the classes"),
)
# HAM10000's and ISIC's short names, for readers who are no dermatologists
TITLES = {
    "mel": "melanoma", "nv": "melanocytic naevus", "bcc": "basal cell carcinoma", "bkl": "benign keratosis",
    "akiec": "actinic keratosis, Bowen's disease", "ak": "actinic keratosis", "df": "dermatofibroma",
    "vasc": "vascular lesion", "scc": "squamous cell carcinoma",
}  # fmt: skip
KINDS = {"site": "Hospital site", "sex": "Sex", "age": "Age"}


@dataclass(frozen=True)
class Figure:
    """A metric for a person; the interval is None where predictions are missing."""

    name: str
    title: str
    meaning: str
    value: float | None
    estimate: Estimate | None


@dataclass(frozen=True)
class ClassResult:
    """One class of the test set: `images` None where the record does not say."""

    name: str
    title: str
    images: int | None
    lesions: int | None
    found: int | None
    recall: float | None
    recall_range: Estimate | None
    auroc: float | None
    auroc_range: Estimate | None


@dataclass(frozen=True)
class Quality:
    """See the module. `confusion` is [label, prediction]; it and what follows are None or empty without predictions."""

    round_number: int
    images: int | None
    lesions: int | None
    headline: Sequence[Figure]
    classes: Sequence[ClassResult]
    calibration_error: float | None
    confusion: np.ndarray | None
    bins: Sequence[ReliabilityBin]
    groups: Mapping[str, Sequence[GroupResult]]


def quality_of(content: Content) -> Quality | None:
    """What there is to say; None if no round was evaluated."""
    record, given = content.judged, content.predictions
    if record["accuracy"] is None:
        return None
    ranges = estimates(given) if given else {}
    headline = [Figure(name, title, meaning, record.get(name), ranges.get(name)) for name, title, meaning in HEADLINE]
    return Quality(
        round_number=record["round"],
        images=record.get("examples"),
        lesions=len(np.unique(given.lesions)) if given else None,
        headline=headline,
        classes=_classes(content, ranges),
        calibration_error=record.get("expected_calibration_error"),
        confusion=_confusion(content) if given else None,
        bins=reliability(given.labels, given.probabilities) if given else (),
        groups=_groups(by_group(given)) if given else {},
    )


def _classes(content: Content, ranges: Mapping[str, Estimate]) -> list[ClassResult]:
    record, given = content.judged, content.predictions
    recall, areas, support = (record.get(key) or {} for key in ("recall", "auroc", "support"))
    rows = []
    for name in recall:
        own = given.labels == given.classes.index(name) if given and name in given.classes else None
        images = int(own.sum()) if own is not None else support.get(name)
        found = None if images is None or recall[name] is None else round(recall[name] * images)
        lesions = len(np.unique(given.lesions[own])) if given and own is not None else None
        rows.append(ClassResult(
            name, TITLES.get(name, ""), images, lesions, found, recall[name], ranges.get(f"recall.{name}"),
            areas.get(name), ranges.get(f"auroc.{name}"),
        ))  # fmt: skip
    return rows


def _confusion(content: Content) -> np.ndarray:
    given = content.predictions
    assert given is not None
    table = np.zeros((len(given.classes), len(given.classes)), dtype=int)
    np.add.at(table, (given.labels, given.probabilities.argmax(1)), 1)
    return table


def _groups(rows: Sequence[GroupResult]) -> dict[str, list[GroupResult]]:
    """By kind, under its title."""
    found = {title: [row for row in rows if row.kind == kind] for kind, title in KINDS.items()}
    return {title: of for title, of in found.items() if of}
