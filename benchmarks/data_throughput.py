"""Training throughput from the data set against the same loop on random tensors.  Target: at least 0.9.

    python benchmarks/data_throughput.py

Full augmentation, the image cache on disk and warm. The random tensors are made beforehand.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from timing import finish, interleaved, median_ratio, options

from fedskew.config.schema import DataConfig, ModelConfig, TrainConfig
from fedskew.data.batches import Batch, ImageBatches
from fedskew.learning.datasets import batches, open_data
from fedskew.learning.local import augmentation
from fedskew.learning.train import train
from fedskew.model.catalogue import dense_architecture
from fedskew.model.fusion import build

TARGET = 0.9
CASES = (("swin_mini_patch4_window4_64", 32, 320), ("swin_small64_patch4_window4_64", 32, 128),
         ("swin_tiny_patch4_window7_224", 8, 16))  # fmt: skip
REPEATS = 5


class RandomBatches:
    """As many batches of the same shapes, ready in memory."""

    def __init__(self, like: ImageBatches) -> None:
        self._batches = [Batch(torch.randn_like(b.images), b.metadata, b.labels) for b in like]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""


def measure(name: str, batch: int, images: int, repeats: int) -> dict[str, Any]:
    """One epoch from the data set and one on random tensors, taking turns."""
    torch.manual_seed(0)
    arch = dense_architecture(ModelConfig(name=name))
    config = TrainConfig(batch_size=batch, precision="float32", device="cpu")
    data = open_data(DataConfig(source="generated", generated_images=max(50, images)), arch.image_size)
    real = batches(data, data.usable[:images], arch, batch_size=batch, seed=0, augmentation=augmentation(config))
    random = RandomBatches(real)
    model = build(arch)

    def epoch(source: Any) -> None:
        train(model, source, config, round_number=1, rounds=1, seed=0)

    seconds = interleaved({"data set": lambda: epoch(real), "random": lambda: epoch(random)}, repeats)
    return {
        "model": name,
        "batch": batch,
        "images/s from data": images / sorted(seconds["data set"])[repeats // 2],
        "images/s random": images / sorted(seconds["random"])[repeats // 2],
        "ratio": median_ratio(seconds["random"], seconds["data set"]),
        "target": TARGET,
    }


if __name__ == "__main__":
    asked = options(__doc__, "MODEL,BATCH,IMAGES", CASES, REPEATS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        os.environ["FEDSKEW_HOME"] = home
        finish("data_throughput", [measure(*case, asked.repeats) for case in asked.cases], asked.out)
