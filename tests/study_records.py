"""Records of made-up runs, as a sweep or `fedskew records` leaves them."""

from __future__ import annotations

import json

import numpy as np
import yaml

from fedskew.metrics import Predictions, classification_metrics
from fedskew.runs.predictions import encode_predictions
from fedskew.runs.reading import PREDICTIONS

CLASSES = ("mel", "nv", "bcc")


def predictions(right, *, labels=(0, 0, 0, 1, 1, 1, 1, 2), lesions=None):
    """Of a model that is sure of every image, and right where `right` says so (else it takes the next class)."""
    labels = np.array(labels)
    chosen = np.where(np.array(right, dtype=bool), labels, (labels + 1) % len(CLASSES))
    names = [f"lesion{i}" for i in (range(len(labels)) if lesions is None else lesions)]
    return Predictions(
        images=np.array([f"image{i}" for i in range(len(labels))]),
        lesions=np.array(names),
        labels=labels,
        classes=CLASSES,
        probabilities=np.eye(len(CLASSES), dtype=np.float32)[chosen] * 0.7 + 0.1,
        round_number=2,
    )


def line(number=2, **values):
    """A line of metrics with round figures; dense costs are 1000 parameters and 5000 MACs."""
    return {
        "round": number, "accuracy": 0.5, "balanced_accuracy": 0.4, "f1_macro": 0.3, "auroc_macro": 0.8,
        "recall": {"mel": 0.25, "nv": 0.75, "bcc": None}, "parameters": 250, "dense_parameters": 1000, "macs": 1500,
        "dense_macs": 5000, "bytes_down_total": 400_000_000, "bytes_up_total": 2_500_000, "seconds": 3.0,
    } | values  # fmt: skip


def write_run(study, name, *, rounds=2, finished=True, found=None, stopped=None, **values):
    """A run folder; `found` gives its predictions, and the scores of its last line are then theirs."""
    folder = study / name
    folder.mkdir(parents=True)
    if found is not None:
        values = classification_metrics(found.labels, found.probabilities, found.classes) | values
        (folder / PREDICTIONS).write_bytes(encode_predictions(found))
    (folder / "config.yaml").write_text(yaml.safe_dump({"federation": {"rounds": rounds}}))
    last = rounds if finished else rounds - 1
    lines = [line(number) for number in range(last)] + [line(last, **values)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    if finished:
        (folder / "summary.json").write_text(json.dumps({"rounds": rounds, "stopped": stopped}))
    return folder
