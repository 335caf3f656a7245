"""Local training against the same model's bare forward and backward pass on a resident batch.  Target: at least 0.95.

    python benchmarks/training_step.py

Local training is all that a node does in a round: batches from the image cache with full augmentation, the loss of the
recipe, clipping, AdamW. The bare pass has none of it. Both use bfloat16 autocast.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch
from timing import finish, interleaved, median_ratio, options

from fedskew.config.schema import DataConfig, ModelConfig, TrainConfig
from fedskew.learning.datasets import open_data
from fedskew.learning.local import Trainer, training_batches
from fedskew.learning.train import autocast
from fedskew.model.catalogue import dense_architecture
from fedskew.model.fusion import build

TARGET = 0.95
CASES = (("swin_small64_patch4_window4_64", 32, 256), ("swin_small64_patch4_window4_64", 64, 256),
         ("swin_tiny_patch4_window7_224", 8, 24))  # fmt: skip
REPEATS = 7


def measure(name: str, batch: int, images: int, repeats: int) -> dict[str, Any]:
    """An epoch of local training, and as many bare passes, taking turns."""
    torch.manual_seed(0)
    arch = dense_architecture(ModelConfig(name=name))
    config = TrainConfig(batch_size=batch, precision="bfloat16", device="cpu", logit_adjustment=1.0)
    data = open_data(DataConfig(source="generated", generated_images=max(50, images)), arch.image_size)
    trainer = Trainer(data, data.usable[:images], config, seed=0, round_number=1, rounds=1)
    source = training_batches(data, trainer.images, arch, config, trainer.seed)
    model, resident = build(arch).train(), next(iter(source))

    def local() -> None:
        trainer.train(model)

    def bare() -> None:
        for _ in range(len(source)):
            with autocast(config, resident.images.device):
                logits = model(resident.images, resident.metadata)
            torch.nn.functional.cross_entropy(logits.float(), resident.labels).backward()
            model.zero_grad(set_to_none=True)

    seconds = interleaved({"local": local, "bare": bare}, repeats)
    return {
        "model": name,
        "batch": batch,
        "images/s local": images / sorted(seconds["local"])[repeats // 2],
        "images/s bare": images / sorted(seconds["bare"])[repeats // 2],
        "ratio": median_ratio(seconds["bare"], seconds["local"]),
        "target": TARGET,
    }


if __name__ == "__main__":
    asked = options(__doc__, "MODEL,BATCH,IMAGES", CASES, REPEATS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        os.environ["FEDSKEW_HOME"] = home
        finish("training_step", [measure(*case, asked.repeats) for case in asked.cases], asked.out)
