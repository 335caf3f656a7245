"""CPU seconds from the start of a fresh process to a trained reply: every message is a new process in deployment.

    python benchmarks/client_start.py

The data set is generated and its cache filled beforehand. Receiving and sending the message, Flower's own work, is
not measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = ("imports", "data", "model", "train", "rest")
CASES = (("swin_small64_patch4_window4_64",), ("swin_tiny_patch4_window7_224",))
REPEATS = 3
CHILD = "--child"  # what a fresh process of this file is told first


def child(model: str, state: Path) -> None:
    """Answer one training task and print the CPU seconds of its phases."""
    import clientapp

    seconds = {"imports": time.process_time()}  # since the process began
    grid, sent = prepared(clientapp.app, model, state)
    from fedskew.federation import client
    from fedskew.learning.local import Trainer

    for phase, place, name in (
        ("data", client, "node_data"),
        ("model", client, "load_model"),
        ("train", Trainer, "train"),
    ):
        setattr(place, name, timed(getattr(place, name), phase, seconds))
    start = time.process_time()
    (reply,) = grid.pull_messages(sent)
    seconds["rest"] = time.process_time() - start - sum(seconds[phase] for phase in ("data", "model", "train"))
    assert not reply.has_error(), reply.error
    print(*(seconds[phase] for phase in PHASES))


def timed(function: Callable[..., Any], phase: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """A function that notes its CPU seconds."""

    def run(*args: Any, **named: Any) -> Any:
        start = time.process_time()
        result = function(*args, **named)
        seconds[phase] = time.process_time() - start
        return result

    return run


def prepared(app: Any, model: str, state: Path) -> tuple[Any, list[str]]:
    """An in-process grid with one training task waiting; makes the model the first time."""
    import torch
    from flwr.app import Message
    from safetensors.torch import load_file, save_file

    from fedskew.config.schema import Config, DataConfig, ModelConfig, TrainConfig
    from fedskew.federation.grids import LocalGrid
    from fedskew.federation.messages import Task, pack_task
    from fedskew.federation.weights import to_record
    from fedskew.model.catalogue import dense_architecture
    from fedskew.model.fusion import build

    torch.set_num_threads(1)
    config = Config(
        data=DataConfig(source="generated", generated_images=50),
        model=ModelConfig(name=model),
        train=TrainConfig(batch_size=4, threads=1, device="cpu"),
    )
    arch = dense_architecture(config.model)
    if not state.exists():
        save_file(build(arch).state_dict(), state)
    grid = LocalGrid(app, 2)
    task = pack_task(Task(1, 1, arch, config), to_record(load_file(state)))
    return grid, list(grid.push_messages([Message(task, 1, "train")]))


def import_shares(environment: dict[str, str]) -> list[dict[str, Any]]:
    """Share of every top-level package in the time of `import clientapp`, the largest first."""
    command = [sys.executable, "-X", "importtime", "-c", "import clientapp"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stderr
    spent: dict[str, int] = defaultdict(int)
    modules: dict[str, int] = defaultdict(int)
    for line in text.splitlines():
        own, *_, name = line.removeprefix("import time:").split("|")
        if own.strip().isdigit():
            package = name.strip().split(".")[0]
            spent[package] += int(own)
            modules[package] += 1
    total = sum(spent.values())
    largest = sorted(spent, key=lambda package: -spent[package])[:10]
    return [{"package": name, "modules": modules[name], "share": round(spent[name] / total, 3)} for name in largest]


def main() -> None:
    """Each model in fresh processes with a data cache that is warm."""
    from timing import finish, options

    asked = options(__doc__, "MODEL", CASES, REPEATS)
    rows = []
    root = os.environ.get("PYTHONPATH") or str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"FEDSKEW_HOME": home, "FLWR_HOME": home, "PYTHONPATH": root}
        for (model,) in asked.cases:
            command = [sys.executable, __file__, CHILD, model, str(Path(home) / f"{model}.safetensors")]
            runs = []
            for _ in range(1 + asked.repeats):  # the first fills the cache
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
                runs.append([float(value) for value in out.split()[-len(PHASES) :]])
            medians = [statistics.median(column) for column in zip(*runs[1:], strict=True)]
            row = {f"{phase} s": value for phase, value in zip(PHASES, medians, strict=True)}
            rows.append({"model": model, **row, "start-up s": sum(medians) - row["train s"]})
        finish("client_imports", import_shares(environment), asked.out)
    finish("client_start", rows, asked.out)


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
