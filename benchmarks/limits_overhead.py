"""A simulated round with all that protects from hostile sites, against the same round without.  Target: at most 1.02.

    python benchmarks/limits_overhead.py

With: nonces and the nodes' signatures, made and verified; limits of weight and norm; the average judged on held-back
open images before it is cut, and again after the cut. Without: none of these. In both: what the preset
ham10000-small asks of a round (7.0 M weights, 3 local epochs, pruning), on generated images, and the evaluation on the
test set and the held-back images that the record of a round needs.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flwr.app import ConfigRecord
from timing import finish, interleaved, options

from fedskew.apps import make_client_app
from fedskew.config import load_config
from fedskew.config.schema import Config
from fedskew.federation.grids import LocalGrid, StreamingGrid
from fedskew.federation.seal import SIGNING_KEY
from fedskew.federation.strategy import RoundStrategy
from fedskew.federation.weights import to_record, to_state
from fedskew.flower import NodeInfo
from fedskew.learning.datasets import open_data, split_server
from fedskew.learning.initial import initial_model
from fedskew.learning.server_data import ServerData
from fedskew.model.catalogue import image_size

TARGET = 1.02
CASES = (("swin_wide64_patch4_window4_64", 400, 1),)  # model, images, a cut every so many rounds
REPEATS = 5
ON = {"max_weight_ratio": 3.0, "norm_bound": 3.0, "rollback": 0.5, "require_signatures": True}
OFF = {"max_weight_ratio": 0.0, "norm_bound": 0.0, "rollback": 1e9, "require_signatures": False}
NODES = 4


class SigningGrid(LocalGrid):
    """Nodes of this process that are registered with a key each, and sign with it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(make_client_app(), NODES)
        self._public: dict[int, bytes] = {}
        for node, config in self._configs.items():
            key, path = ec.generate_private_key(ec.SECP384R1()), folder / f"{node}.key"
            path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            self._public[node] = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            config[SIGNING_KEY] = str(path)

    def get_nodes(self) -> list[NodeInfo]:
        """See `Grid`."""
        return [NodeInfo(node_id=node, public_key=key) for node, key in self._public.items()]


class Trusting(RoundStrategy):
    """A strategy that takes whatever it gets: nothing is judged."""

    def _objection(self, *_: Any) -> str:
        self.losses, self.open_metrics = {"best": float("inf")}, None
        return ""


class Bench:
    """One model and the server's data for it."""

    def __init__(self, name: str, images: int, interval: int) -> None:
        config = load_config("ham10000-small")
        self.config: Config = replace(
            config,
            model=replace(config.model, name=name),
            data=replace(config.data, source="generated", generated_images=images),
            prune=replace(config.prune, first_round=1, last_round=0, interval=interval),
        )
        data = open_data(self.config.data, image_size(self.config.model))
        split = split_server(data, self.config.data)
        self.images, self.interval = len(split.clients), interval
        self.server = ServerData(self.config, data, split)
        self.state, self.arch = initial_model(self.config)
        self.before = self.server.metrics(self.state, self.arch)

    def rounds(self, federation: Mapping[str, Any], kind: type[RoundStrategy], inner: LocalGrid) -> None:
        """The rounds from one cut to the next, with the evaluation after each."""
        settings = replace(self.config, federation=replace(self.config.federation, **federation))
        grid, arrays = StreamingGrid(inner), to_record(self.state)
        with tempfile.TemporaryDirectory() as scratch:
            strategy = kind(settings, self.arch, self.server, grid, scratch=Path(scratch))
            strategy.open_metrics = self.before
            for number in range(1, self.interval + 1):
                messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
                arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
                assert len(strategy.round.ok) == NODES, strategy.round
                assert not strategy.round.kept_model, strategy.round
                after = to_state(arrays, strategy.architecture)
                found = self.server.evaluate(after, strategy.architecture, held_back=strategy.open_metrics)
                strategy.open_metrics = found.held_back


def measure(name: str, images: int, interval: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of some rounds with and without protection, and the ratio within each repetition."""
    bench = Bench(name, images, interval)
    with tempfile.TemporaryDirectory() as keys:
        cases = {
            "with": lambda: bench.rounds(ON, RoundStrategy, SigningGrid(Path(keys))),
            "without": lambda: bench.rounds(OFF, Trusting, LocalGrid(make_client_app(), NODES)),
        }
        seconds = interleaved(cases, repeats)
    ratios = sorted(a / b for a, b in zip(seconds["with"], seconds["without"], strict=True))
    return {
        "model": name,
        "a cut every": interval,
        "nodes": NODES,
        "images": bench.images,
        **{f"{case} s": statistics.median(values) for case, values in seconds.items()},
        "ratio": statistics.median(ratios),
        "least": ratios[0],
        "most": ratios[-1],
        "target": TARGET,
    }


if __name__ == "__main__":
    asked = options(__doc__, "MODEL,IMAGES,INTERVAL", CASES, REPEATS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("FEDSKEW_HOME", home)
        finish("limits_overhead", [measure(*case, asked.repeats) for case in asked.cases], asked.out)
