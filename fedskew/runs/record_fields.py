"""Of what kind the fields of a line of metrics.jsonl are: a run folder may come from anybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS: Mapping[tuple[type, ...], tuple[str, ...]] = {  # what a line that is read back may hold
    (int, float): (
        "parameters", "macs", "macs_total", "memory_bytes", "dense_parameters", "dense_macs", "dense_macs_total",
        "dense_memory_bytes", "bytes_down", "bytes_up", "bytes_down_total", "bytes_up_total", "model_bytes",
        "clients_ok", "clients_failed", "given_back", "seconds", "seconds_training", "seconds_scoring",
        "seconds_evaluation",
    ),
    (int, float, type(None)): (
        "train_loss", "loss", "accuracy", "balanced_accuracy", "f1_macro", "auroc_macro", "expected_calibration_error",
        "melanoma_specificity",
    ),
    (dict,): (
        "failed", "participation", "weights", "limited", "norms", "nodes", "notes", "class_counts", "audit",
    ),
    (dict, type(None)): ("validation", "held_back", "selection", "recall", "auroc", "support"),
    (list,): ("strangers", "sign_agreement", "blocks"),
}  # fmt: skip


def wrong_field(record: Mapping[str, Any]) -> str:
    """What in a line of `record.round_record` is not of the kind that a run writes; empty if all is."""
    number = record.get("round")
    if type(number) is not int or number < 0:
        return f"its round is {number!r:.40}"
    wrong = (
        f"its {name} is {record[name]!r:.40}"
        for kinds, names in FIELDS.items()
        for name in names
        if name in record and type(record[name]) not in kinds
    )
    return next(wrong, "")
