"""Criteria at equal size, without a federation: all start from one dense model, so that hours become minutes.

    python benchmarks/criteria_quick.py HAM10000 --work WORK --minutes 8      # again until it says "finished"

For each seed a dense model is trained on all images that are not the server's test set (those of the clients, and the
open ones that are not held back). It goes on where it stopped: after every epoch.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from fedskew.config import Config, load_config
from fedskew.learning.datasets import DataSet, divide_open, open_data, split_server
from fedskew.learning.local import Trainer, local_seed
from fedskew.learning.server_data import initial_model
from fedskew.model.fusion import build

SETTINGS = ("train.precision=float32 train.local-epochs=1 train.lr=5e-4 train.round-warmup=0 model.drop-path=0.05 "
            "prune.batch-size=256")  # fmt: skip
EPOCHS = 12
UNFINISHED = 3  # exit code


class Pause(Exception):
    """The time is up; what is done is on disk."""


@dataclass(frozen=True)
class Bench:
    """Data and settings that all models share."""

    config: Config
    data: DataSet
    training: np.ndarray
    scoring: np.ndarray  # open images
    test: np.ndarray

    @classmethod
    def opened(cls, place: Path) -> Bench:
        """Of a data set in the layout of HAM10000."""
        config = load_config("ham10000-small", overrides=f"data.dir={place} {SETTINGS}")
        data = open_data(config.data, 64)
        split = split_server(data, config.data)
        opened, _ = divide_open(data, split, config.data)
        return cls(config, data, np.concatenate([split.clients, opened]), opened, split.test)

    def trainer(self, seed: int, epoch: int, epochs: int, name: str, **train: object) -> Trainer:
        """One epoch of a training of several, whose learning rate follows one curve over all of them."""
        settings = replace(self.config.train, **train)
        return Trainer(self.data, self.training, settings, local_seed(seed, epoch, name), epoch, epochs)


def dense_state(bench: Bench, seed: int, work: Path, until: float) -> dict[str, torch.Tensor]:
    """The state of the dense model of a seed, trained if it is not there yet; raises `Pause` between epochs."""
    config = replace(bench.config, run=replace(bench.config.run, seed=seed))
    done = sorted(work.glob(f"dense-s{seed}-e*.safetensors"))
    state, arch = initial_model(config)
    moments, epoch = None, 0
    if done:
        epoch = int(done[-1].stem.rpartition("e")[2])
        saved = load_file(done[-1])
        state = {name: tensor for name, tensor in saved.items() if not name.startswith("moments/")}
        moments = {name.removeprefix("moments/"): saved[name] for name in saved if name.startswith("moments/")}
    while epoch < EPOCHS:
        if time.monotonic() > until:
            raise Pause
        epoch += 1
        model = build(arch, state, drop_path=config.model.drop_path)
        result = bench.trainer(seed, epoch, EPOCHS, "dense").train(model, moments)
        state, moments = model.state_dict(), result.moments
        file = work / f"dense-s{seed}-e{epoch:02d}.safetensors"
        save_file({**state, **{f"moments/{name}": value for name, value in moments.items()}}, file)
        for old in done:
            old.unlink()
        done = [file]
        print(f"dense, seed {seed}, epoch {epoch} of {EPOCHS}: loss {result.loss:.3f}, "
              f"{len(bench.training) / result.seconds:.0f} images/s", flush=True)  # fmt: skip
    return state


def main() -> int:
    """Exit code 0 when all is done, `UNFINISHED` when the time was up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="HAM10000")
    parser.add_argument("--work", type=Path, required=True, help="models and what is done so far")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many, between two steps")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.work.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * asked.minutes
    bench = Bench.opened(asked.data)
    print(f"{len(bench.training)} images to train on, {len(bench.scoring)} to score on, {len(bench.test)} to test on")
    try:
        for seed in asked.seeds:
            dense_state(bench, seed, asked.work, until)
    except Pause:
        return UNFINISHED
    print("finished")
    return 0


if __name__ == "__main__":
    sys.exit(main())
