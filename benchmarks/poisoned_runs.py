"""What one hostile site does to a whole run, against the same run with that site honest; what aggregations cost.

    python benchmarks/poisoned_runs.py --data /path/to/HAM10000 [--images 2500] [--sites 4 --sites 6]
    python benchmarks/poisoned_runs.py --data /path/to/HAM10000 --sites 4 --partition site --name unlike_sites

Without --data: generated lesions. A small Swin at 64 pixels, first trained on the server's open images alone, then in
a short federation that also prunes it, under the federation settings of presets. --partition: how far sites differ
(`data.partition`; dirichlet with alpha 0.3). The hostile site is the last; it sees what the others have answered before
it answers, and in the attacks called `unnoticed` the server's own images too: more than a real one would know.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message, MetricRecord
from timing import machine, parser

from fedskew.apps import make_client_app
from fedskew.config.schema import Config, DataConfig, FederationConfig, ModelConfig, PruneConfig, RunConfig, TrainConfig
from fedskew.federation import client
from fedskew.federation.aggregate import limited_weights
from fedskew.federation.checks import MAX_EXAMPLES, update_norm
from fedskew.federation.folding import robust_aggregate
from fedskew.federation.grids import LocalGrid
from fedskew.federation.messages import ARRAYS, EXAMPLES, METRICS, unpack_task
from fedskew.federation.server import FederatedRun
from fedskew.federation.weights import from_record, to_record

Arrays = Mapping[str, np.ndarray]
Answer = tuple[Arrays, int]  # tensors, number of examples
STEPS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02)  # parts of the largest update that are tried
MEL, NV = "mel", "nv"
LIMITS = {"max_weight_ratio": 3.0, "norm_bound": 3.0, "rollback": 0.5, "max_missed_rounds": 3}  # of `hospitals`
PRESETS: dict[str, dict[str, Any]] = {
    "hospitals": LIMITS | {"aggregation": "median", "quorum": 3},
    "hospitals, mean": LIMITS,
    "hospitals, trimmed-mean": LIMITS | {"aggregation": "trimmed-mean", "trim": 0.25},
    "ham10000-small": {"server_optimiser": "avgm", "server_momentum": 0.6},
}
FORESEEN = [name for name in PRESETS if name.startswith("hospitals")]  # the momentum of others is not
PARTITIONS = {"iid": 0.5, "site": 0.5, "dirichlet": 0.3}  # and `data.alpha`, which only the last looks at


@dataclass(frozen=True)
class Seen:
    """What the hostile site knows when it answers."""

    sent: Arrays
    own: Answer  # what it would honestly answer
    others: Mapping[int, Answer]
    run: FederatedRun

    @property
    def largest(self) -> float:
        """Norm of an update that just passes `federation.norm-bound`; three times the others' where there is none."""
        reference = statistics.median_high(update_norm(arrays, self.sent) for arrays, _ in self.others.values())
        return 0.99 * (self.run.config.federation.norm_bound or 3.0) * reference

    def moved(self, direction: Arrays, norm: float) -> dict[str, np.ndarray]:
        """What was sent, moved by a direction that is scaled to a norm."""
        length = math.sqrt(sum(float(np.square(step, dtype=np.float64).sum()) for step in direction.values()))
        return {name: (value + direction[name] * (norm / length)).astype(np.float32)
                for name, value in self.sent.items()}  # fmt: skip

    def unnoticed(self, direction: Arrays) -> Answer:
        """The largest update in a direction after which the server does not roll back, known by the server's images."""
        strategy, federation = self.run.strategy, self.run.config.federation
        before = strategy.server.metrics(_tensors(self.sent), strategy.architecture)["loss"]
        limit = min(before, strategy.losses.get("best", math.inf)) + federation.rollback - 1e-3
        for part in STEPS:
            lie = self.moved(direction, part * self.largest), MAX_EXAMPLES
            made = self._aggregate({**self.others, 0: lie})
            if strategy.server.metrics(_tensors(made), strategy.architecture)["loss"] <= limit:
                return lie
        return self.own

    def _aggregate(self, answers: Mapping[int, Answer]) -> dict[str, np.ndarray]:
        federation = self.run.config.federation
        if federation.aggregation != "mean":
            return robust_aggregate(federation, [(count, dict(arrays)) for arrays, count in answers.values()], 1)
        examples = {str(node): count for node, (_, count) in answers.items()}
        weights = limited_weights(examples, federation.max_weight_ratio)
        total = sum(weights.values())
        return {name: sum(weights[str(node)] / total * arrays[name] for node, (arrays, _) in answers.items())
                for name in self.sent}  # fmt: skip


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in arrays.items()}


