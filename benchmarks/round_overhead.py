"""A simulated round against the same local epochs in plain PyTorch, after start-up.  Target: at most 1.2.

    python benchmarks/round_overhead.py

The round is what `fedskew simulate` does in it: pack and unpack the messages, train on every node, check and average
the replies, score, prune. The test-set evaluation and the checkpoint, which plain PyTorch needs as well, are left out
on both sides; so is shrinking: each round starts from the same dense model.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from typing import Any

import torch
from flwr.app import ConfigRecord
from timing import finish, interleaved, median_ratio, options
from torch import Tensor

from fedskew.apps import make_client_app
from fedskew.config.schema import Config, DataConfig, ModelConfig, TrainConfig
from fedskew.data.splits import Split
from fedskew.federation.grids import LocalGrid, StreamingGrid
from fedskew.federation.strategy import RoundStrategy
from fedskew.federation.weights import to_record
from fedskew.learning.datasets import DataSet, batches, open_data, partitions, split_server, train_validation
from fedskew.learning.initial import initial_model
from fedskew.learning.local import augmentation
from fedskew.learning.optimiser import learning_rate, parameter_groups
from fedskew.learning.server_data import ServerData
from fedskew.model.architecture import Architecture
from fedskew.model.catalogue import image_size
from fedskew.model.fusion import build

TARGET = 1.2
NODES = 4
CASES = (("swin_mini_patch4_window4_64", 1600), ("swin_small64_patch4_window4_64", 1600))
REPEATS = 3


def plain_epochs(config: Config, data: DataSet, split: Split, arch: Architecture, state: dict[str, Tensor]) -> None:
    """The nodes' local epochs as one would write them without any federation."""
    for part in partitions(data, split, config.data, NODES):
        indices, _ = train_validation(data.samples, part, validation=config.data.validation,
                                      unit=config.data.split_by, seed=config.data.split_seed)  # fmt: skip
        model = build(arch, state, drop_path=config.model.drop_path).train()
        optimiser = torch.optim.AdamW(parameter_groups(model, config.train.weight_decay), lr=1e-3, fused=True)
        loader = batches(data, indices, arch, batch_size=config.train.batch_size, seed=0,
                         augmentation=augmentation(config.train))  # fmt: skip
        for images, metadata, labels in loader:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config.train, 0.5)
            loss = torch.nn.functional.cross_entropy(model(images, metadata), labels)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
            optimiser.step()


def measure(name: str, images: int, repeats: int) -> dict[str, Any]:
    """One model: CPU seconds of a round and of the epochs in it."""
    config = Config(
        data=DataConfig(source="generated", generated_images=images),
        model=ModelConfig(name=name),
        train=TrainConfig(batch_size=32, precision="float32", device="cpu", threads=1),
    )
    data = open_data(config.data, image_size(config.model))
    split = split_server(data, config.data)
    server = ServerData(config, data, split)
    state, arch = initial_model(config)
    record = to_record(state)

    def one_round() -> None:
        grid = StreamingGrid(LocalGrid(make_client_app(), NODES))
        strategy = RoundStrategy(config, arch, server, grid)
        messages = strategy.configure_train(1, record, ConfigRecord(), grid)
        strategy.aggregate_train(1, grid.send_and_receive(messages))
        assert len(strategy.round.ok) == NODES, strategy.round.failed

    cases = {"round": one_round, "plain": lambda: plain_epochs(config, data, split, arch, state)}
    seconds = interleaved(cases, repeats)
    return {
        "model": name,
        "nodes": NODES,
        "images": len(split.clients),
        **{f"{case} s": statistics.median(values) for case, values in seconds.items()},
        "ratio": median_ratio(seconds["round"], seconds["plain"]),
        "target": TARGET,
    }


if __name__ == "__main__":
    asked = options(__doc__, "MODEL,IMAGES", CASES, REPEATS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        os.environ["FEDSKEW_HOME"] = home
        finish("round_overhead", [measure(*case, asked.repeats) for case in asked.cases], asked.out)
