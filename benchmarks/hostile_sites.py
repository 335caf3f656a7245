"""What one, and what two, of n hostile sites do to a model in one round, under each setting.

    fedskew simulate --preset demo --set "federation.rounds=5 run.name=victim"
    python benchmarks/hostile_sites.py runs/victim [--sites 5,2]

The model and the data are those of the run. Each honest site trains once, for real; then every attack goes through the
server's own path (checks, roll call, folding, rollback; nothing is pruned), and what is left of the model is tested.
A cell is balanced accuracy on the test set, and what the server did: W weighed less, S set aside, R round rolled back,
K kept because too few were left, P the aggregation refuses so few sites at the start.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from timing import parser

from fedskew.apps import make_client_app
from fedskew.config import Config, ConfigError
from fedskew.federation.checks import MAX_EXAMPLES
from fedskew.federation.folding import check_effect
from fedskew.federation.grids import LocalGrid, StreamingGrid
from fedskew.federation.messages import ARRAYS, CONFIG, EXAMPLES, METRICS, REPORT
from fedskew.federation.seal import NONCE
from fedskew.federation.strategy import RoundStrategy
from fedskew.federation.weights import arrays_sha256, to_record, to_state
from fedskew.learning.datasets import open_data, split_hash, split_server
from fedskew.learning.server_data import ServerData
from fedskew.model.catalogue import vocabularies
from fedskew.runs.checkpoint import Checkpoint
from fedskew.runs.folder import RunFolder
from fedskew.runs.resume import saved_config

Update = tuple[np.ndarray, int]  # vector of weights, number of examples
Attack = Callable[[np.ndarray, Update], Update]  # (what the site was sent, its honest answer) → its answer

ATTACKS: dict[str, Attack] = {
    "zeros, 2^28 examples": lambda _, own: (np.zeros_like(own[0]), MAX_EXAMPLES),
    "1e30": lambda _, own: (np.full_like(own[0], 1e30), own[1]),
    "reversed x 1.8, 2^28 examples": lambda sent, own: (sent - np.float32(1.8) * (own[0] - sent), MAX_EXAMPLES),
    "scaled x 10": lambda sent, own: (sent + np.float32(10) * (own[0] - sent), own[1]),
}
OFF = {"max_weight_ratio": 0.0, "norm_bound": 0.0, "rollback": 1e9}
SETTINGS = {
    "none of them": OFF,
    "max-weight-ratio=3": OFF | {"max_weight_ratio": 3.0},
    "rollback=0.5": OFF | {"rollback": 0.5},
    "norm-bound=3": OFF | {"norm_bound": 3.0},
    "median": OFF | {"aggregation": "median"},
    "trimmed-mean, trim=0.2": OFF | {"aggregation": "trimmed-mean", "trim": 0.2},
    "krum, malicious-nodes=1": OFF | {"aggregation": "krum", "malicious_nodes": 1},
    "hospitals, mean": {"max_weight_ratio": 3.0, "norm_bound": 3.0, "rollback": 0.5},
}
SITES = ((2, 1), (3, 1), (5, 1), (5, 2))  # how many there are, how many of them are hostile


class Answers(LocalGrid):
    """Sites whose answers are known already."""

    def __init__(self, answers: dict[int, Update]) -> None:
        super().__init__(make_client_app(), len(answers))
        self._answers = answers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """See `Grid`."""
        return [self._reply(self._pending.pop(message_id)) for message_id in message_ids]

    def _reply(self, task: Message) -> Message:
        vector, examples = self._answers[task.metadata.dst_node_id]
        content = {
            ARRAYS: ArrayRecord({name: Array(vector) for name in task.content[ARRAYS]}),
            METRICS: MetricRecord({EXAMPLES: examples, "loss": 1.0}),
            REPORT: ConfigRecord({NONCE: task.content[CONFIG][NONCE]}),
        }
        return Message(RecordDict(content), reply_to=task)


class Victim:
    """A finished run, whose model is attacked."""

    def __init__(self, path: Path) -> None:
        config = saved_config(path)
        if config is None:
            sys.exit(f"{path} is no run folder; see the top of this file")
        folder = RunFolder(path)
        rounds = 2 * config.federation.rounds  # the attack comes in mid-run, while the learning rate is not yet near 0
        self.config: Config = replace(
            config, prune=replace(config.prune, criterion="none"), federation=replace(config.federation, rounds=rounds)
        )
        self.model: Checkpoint = folder.latest()
        data = open_data(config.data, self.model.architecture.image_size, vocabularies=vocabularies(config.model))
        split = split_server(data, config.data)
        self.server, self.split_hash = ServerData(self.config, data, split), split_hash(data, split)
        self.arrays = to_record(self.model.weights)
        self.sent = next(iter(self.arrays.values())).numpy()
        self.open_metrics = self.server.metrics(self.model.weights, self.model.architecture)
        self._known: dict[str, float] = {}  # many settings leave the same model
        self.before = self.accuracy(self.arrays)

    def accuracy(self, arrays: ArrayRecord) -> float:
        """Balanced accuracy on the test set."""
        name = arrays_sha256(arrays)
        if name not in self._known:
            state = to_state(arrays, self.model.architecture)
            found = self.server.evaluate(state, self.model.architecture, held_back=self.open_metrics)
            self._known[name] = float(found.metrics["balanced_accuracy"])
        return self._known[name]

    def strategy(self, grid: StreamingGrid, federation: dict) -> RoundStrategy:
        """The server's strategy under some settings, as it stands before the next round."""
        config = replace(self.config, federation=replace(self.config.federation, **federation))
        strategy = RoundStrategy(
            config, self.model.architecture, self.server, grid,
            split_hash=self.split_hash, first_round=self.model.round_number + 1,
        )  # fmt: skip
        strategy.open_metrics = self.open_metrics
        return strategy

    def honest(self, sites: int) -> dict[int, Update]:
        """What each of so many honest sites answers."""
        grid = StreamingGrid(LocalGrid(make_client_app(), sites))
        found = {}
        for reply in grid.send_and_receive(
            self.strategy(grid, {}).configure_train(1, self.arrays, ConfigRecord(), grid)
        ):
            vector = next(iter(reply.content[ARRAYS].values())).numpy().copy()
            found[reply.metadata.src_node_id] = (vector, int(reply.content[METRICS][EXAMPLES]))
        return found

    def attacked(self, answers: dict[int, Update], settings: dict) -> str:
        """A cell of the table."""
        grid = StreamingGrid(Answers(answers))
        strategy = self.strategy(grid, settings)
        try:
            check_effect(strategy.config, len(answers))
        except ConfigError:
            return "P"
        messages = strategy.configure_train(1, self.arrays, ConfigRecord(), grid)
        arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
        note = strategy.round
        did = {
            "W": note.limited,
            "S": note.failed,
            "R": note.rolled_back,
            "K": note.kept_model and not note.rolled_back,
        }
        accuracy = self.before if note.kept_model else self.accuracy(arrays)
        return f"{accuracy:.2f} {''.join(letter for letter, true in did.items() if true)}".strip()


