"""One line of metrics.jsonl: everything that is known about a finished round."""

from __future__ import annotations

import logging
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

log = logging.getLogger("flwr.fedskew.server")


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
    pruning_undone: str | None = None  # why what pruning left of this round's model was not taken
    no_effect: str | None = None  # why a robust aggregation would have protected from nobody
    limited: dict[str, dict[str, int]] = field(default_factory=dict)  # node → its examples, and what it weighed
    norms: dict[str, float] = field(default_factory=dict)  # node → 2-norm of its update, also of one set aside
    strangers: list[str] = field(default_factory=list)  # answers that are nobody's, or not of whom they name
    step: StepResult | None = None
    distillation: TrainResult | None = None  # of the server, see `methods.distillation`
    before: Architecture | None = None

    def undo_step(self, reason: str) -> None:
        """Note and log that what the server made of the round's average was not taken."""
        self.pruning_undone = reason
        if self.step:
            self.step = self.step.given_up()
        log.warning(
            "round %d: what pruning leaves must not be taken, so nothing is cut: %s. If every round says so and no "
            "site is to blame: prune.rollback gives units back, a lower prune.max-share cuts less at a time",
            self.number, reason,
        )  # fmt: skip


def round_record(
    note: RoundLog, arch: Architecture, metrics: Mapping[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON-ready line of a round.

    Args:
        metrics: on the test set; all None in a round without evaluation.
        more: the running sums, and what the round was judged by.
    """
    return {
        "round": note.number,
        **metrics,
        **sizes(arch),
        **{f"dense_{name}": value for name, value in sizes(arch.dense()).items()},
        "bytes_down": note.bytes_down,
        "bytes_up": note.bytes_up,
        **more,
        "clients_ok": len(note.ok),
        "clients_failed": len(note.failed),
        "failed": note.failed,
        "participation": dict(sorted(note.participation.items())),
        "weights": dict(sorted(note.weights.items())),
        "kept_model": note.kept_model,
        "rolled_back": note.rolled_back,
        "pruning_undone": note.pruning_undone,
        "no_effect": note.no_effect,
        "limited": note.limited,
        "norms": {name: float(f"{norm:.4g}") for name, norm in sorted(note.norms.items())},
        "strangers": note.strangers,
        "train_loss": note.train_loss,
        "validation": note.validation,
        "nodes": note.nodes,
        "notes": note.notes,
        "class_counts": note.class_counts,
        **({"audit": note.audit} if note.audit else {}),
        "seconds": round(note.seconds, 3),
        "seconds_training": round(note.seconds_training, 3),
        "seconds_scoring": round(note.seconds_scoring, 3),
        "seconds_evaluation": round(note.seconds_evaluation, 3),
        **({"distillation": _distilled(note.distillation)} if note.distillation else {}),
        "given_back": note.step.given_back if note.step else 0,
        "sign_agreement": sign_rows(sign_tables(note.step.scored)) if note.step else [],
        "blocks": _blocks(note.before or arch, arch, note.step),
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
