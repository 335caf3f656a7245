"""What was pruned when, from a run's records: what each block had left after each round, and the scores behind it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HEADS, CHANNELS = "heads", "hidden"
SCORES = {"attention": HEADS, "mlp": CHANNELS}  # kind of a sublayer in a record → what it has left


@dataclass(frozen=True)
class Block:
    """One block of the encoder, `left[kind][i]` after the i-th finished round.

    Attributes:
        stage, number: of the block, from 0 on.
        dense: heads and hidden channels of the dense model.
    """

    stage: int
    number: int
    dense: Mapping[str, int]
    left: Mapping[str, list[int]] = field(default_factory=lambda: {HEADS: [], CHANNELS: []})

    @property
    def name(self) -> str:
        """`stage.block`, both from 0 on as in settings and in every other command."""
        return f"{self.stage}.{self.number}"


@dataclass(frozen=True)
class Step:
    """One pruning step: scores of the units that stayed and of those that went, by kind of sublayer.

    Attributes:
        kappa: agreement of two halves of the scoring images beyond chance, by kind, mean over units; absent where
            nothing could be told apart or the criterion looks at no images.
        kept, removed: scores of units; those that are no numbers are left out.
        gone: how many units went, by kind.
    """

    round_number: int
    kappa: Mapping[str, float]
    kept: Mapping[str, list[float]]
    removed: Mapping[str, list[float]]
    gone: Mapping[str, int]


def blocks_of(records: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Every block over all rounds; empty if no record says what blocks there are.

    A record without `blocks` (committed records leave out rounds in which none changed) is as the one before.
    """
    first: list[Mapping[str, Any]] = next((record["blocks"] for record in records if record.get("blocks")), [])
    found = [Block(row["stage"], row["block"], {HEADS: row["heads_before"], CHANNELS: row["hidden_before"]})
             for row in first]  # fmt: skip
    for record in records:
        rows = {(row["stage"], row["block"]): row for row in record.get("blocks", ())}
        for block in found:
            row = rows.get((block.stage, block.number), {})
            for kind, series in block.left.items():
                before = series[-1] if series else block.dense[kind]
                series.append(row.get(f"{kind}_after", before))
    return found


def steps_of(records: Sequence[Mapping[str, Any]]) -> list[Step]:
    """Every round in which units were scored or removed.

    Which units went is not on record, but every rule takes the lowest scores of a sublayer first (`pruning.decide`),
    and what is no number before all others.
    """
    found = []
    for record in records:
        kept: dict[str, list[float]] = defaultdict(list)
        removed: dict[str, list[float]] = defaultdict(list)
        gone: dict[str, int] = defaultdict(int)
        for row in record.get("blocks", ()):
            for kind, what in SCORES.items():
                _add_sublayer(row, kind, what, kept, removed, gone)
        if kept or removed or any(gone.values()):
            signs = record.get("sign_agreement") or []
            found.append(Step(record["round"], _kappa(signs), dict(kept), dict(removed), dict(gone)))
    return found


def _add_sublayer(
    row: Mapping[str, Any], kind: str, what: str, kept: dict[str, list[float]], removed: dict[str, list[float]],
    gone: dict[str, int],
) -> None:  # fmt: skip
    before, after = row[f"{what}_before"], row[f"{what}_after"]
    scores = row.get(f"{kind}_scores")
    if not scores:
        gone[kind] += before - after  # heads, or channels where their bundles are not on record
        return
    count = round((before - after) / (before / len(scores)))  # a unit of an MLP is a bundle of channels
    gone[kind] += count
    ranked = sorted(scores, key=lambda score: -math.inf if score is None else score)
    removed[kind] += [score for score in ranked[:count] if score is not None]
    kept[kind] += [score for score in ranked[count:] if score is not None]


def _kappa(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for kind in SCORES:
        told = [(row["units"], row["kappa"]) for row in rows if row["kind"] == kind and row["kappa"] is not None]
        if told:
            found[kind] = sum(units * kappa for units, kappa in told) / sum(units for units, _ in told)
    return found