def backwards(seen: Seen) -> dict[str, np.ndarray]:
    """The direction against its honest update."""
    return {name: value - seen.own[0][name] for name, value in seen.sent.items()}


def no_melanoma(seen: Seen) -> dict[str, np.ndarray]:
    """The direction in which the classifier says nevus instead of melanoma: constant in all rounds."""
    classes = seen.run.strategy.architecture.classes
    towards = np.array([{MEL: -1.0, NV: 1.0}.get(name, 0.0) for name in classes])
    return {name: towards if name == "classifier.bias" else np.zeros_like(value) for name, value in seen.sent.items()}


ATTACKS: dict[str, Callable[[Seen], Answer]] = {
    "none": lambda seen: seen.own,
    "2^28 examples": lambda seen: (seen.own[0], MAX_EXAMPLES),
    "mel and nv swapped": lambda seen: (seen.own[0], MAX_EXAMPLES),  # see `swapped`
    "reversed, x 3": lambda seen: (seen.moved(backwards(seen), seen.largest), MAX_EXAMPLES),
    "never melanoma, x 3": lambda seen: (seen.moved(no_melanoma(seen), seen.largest), MAX_EXAMPLES),
    "reversed, unnoticed": lambda seen: seen.unnoticed(backwards(seen)),
    "never melanoma, unnoticed": lambda seen: seen.unnoticed(no_melanoma(seen)),
}


@contextmanager
def swapped(really: bool) -> Iterator[None]:
    """While this lasts, nodes call melanomas nevi and nevi melanomas."""
    honest, other = client.task_data, {MEL: NV, NV: MEL}

    def task_data(*args: Any) -> Any:
        node = honest(*args)
        samples = tuple(replace(s, label=other.get(s.label, s.label)) for s in node.data.samples)
        return replace(node, data=replace(node.data, samples=samples))

    client.task_data = task_data if really else honest
    try:
        yield
    finally:
        client.task_data = honest


