"""Criteria at equal size, one shot, from one dense model: which units go is all that differs.

    python benchmarks/criteria_quick.py HAM10000 --work WORK --masks MASKS --minutes 8     # until it says "finished"

A dense model is trained once a seed (see `central`). Each criterion then cuts it to the same widths
(`prune.rule=budget`), and it is evaluated at once, fine-tuned for a short time and evaluated again. `random` cuts
several times, `dense` is the same model fine-tuned as long. Differences are paired, with 95 % intervals over lesions.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from central import FINAL, ONE_SHOT, UNFINISHED, Bench, Pause, cell, dense_model, in_points, parser, predictions_of
from timing import finish

from fedskew.data.masks import read_masks
from fedskew.metrics.paired import paired_over_seeds
from fedskew.model import cost
from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel, build
from fedskew.pruning.annotations import Annotations
from fedskew.pruning.criteria import CRITERIA
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.step import propose

RANDOM, DRAWS = "random", 3
COMPARED = ("balanced_accuracy", "auroc_macro")
Record = dict[str, Any]


def shares(arch: Architecture) -> Record:
    """What is left of the dense model."""
    dense = arch.dense()
    return {
        "parameters": round(cost.parameters(arch) / cost.parameters(dense), 4),
        "macs": round(cost.macs(arch).linear / cost.macs(dense).linear, 4),
    }


def pruned(
    bench: Bench, dense: MultimodalModel, seed: int, masks: Path | None, draw: int, **settings: Any
) -> tuple[MultimodalModel, Record]:
    """The dense model after one step, and what is left of it."""
    batch, names = bench.batch(dense, seed)
    config, arch = replace(bench.config.prune, **settings), dense.architecture
    inside = None
    if masks and config.criterion == "lesion-attention":
        inside = torch.from_numpy(read_masks(masks, names, image_size=arch.image_size, fit=bench.config.data.fit))
    known = Annotations(batch.labels, batch.metadata, inside)
    plan = propose(dense, batch.images, config, tuple(range(arch.stages)), draw, known=known).plan
    state, smaller = slice_model(dense.state_dict(), arch, plan)
    return build(smaller, state, drop_path=bench.config.model.drop_path), shares(smaller)


def unchanged(bench: Bench, dense: MultimodalModel) -> tuple[MultimodalModel, Record]:
    """A copy of the dense model, for the same fine-tuning."""
    copy = build(dense.architecture, dense.state_dict(), drop_path=bench.config.model.drop_path)
    return copy, shares(dense.architecture)


def cells(criteria: list[str], sizes: list[float]) -> list[tuple[str, int, Record]]:
    """Name, draw and settings of each, the smallest size first."""
    found = []
    for size in sorted(sizes):
        for criterion in criteria:
            for draw in range(DRAWS if criterion == RANDOM else 1):
                name = f"{criterion}{f'-{draw}' if criterion == RANDOM else ''}-{size:g}"
                found.append((name, draw, {"criterion": criterion, "rule": "budget", "min_parameters": size}))
    return found


def compared(bench: Bench, records: list[Record], when: str) -> list[Record]:
    """A row for each criterion and size: its mean over seeds, and what it has over random units of the same layers."""
    rows, keys = [], list(dict.fromkeys((record["size"], record["criterion"]) for record in records))
    for size, criterion in keys:
        own = [record for record in records if (record["size"], record["criterion"]) == (size, criterion)]
        row: Record = {"when": when, "size": size, "criterion": criterion, "models": len(own),
                       **{key: own[0][key] for key in ("parameters", "macs")}}  # fmt: skip
        for metric in COMPARED:
            row[metric] = round(sum(record[when][metric] for record in own) / len(own), 4)
            if found := against_random(bench, records, own, metric, when):
                row[f"{metric} over random"] = found
        rows.append(row)
    return rows


def against_random(bench: Bench, records: list[Record], own: list[Record], metric: str, when: str) -> Any:
    """See `in_points`: each model against all draws of its seed."""
    if own[0]["criterion"] in (RANDOM, "dense"):
        return None
    drawn = [record for record in records if record["criterion"] == RANDOM and record["size"] == own[0]["size"]]
    pairs = [(other, record) for record in own for other in drawn if other["seed"] == record["seed"]]
    if not pairs:
        return None
    first, second = ([predictions_of(bench, record, when) for record in side] for side in zip(*pairs, strict=True))
    found = paired_over_seeds(first, second, metric)
    return None if found is None else in_points(found)


def run(bench: Bench, asked: Any) -> list[Record]:
    """Every record; raises `Pause`."""
    records = []
    for seed in asked.seeds:
        dense = dense_model(bench, seed, asked.dense_epochs)

        whole = partial(unchanged, bench, dense)
        records.append({"criterion": "dense", "size": 1.0} | cell(bench, "dense", seed, asked.epochs, whole))
        for name, draw, settings in cells(asked.criteria, asked.sizes):
            make = partial(pruned, bench, dense, seed, asked.masks, draw, **settings)
            about = {"criterion": settings["criterion"], "size": settings["min_parameters"]}
            records.append(about | cell(bench, name, seed, asked.epochs, make))
    return records


def main() -> int:
    """Exit code 0 when all is done, `UNFINISHED` when the time was up."""
    options = parser(__doc__)
    options.add_argument("--sizes", type=float, nargs="+", default=[0.5, 0.15], help="shares of the dense parameters")
    options.add_argument("--criteria", nargs="+", default=[name for name in CRITERIA if name != "lesion-attention"])
    options.add_argument("--masks", type=Path, help="lesion masks, for the criterion lesion-attention, which joins")
    asked = options.parse_args()
    asked.criteria += ["lesion-attention"] if asked.masks else []
    bench = Bench.opened(asked)
    try:
        records = run(bench, asked)
    except Pause:
        return UNFINISHED
    rows = [row for when in (ONE_SHOT, FINAL) for row in compared(bench, records, when)]
    finish("criteria_quick", rows, asked.out)
    print("finished")
    return 0


if __name__ == "__main__" and (code := main()):
    sys.exit(code)
