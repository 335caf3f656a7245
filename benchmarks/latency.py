"""Latency of a pruned model over that of the dense one, against the ratio of their MACs.  Target: at most 1.15 times.

    python benchmarks/latency.py

One image at a time, one thread. The pruned shapes are what skewness leaves of random weights, down to half the MACs;
`fixed` is the share of the dense latency that no pruning of heads and channels removes (one head and one MLP group
left in every block).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from timing import finish, interleaved, median_ratio, options

from fedskew.config.schema import ModelConfig, PruneConfig
from fedskew.model.architecture import Architecture
from fedskew.model.catalogue import dense_architecture
from fedskew.model.cost import macs
from fedskew.model.fusion import MultimodalModel, build
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.step import propose

TARGET = 1.15
CASES = (("swin_tiny_patch4_window7_224", 4, 15), ("swin_small64_patch4_window4_64", 32, 60))
ALIGN = (1, 8)
SHARE = 0.5  # of the dense MACs


def pruned(model: MultimodalModel, batch: int, align: int, steps: int = 4) -> MultimodalModel:
    """What some skewness steps over all stages leave, not below half of the MACs."""
    arch = model.architecture
    config = PruneConfig(align=align, min_macs=SHARE)
    images, _ = inputs(arch, batch)
    for step in range(steps):
        plan = propose(model, images, config, tuple(range(arch.stages)), step).plan
        state, arch = slice_model(model.state_dict(), arch, plan)
        model = build(arch, state).eval()
    return model


def smallest(arch: Architecture) -> Architecture:
    """One head and four hidden channels in every block."""
    return arch.with_left({key: (0,) if group.numbered else 4 for key, group in arch.groups.items()})


def inputs(arch: Architecture, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images [B, 3, S, S] and metadata [B, 3]."""
    images = torch.randn(batch, 3, arch.image_size, arch.image_size)
    return images, torch.zeros(batch, len(arch.vocabularies), dtype=torch.long)


def forward(model: MultimodalModel, calls: int) -> Callable[[], None]:
    """Some forward passes of one image."""
    images, metadata = inputs(model.architecture, 1)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(calls):
                model(images, metadata)

    return run


def measure(name: str, batch: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each alignment."""
    torch.manual_seed(0)
    dense = build(dense_architecture(ModelConfig(name=name))).eval()
    models = {"dense": dense, "fixed": build(smallest(dense.architecture)).eval()}
    models |= {f"align {align}": pruned(dense, batch, align) for align in ALIGN}
    calls = max(1, repeats // 15)
    seconds = interleaved({label: forward(model, calls) for label, model in models.items()}, repeats)
    whole, rows = macs(dense.architecture), []
    for align in ALIGN:
        left = macs(models[f"align {align}"].architecture)
        latency = median_ratio(seconds[f"align {align}"], seconds["dense"])
        rows.append(
            {
                "model": name,
                "align": align,
                "dense ms": statistics.median(seconds["dense"]) / calls * 1e3,
                "latency": latency,
                "MACs": left.linear / whole.linear,
                "MACs total": left.total / whole.total,
                "latency/MACs": latency / (left.linear / whole.linear),
                "latency/MACs total": latency / (left.total / whole.total),
                "fixed": median_ratio(seconds["fixed"], seconds["dense"]),
                "target": TARGET,
            }
        )
    return rows


if __name__ == "__main__":
    asked = options(__doc__, "MODEL,BATCH,REPEATS", CASES)
    torch.set_num_threads(1)
    finish("latency", [row for case in asked.cases for row in measure(*case)], asked.out)
