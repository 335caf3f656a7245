"""What `criteria_quick` and `peer` share: a dense model trained centrally, fine-tuning, evaluation, and time in slices.

No federation: one model is trained on all images that are not the server's test set (those of the clients, and the open
ones that are not held back). Everything that takes minutes is kept in a work folder, so that a command goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timing import RESULTS

from fedskew.config import Config, load_config
from fedskew.data.batches import Batch
from fedskew.files import write_bytes, write_json
from fedskew.learning.datasets import DataSet, batches, divide_open, open_data, scoring_images, split_server
from fedskew.learning.initial import initial_model
from fedskew.learning.local import Trainer, local_seed, predict_images
from fedskew.metrics import Predictions, classification_metrics
from fedskew.metrics.paired import Difference
from fedskew.model.fusion import MultimodalModel, build
from fedskew.runs.predictions import encode_predictions, read_predictions

PRESET = "ham10000-small"
SETTINGS = "train.precision=float32 train.local-epochs=1 train.round-warmup=0 train.lr=5e-4 prune.batch-size=256"
FINE_TUNING_RATE = 3e-4  # peak
PIECES = 3  # of an epoch: after each of them a command can stop
UNFINISHED = 3  # exit code
SHOWN = ("balanced_accuracy", "accuracy", "f1_macro", "auroc_macro")
ONE_SHOT, FINAL = "one-shot", "fine-tuned"


class Pause(Exception):
    """The time is up; what is done is on disk."""


def parser(documentation: str | None) -> argparse.ArgumentParser:
    """The options that both commands have."""
    found = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("data", type=Path, help="HAM10000, or another data set that fedskew reads")
    found.add_argument("--work", type=Path, required=True, help="models and what is done so far")
    found.add_argument("--out", type=Path, default=RESULTS, help="folder of the record; default: benchmarks/results")
    found.add_argument("--seeds", type=int, nargs="+", default=[0])
    found.add_argument("--dense-epochs", type=int, default=12)
    found.add_argument("--epochs", type=int, default=1, help="of fine-tuning after pruning")
    found.add_argument("--minutes", type=float, default=1e6, help="stop after so many, between two pieces of work")
    found.add_argument("--set", default="", help="settings, as model.name=swin_mini_patch4_window4_64")
    return found


@dataclass(frozen=True)
class Bench:
    """Data and settings that all models of a seed share."""

    config: Config
    data: DataSet
    training: np.ndarray
    scoring: np.ndarray  # open images to score on
    test: np.ndarray
    work: Path
    until: float  # of time.monotonic

    @classmethod
    def opened(cls, asked: argparse.Namespace) -> Bench:
        """Of what was asked for on the command line."""
        torch.set_num_threads(1)
        asked.work.mkdir(parents=True, exist_ok=True)
        config = load_config(PRESET, overrides=f"data.dir={asked.data} {SETTINGS} {asked.set}")
        data = open_data(config.data, initial_model(config)[1].image_size)
        split = split_server(data, config.data)
        opened, _ = divide_open(data, split, config.data)
        training, until = np.concatenate([split.clients, opened]), time.monotonic() + 60 * asked.minutes
        return cls(config, data, training, opened, split.test, asked.work, until)

    def pause(self) -> None:
        """Raise `Pause` if the time is up."""
        if time.monotonic() > self.until:
            raise Pause

    def trainer(self, name: str, seed: int, piece: int, epochs: int, **settings: Any) -> Trainer:
        """Piece 1, 2, … of a training, whose learning rate follows one curve over all `PIECES` · epochs."""
        epoch, part = divmod(piece - 1, PIECES)
        order = np.random.default_rng((seed, epoch)).permutation(self.training)
        train = replace(self.config.train, **settings)
        return Trainer(self.data, np.array_split(order, PIECES)[part], train, local_seed(seed, piece, name),
                       piece, PIECES * epochs)  # fmt: skip

    def batch(self, model: MultimodalModel, seed: int) -> tuple[Batch, list[str]]:
        """The images that units are scored on, and their names."""
        chosen = scoring_images(self.scoring, self.config.prune.batch_size, seed)
        batch = next(iter(batches(self.data, chosen, model.architecture, batch_size=len(chosen))))
        return batch, [self.data.samples[i].image_id for i in chosen]

    def predicted(self, model: MultimodalModel) -> Predictions:
        """What a model says of the test images."""
        return predict_images(model.eval(), self.data, self.test, self.config.train, batch_size=256)


def dense_model(bench: Bench, seed: int, epochs: int) -> MultimodalModel:
    """The dense model of a seed, trained as far as it is not there yet; raises `Pause` between pieces of an epoch."""
    config = replace(bench.config, run=replace(bench.config.run, seed=seed))
    state, arch = initial_model(config)
    moments, done = None, sorted(bench.work.glob(f"dense-s{seed}-p*.safetensors"))
    if done:
        saved = load_file(done[-1])
        state = {name: tensor for name, tensor in saved.items() if not name.startswith("moments/")}
        moments = {name.removeprefix("moments/"): saved[name] for name in saved if name.startswith("moments/")}
    for piece in range(int(done[-1].stem.rpartition("p")[2]) + 1 if done else 1, PIECES * epochs + 1):
        bench.pause()
        model = build(arch, state, drop_path=config.model.drop_path)
        trainer = bench.trainer("dense", seed, piece, epochs)
        result = trainer.train(model, moments)
        state, moments = model.state_dict(), result.moments
        file = bench.work / f"dense-s{seed}-p{piece:03d}.safetensors"
        save_file({**state, **{f"moments/{name}": value for name, value in moments.items()}}, file)
        for old in done:
            old.unlink()
        done = [file]
        print(f"dense, seed {seed}, epoch {piece / PIECES:.1f} of {epochs}: loss {result.loss:.3f}, "
              f"{len(trainer.images) / result.seconds:.0f} images/s", flush=True)  # fmt: skip
    return build(arch, state).eval()


def cell(
    bench: Bench,
    name: str,
    seed: int,
    epochs: int,
    make: Callable[[], tuple[MultimodalModel, dict[str, Any]]],
) -> dict[str, Any]:
    """The record of a pruned model, at once and after fine-tuning; what is in the work folder is not done again.

    Args:
        make: the pruned model, and what the record says of it.
    """
    folder = bench.work / f"{name}-s{seed}-{epochs}e"
    if (folder / "record.json").is_file():
        return json.loads((folder / "record.json").read_text())
    bench.pause()
    model, record = make()
    folder.mkdir(parents=True, exist_ok=True)
    record = {"cell": name, "seed": seed, "epochs": epochs, **record}
    record[ONE_SHOT] = _evaluated(bench, model, folder / f"{ONE_SHOT}.npz")
    moments = None
    for piece in range(1, PIECES * epochs + 1):
        trainer = bench.trainer("fine-tuning", seed, piece, epochs, lr=FINE_TUNING_RATE)
        moments = trainer.train(model, moments).moments
    record[FINAL] = _evaluated(bench, model, folder / f"{FINAL}.npz")
    write_json(folder / "record.json", record)
    before, after = (record[when]["balanced_accuracy"] for when in (ONE_SHOT, FINAL))
    print(f"{name}, seed {seed}: {record['parameters']:.1%} of the parameters, {record['macs']:.1%} of the MACs, "
          f"balanced accuracy {before:.3f}, then {after:.3f}", flush=True)  # fmt: skip
    return record


def _evaluated(bench: Bench, model: MultimodalModel, file: Path) -> dict[str, float]:
    found = bench.predicted(model)
    write_bytes(file, encode_predictions(found))
    metrics = classification_metrics(found.labels, found.probabilities, found.classes)
    return {name: round(float(metrics[name]), 4) for name in SHOWN}


def predictions_of(bench: Bench, record: dict[str, Any], when: str) -> Predictions:
    """What the model of a record said, at once or after fine-tuning."""
    return read_predictions(bench.work / f"{record['cell']}-s{record['seed']}-{record['epochs']}e" / f"{when}.npz")


def in_points(found: Difference) -> list[float]:
    """A difference for a record, in points: mean, low, high (95 % over lesions)."""
    return [round(100 * value, 2) for value in (found.mean, found.low, found.high)]