def federation(text: str) -> tuple[int, int]:
    """`--sites 5,2`."""
    sites, hostile = (int(number) for number in text.split(","))
    return sites, hostile


def main() -> None:
    """Print the table of each federation and write all figures to hostile_sites.json."""
    found = parser(__doc__)
    found.add_argument("run", type=Path, help="folder of a finished run")
    found.add_argument("--sites", type=federation, action="append", metavar="N,HOSTILE",
                       help="so many sites, so many of them hostile; repeatable; default: 2,1 3,1 5,1 5,2")  # fmt: skip
    asked = found.parse_args()
    victim = Victim(asked.run)
    federations = asked.sites or SITES
    rows = {"before": round(victim.before, 4), "sites": {}}
    answers = {sites: victim.honest(sites) for sites in sorted({sites for sites, _ in federations})}
    for sites, hostile in federations:
        table: dict[str, dict[str, str]] = {}
        print(f"\n{hostile} of {sites} (before the round {victim.before:.2f}, all honest "
              f"{victim.attacked(answers[sites], OFF)})\n| setting | {' | '.join(ATTACKS)} |")  # fmt: skip
        for name, settings in SETTINGS.items():
            table[name] = {}
            for attack, change in ATTACKS.items():
                lied = {node: change(victim.sent, own) if node <= hostile else own
                        for node, own in answers[sites].items()}  # fmt: skip
                table[name][attack] = victim.attacked(lied, settings)
            print(f"| {name} | {' | '.join(table[name].values())} |", flush=True)
        rows["sites"][f"{hostile} of {sites}"] = table
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "hostile_sites.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
