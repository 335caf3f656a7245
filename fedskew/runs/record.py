"""One line of metrics.jsonl: everything that is known about a finished round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedskew.files import DamagedFileError, read_json_lines
from fedskew.model import cost
from fedskew.model.architecture import Architecture
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.pruning.agreement import SignTable
from fedskew.pruning.score import sign_tables
from fedskew.pruning.step import StepResult

# What became of a site in a round's training phase.
IN = "in"  # its update is in the new global model
UNUSED = "unused"  # a good answer that is not: the round was not accepted, or the aggregation took another's
LATE = "late"  # it was asked, and no answer came in time
MISSING = "missing"  # it was not connected, or vanished
REFUSED = "refused"  # its answer was set aside
FAILED = "failed"  # it answered that it did not do the task
OUTCOMES = (IN, UNUSED, LATE, MISSING, REFUSED, FAILED)


@dataclass
class RoundLog:
    """What the strategy notes while a round runs."""

    number: int
    bytes_down: int = 0
    bytes_up: int = 0
    ok: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # node → reason
    participation: dict[str, str] = field(default_factory=dict)  # node → one of OUTCOMES
    weights: dict[str, int] = field(default_factory=dict)  # node → what its update weighs in the new global model
    notes: dict[str, list[str]] = field(default_factory=dict)  # node → what it reported
    # None in both of these: the site's policy suppresses a number that is made from too few images
    nodes: dict[str, dict[str, float | None]] = field(default_factory=dict)  # node → its metrics
    class_counts: dict[str, dict[str, int | None]] = field(default_factory=dict)  # node → training images of each class
    audit: dict[str, dict[str, Any]] = field(default_factory=dict)  # site → where its audit log stood
    train_loss: float | None = None
    validation: dict[str, float] | None = None
    seconds_training: float = 0.0
    seconds_scoring: float = 0.0
    seconds_evaluation: float = 0.0
    seconds: float = 0.0
    kept_model: bool = False  # the global model is the one of the round before: below the quorum, or rolled back
    rolled_back: str | None = None  # why the nodes' work of this round was undone
    no_effect: str | None = None  # why a robust aggregation would have protected from nobody
    limited: dict[str, dict[str, int]] = field(default_factory=dict)  # node → its examples, and what it weighed
    norms: dict[str, float] = field(default_factory=dict)  # node → 2-norm of its update, also of one set aside
    strangers: list[str] = field(default_factory=list)  # answers that are nobody's, or not of whom they name
    step: StepResult | None = None
    before: Architecture | None = None


def round_record(
    log: RoundLog, arch: Architecture, metrics: Mapping[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON-ready line of a round.

    Args:
        metrics: on the test set; all None in a round without evaluation.
        more: the running sums, and what the round was judged by.
    """
    return {
        "round": log.number,
        **metrics,
        **sizes(arch),
        **{f"dense_{name}": value for name, value in sizes(arch.dense()).items()},
        "bytes_down": log.bytes_down,
        "bytes_up": log.bytes_up,
        **more,
        "clients_ok": len(log.ok),
        "clients_failed": len(log.failed),
        "failed": log.failed,
        "participation": dict(sorted(log.participation.items())),
        "weights": dict(sorted(log.weights.items())),
        "kept_model": log.kept_model,
        "rolled_back": log.rolled_back,
        "no_effect": log.no_effect,
        "limited": log.limited,
        "norms": {name: float(f"{norm:.4g}") for name, norm in sorted(log.norms.items())},
        "strangers": log.strangers,
        "train_loss": log.train_loss,
        "validation": log.validation,
        "nodes": log.nodes,
        "notes": log.notes,
        "class_counts": log.class_counts,
        **({"audit": log.audit} if log.audit else {}),
        "seconds": round(log.seconds, 3),
        "seconds_training": round(log.seconds_training, 3),
        "seconds_scoring": round(log.seconds_scoring, 3),
        "seconds_evaluation": round(log.seconds_evaluation, 3),
        "given_back": log.step.given_back if log.step else 0,
        "sign_agreement": sign_rows(sign_tables(log.step.scored)) if log.step else [],
        "blocks": _blocks(log.before or arch, arch, log.step),
    }


FIELDS: Mapping[tuple[type, ...], tuple[str, ...]] = {  # what a line that is read back may hold
    (int,): (
        "parameters", "macs", "macs_total", "memory_bytes", "dense_parameters", "dense_macs", "dense_macs_total",
        "dense_memory_bytes", "bytes_down", "bytes_up", "bytes_down_total", "bytes_up_total", "model_bytes",
        "clients_ok", "clients_failed", "given_back",
    ),
    (int, float): ("seconds", "seconds_training", "seconds_scoring", "seconds_evaluation"),
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


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines that `round_record` made; versions differ in their fields.

    Raises:
        DamagedFileError: they are not what a run writes.
    """
    records = read_json_lines(path)
    for number, record in enumerate(records, start=1):
        if reason := _wrong_field(record):
            raise DamagedFileError(f"{path}, line {number} is damaged: {reason}")
    return records


def _wrong_field(record: Mapping[str, Any]) -> str:
    """What in a line is not of the kind that a run writes; empty if all is."""
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


def sizes(arch: Architecture) -> dict[str, int]:
    """Parameters, multiply-accumulates of an image without and with attention products, bytes in float32."""
    macs = cost.macs(arch)
    return {
        "parameters": cost.parameters(arch),
        "macs": macs.linear,
        "macs_total": macs.total,
        "memory_bytes": cost.memory_bytes(arch),
    }


def sign_rows(tables: Mapping[tuple[int, str], SignTable]) -> list[dict[str, Any]]:
    """How two disjoint halves of the scoring images judge the units, JSON-ready, a row for each stage and kind.

    `share` of the `units` has the same sign in both; `chance` is that share for independent judgements which keep as
    many, `kappa` the part of the way from chance to 1 (None if nothing is told apart). A half has half the images, so
    the signs of all of them are more stable than this. No rows: nothing was pruned, the criterion does not look at
    images (every half would give the same scores), or there was only one image.
    """
    return [
        {
            "stage": stage,
            "kind": kind,
            "units": table.units,
            "share": round(table.share, 4),
            "chance": round(table.chance, 4),
            "kappa": None if table.kappa is None else round(table.kappa, 4),
        }
        for (stage, kind), table in tables.items()
    ]


def _blocks(before: Architecture, after: Architecture, step: StepResult | None) -> list[dict[str, Any]]:
    rows = []
    for stage, block in after.blocks:
        heads, channels = SublayerKey(stage, block, ATTENTION), SublayerKey(stage, block, MLP)
        row: dict[str, Any] = {
            "stage": stage,
            "block": block,
            "heads_before": before.units[heads],
            "heads_after": after.units[heads],
            "hidden_before": before.units[channels],
            "hidden_after": after.units[channels],
        }
        if step:
            for key in (heads, channels):
                scores = step.plan.scores.get(key)
                if scores is not None:
                    row[f"{key.kind}_scores"] = [_short(score) for score in scores.tolist()]
        rows.append(row)
    return rows


def _short(score: float) -> float | None:
    """Four significant digits; None for a unit whose norms are constant (JSON knows no NaN)."""
    return float(f"{score:.4g}") if score == score and abs(score) != float("inf") else None