class Infiltrated(LocalGrid):
    """Sites that answer one after the other, the last of them hostile."""

    def __init__(self, sites: int, attack: str) -> None:
        super().__init__(make_client_app(), sites)
        self._last, self._attack, self._others = sites, attack, dict[int, Answer]()
        self.run_: FederatedRun

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`."""
        tasks = {message_id: self._pending[message_id] for message_id in message_ids}
        first = min(tasks, key=list(self._pending).index)
        hostile = tasks[first].metadata.dst_node_id == self._last
        sent = unpack_task(tasks[first])
        with swapped(hostile and "swapped" in self._attack):
            (reply,) = super().pull_messages([first])
        return [self._answer(reply, hostile, from_record(sent[1], sent[0].downloaded()), sent[0].uploaded())]

    def _answer(self, reply: Message, hostile: bool, sent: Arrays, layout: Any) -> Message:
        arrays = {name: value.copy() for name, value in from_record(reply.content[ARRAYS], layout).items()}
        own = arrays, int(reply.content[METRICS][EXAMPLES])
        if not hostile:
            self._others[reply.metadata.src_node_id] = own
            return reply
        lie, examples = ATTACKS[self._attack](Seen(sent, own, self._others, self.run_))
        self._others = {}
        reply.content[ARRAYS] = to_record(_tensors(lie))
        reply.content[METRICS] = MetricRecord(dict(reply.content[METRICS].items()) | {EXAMPLES: examples})
        return reply


def subset(folder: Path, images: int, target: Path) -> Path:
    """A data set of so many images of another one, drawn lesion by lesion."""
    with next(folder.glob("*metadata*")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    lesions = sorted({row["lesion_id"] for row in rows})
    random.Random(0).shuffle(lesions)
    order = {lesion: i for i, lesion in enumerate(lesions)}
    kept = sorted(rows, key=lambda row: (order[row["lesion_id"]], row["image_id"]))[:images]
    paths = {path.stem: path for path in folder.rglob("*.jpg")}
    for row in kept:
        (target / f"{row['image_id']}.jpg").symlink_to(paths[row["image_id"]])
    with (target / "HAM10000_metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    return target


def config_of(
    data: DataConfig, preset: str, rounds: int, run: RunConfig, *, start: str = "", warm: int = 0, epochs: int = 1
) -> Config:
    """A short run with the recipe of a preset's nodes, but for a smaller model and fewer epochs.

    Args:
        start: folder of the run that it starts from.
        warm: epochs on the open images before the first round.
        epochs: of a node in a round.
    """
    train = TrainConfig(warm_start_epochs=warm, local_epochs=epochs, batch_size=32, lr=1e-3 if warm else 5e-4,
                        warmup=0.1, class_weights="sqrt", zoom=0.2, precision="fast", threads=1,
                        device="cpu")  # fmt: skip
    prune = PruneConfig(rule="share", share=0.15, first_round=2, last_round=max(2, rounds - 2), steps_per_stage=1)
    federation = FederationConfig(rounds=rounds, **PRESETS[preset])
    model = ModelConfig(name="swin_mini_patch4_window4_64", drop_path=0.0, from_run=start)
    return Config(data, model, train, prune, federation, run)


def poisoned(config: Config, sites: int, attack: str) -> dict[str, Any]:
    """A run with a hostile site: what its last model is like, and what the server did."""
    grid = Infiltrated(sites, attack)
    grid.run_ = FederatedRun(grid, config)
    records = grid.run_.run().records()
    last, done = records[-1], records[1:]
    return {
        "attack": attack,
        "balanced accuracy": last["balanced_accuracy"],
        "melanoma recall": last["recall"][MEL],
        "recall": last["recall"],
        "loss": last["loss"],
        "weights left": last["parameters"] / last["dense_parameters"],
        "rounds": len(done),
        "rolled back": sum(bool(record["rolled_back"]) for record in done),
        "set aside": sum(bool(record["failed"]) for record in done),
        "cuts undone": sum(bool(record["pruning_undone"]) for record in done),
    }


def asked_for() -> argparse.Namespace:
    """What the command line asks for."""
    found = parser(__doc__)
    found.add_argument("--data", type=Path, metavar="FOLDER", help="HAM10000: its images and HAM10000_metadata.csv")
    found.add_argument("--images", type=int, default=2500)
    found.add_argument("--rounds", type=int, default=6)
    found.add_argument("--epochs", type=int, default=1, help="of a node in a round; default: 1")
    found.add_argument("--warm-start", type=int, default=30, metavar="EPOCHS", help="default: 30")
    found.add_argument("--start", metavar="RUN", help="run folder to start from; default: train on the open images")
    found.add_argument("--seed", type=int, action="append", help="repeatable; default: 0")
    found.add_argument("--sites", type=int, action="append", help="repeatable; default: 4 6")
    found.add_argument("--partition", action="append", choices=PARTITIONS, help="repeatable; default: iid")
    found.add_argument("--preset", action="append", choices=PRESETS, help="repeatable; default: all")
    found.add_argument("--attack", action="append", choices=ATTACKS, help="repeatable; default: all")
    found.add_argument("--name", default="poisoned_runs", help="of the record; default: poisoned_runs")
    return found.parse_args()


def measured(asked: argparse.Namespace, scratch: str) -> Iterator[dict[str, Any]]:
    """A row for every run asked for, as soon as it is done."""
    data = DataConfig(source="generated", generated_images=asked.images, validation=0.0, open=0.35)
    if asked.data:
        (folder := Path(scratch, "images")).mkdir()
        data = replace(data, source="folder", dir=str(subset(asked.data, asked.images, folder)))
    for seed in asked.seed or (0,):
        run = RunConfig(seed=seed, output_dir=scratch, threads=1, report=0.0)
        first = config_of(data, "hospitals", 1, run, warm=asked.warm_start)
        start = asked.start or str(FederatedRun(LocalGrid(make_client_app(), 4), first).run().path)
        every = asked.partition or ("iid",), asked.preset or PRESETS, asked.sites or (4, 6), asked.attack or ATTACKS
        for partition, preset, sites, attack in product(*every):
            if "unnoticed" in attack and preset not in FORESEEN:
                continue
            divided = replace(data, partition=partition, alpha=PARTITIONS[partition])
            config = config_of(divided, preset, asked.rounds, run, start=start, epochs=asked.epochs)
            of = {"seed": seed, "partition": partition, "preset": preset, "sites": sites, "epochs": asked.epochs}
            yield of | poisoned(config, sites, attack)


def main() -> None:
    """Print a line for each run; write all figures to a JSON file, again after each of them."""
    asked, rows = asked_for(), []
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    about = {"benchmark": "poisoned_runs", "machine": machine(), "data": "folder" if asked.data else "generated",
             "images": asked.images, "rows": rows}  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        for row in measured(asked, scratch):
            rows.append(row)
            shown = (value for value in row.values() if not isinstance(value, dict))
            print(" | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in shown), flush=True)
            (asked.out / f"{asked.name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
