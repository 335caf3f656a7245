"""One line of metrics.jsonl: everything that is known about a finished round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedskew.learning.train import TrainResult
from fedskew.model import cost
from fedskew.model.architecture import Architecture
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.pruning.agreement import SignTable
from fedskew.pruning.score import sign_tables
from fedskew.pruning.step import StepResult


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
    distillation: TrainResult | None = None  # of the server, see `methods.distillation`
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
        **({"distillation": _distilled(log.distillation)} if log.distillation else {}),
        "given_back": log.step.given_back if log.step else 0,
        "sign_agreement": sign_rows(sign_tables(log.step.scored)) if log.step else [],
        "blocks": _blocks(log.before or arch, arch, log.step),
    }


def _distilled(result: TrainResult) -> dict[str, float]:
    return {"loss": round(result.loss, 6), "first_loss": round(result.first_loss, 6), "steps": result.steps,
            "seconds": round(result.seconds, 3)}  # fmt: skip


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
