"""Peak memory of the server over one round with 5 and with 50 clients of Swin-T.  Target: at most 1.2 times.

    python benchmarks/server_memory.py

The replies are made on the spot, as if they came from a SuperLink; what counts them, checks them and averages them
is the real path: `StreamingGrid` and `RoundStrategy`. Flower's own `FedAvg` gets the same replies beside it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from timing import finish, options

from fedskew.config.schema import Config, ModelConfig, PruneConfig
from fedskew.federation.grids import LocalGrid, StreamingGrid
from fedskew.federation.messages import ARRAYS, CONFIG, EXAMPLES, METRICS
from fedskew.federation.seal import seal
from fedskew.federation.strategy import RoundStrategy
from fedskew.federation.weights import to_record
from fedskew.model.catalogue import dense_architecture
from fedskew.model.fusion import build

TARGET = 1.2
CASES = (("swin_tiny_patch4_window7_224", 5, 50),)
CHILD = "--child"  # what a fresh process of this file is told first


class RepliesGrid(LocalGrid):
    """Answers every task with the model it came with, slightly changed; gives all replies that are asked for."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """See `Grid`."""
        return [self._reply(self._pending.pop(message_id)) for message_id in message_ids]

    def _reply(self, task: Message) -> Message:
        node = task.metadata.dst_node_id
        arrays = {name: Array(array.numpy() + np.float32(1e-4 * node)) for name, array in task.content[ARRAYS].items()}
        content = {ARRAYS: ArrayRecord(arrays), METRICS: MetricRecord({EXAMPLES: 100 + node, "loss": 1.0})}
        reply = Message(RecordDict(content), reply_to=task)
        return seal(reply, task, 1, None) if CONFIG in task.content else reply


class NoJudge:
    """A server without data: it finds every model equally good."""

    def metrics(self, *_: object) -> dict[str, float]:
        """See `ServerData`."""
        return {"loss": 1.0}


def fedskew_round(grid: Grid, arrays: ArrayRecord, config: Config) -> ArrayRecord | None:
    """One round as `FedAvg.start` drives it."""
    streaming = StreamingGrid(grid)
    strategy = RoundStrategy(config, dense_architecture(config.model), NoJudge(), streaming)  # type: ignore[arg-type]
    messages = strategy.configure_train(1, arrays, ConfigRecord(), streaming)
    result, _ = strategy.aggregate_train(1, streaming.send_and_receive(messages))
    assert not strategy.round.kept_model, strategy.round.failed
    return result


def flower_round(grid: Grid, arrays: ArrayRecord, config: Config) -> ArrayRecord | None:
    """The same with Flower's own strategy, which collects all replies."""
    strategy = FedAvg(fraction_evaluate=0.0)
    messages = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    return strategy.aggregate_train(1, grid.send_and_receive(messages))[0]


ROUNDS = {"fedskew": fedskew_round, "flower FedAvg": flower_round}


def peak_kilobytes() -> int:
    """The highest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def one_case(name: str, model: str, clients: int) -> None:
    """Run one round in this process and print its peak memory and seconds."""
    torch.set_num_threads(1)
    config = Config(model=ModelConfig(name=model), prune=PruneConfig(criterion="none"))
    arrays = to_record(build(dense_architecture(config.model)).state_dict())
    before, start = peak_kilobytes(), time.process_time()
    result = ROUNDS[name](RepliesGrid(None, clients), arrays, config)  # type: ignore[arg-type]
    assert result is not None
    print(before, peak_kilobytes(), time.process_time() - start)


def run_case(name: str, model: str, clients: int) -> tuple[float, float, float]:
    """(MB before the round, peak MB, CPU seconds) of a case in a fresh process."""
    command = [sys.executable, __file__, CHILD, name, model, str(clients)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    before, peak, seconds = out.split()[-3:]
    return int(before) / 1024, int(peak) / 1024, float(seconds)


def measure(name: str, model: str, few: int, many: int) -> dict[str, Any]:
    """One strategy with few and with many clients, each in its own process."""
    small, large = run_case(name, model, few), run_case(name, model, many)
    return {
        "strategy": name,
        "model": model,
        "start MB": round(small[0]),
        f"{few} clients MB": round(small[1]),
        f"{many} clients MB": round(large[1]),
        "ratio": large[1] / small[1],
        "MB a client": round((large[1] - small[1]) / (many - few), 2),
        "CPU s a client": round((large[2] - small[2]) / (many - few), 2),
        "target": TARGET if name == "fedskew" else "",
    }


def main() -> None:
    """Flower's strategy beside this one."""
    asked = options(__doc__, "MODEL,FEW,MANY", CASES)
    finish("server_memory", [measure(name, *case) for case in asked.cases for name in ROUNDS], asked.out)


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        one_case(*sys.argv[2:4], int(sys.argv[4]))
    else:
        main()
