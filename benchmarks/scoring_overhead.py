"""Scoring and slicing all blocks against one plain forward pass of the same batch.  Target: at most 1.3.

The agreement of two halves' signs is in it. `prune.order=block` runs what is left of every half block once more.

python benchmarks/scoring_overhead.py
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from timing import finish, interleaved, median_ratio, options

from fedskew.config.schema import ModelConfig, PruneConfig
from fedskew.model.catalogue import dense_architecture
from fedskew.model.fusion import build
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.step import propose

TARGET = 1.3
CASES = (("swin_small64_patch4_window4_64", 128), ("swin_tiny_patch4_window7_224", 8))
REPEATS = 9
READINGS = (("mean", "step"), ("pool", "step"), ("per-window", "step"), ("pool", "block"))


def measure(name: str, batch: int, reading: str, order: str, repeats: int) -> dict[str, Any]:
    """One model and batch: medians of CPU seconds and of their ratio."""
    torch.manual_seed(0)
    arch, config = dense_architecture(ModelConfig(name=name)), PruneConfig(reading=reading, order=order)
    model = build(arch).eval()
    images = torch.randn(batch, 3, arch.image_size, arch.image_size)
    metadata = torch.zeros(batch, 3, dtype=torch.long)
    stages = tuple(range(arch.stages))

    def forward() -> None:
        with torch.no_grad():
            model(images, metadata)

    def step() -> None:
        plan = propose(model, images, config, stages, 0).plan
        slice_model(model.state_dict(), arch, plan)

    seconds = interleaved({"forward": forward, "step": step}, repeats)
    return {
        "model": name,
        "batch": batch,
        "reading": reading,
        "order": order,
        **{f"{case} s": statistics.median(values) for case, values in seconds.items()},
        "ratio": median_ratio(seconds["step"], seconds["forward"]),
        "target": TARGET if order == "step" else "",
    }


if __name__ == "__main__":
    asked = options(__doc__, "MODEL,BATCH", CASES, REPEATS)
    torch.set_num_threads(1)
    rows = [measure(*case, *reading, asked.repeats) for case in asked.cases for reading in READINGS]
    finish("scoring_overhead", rows, asked.out)
