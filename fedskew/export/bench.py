"""What models cost on this machine: each in a process of its own, all taking turns, so that noise falls on all."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fedskew.errors import FedskewError
from fedskew.tools.evaluate import model_file

BATCHES = (1, 16)
THREADS = (1, 2, 4)
ROUND_SECONDS = 0.25  # of calls of one model in one round, about
MOST_CALLS = 50  # in a round
WIDTH = 200  # of the table: names of models are not broken
LEGEND = (
    "memory: the most that the process had at batch 1, Python and the library with it; ratio: of the time of one image "
    "to the first model's, median over the rounds of the fastest calls in a round"
)
ENDED = 10  # seconds that a process has to end
Say = Callable[[str], None]


class BenchError(FedskewError, RuntimeError):
    """A model that cannot be measured; the message names the file and says why."""


@dataclass
class Worker:
    """A process with a model.

    Attributes:
        startup: seconds from its start to its first answer, and what its first line says.
    """

    name: str
    process: subprocess.Popen[str]
    startup: dict[str, float]

    def seconds(self, batch: int, calls: int) -> list[float]:
        """Of each of so many calls."""
        self.ask(batch, calls)
        found: list[float] = self._last["seconds"]
        return found

    def ask(self, batch: int, calls: int) -> None:
        """Let it work, and read what it says."""
        if self.process.stdin is None:
            raise AssertionError("a worker without standard input")
        try:
            self.process.stdin.write(f"{batch} {calls}\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it has ended: its last line says why, or its exit code
            pass
        self._last = read_line(self.name, self.process)

    @property
    def peak_bytes(self) -> int:
        """The most memory that it had until now."""
        return int(self._last["bytes"])


def read_line(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of a worker.

    Raises:
        BenchError: it says that it failed, or says nothing any more.
    """
    line = process.stdout.readline() if process.stdout else ""
    said = json.loads(line) if line else {"error": f"its process ended with exit code {process.wait(ENDED)}"}
    if "error" in said:
        raise BenchError(f"{name} cannot be measured: {said['error']}")
    return dict(said)


@contextmanager
def started(name: str, model: Path, threads: int) -> Iterator[Worker]:
    """A worker, for as long as it is needed."""
    environment = os.environ | {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    begin = time.perf_counter()
    command = [sys.executable, "-m", "fedskew.export.bench_worker", str(model), str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env=environment) as process:  # fmt: skip
        try:
            said = read_line(name, process)
            yield Worker(name, process, said | {"seconds": time.perf_counter() - begin})
        finally:
            process.kill()


def bench(
    models: Mapping[str, Path], *, rounds: int = 20, threads: Sequence[int] = THREADS, say: Say = lambda _: None
) -> list[dict[str, Any]]:
    """A row for each model and number of threads, the first model being what the others are compared with.

    Args:
        models: model files and ONNX files by the names of their rows.
        rounds: in each of which every model has its turn at batch 1; at batch 16 a sixteenth as many, two at least.
        threads: as many as there are cores, at most; others are left out.

    Returns:
        Rows with `model`, `threads`, `file_bytes`, `startup_s` (wall), `startup_cpu_s`, `memory_bytes` (peak of the
        process at batch 1), `library_bytes` (the process before the model), `memory_16_bytes`, `p50_ms`, `p95_ms` and
        `min_ms` of one image, `images_s` at batch 16, and the `ratio` of its latency and `ratio_16` of its time at
        batch 16 to the first model's: the median over the rounds, of the fastest calls within a round.

    Raises:
        BenchError: a model cannot be measured.
    """
    counts = [count for count in threads if count <= cores()]
    rows = []
    for count in counts:
        with ExitStack() as stack:
            workers = []
            for name, model in models.items():
                say(f"{name} is started with {count} thread{'s' if count > 1 else ''}")
                workers.append(stack.enter_context(started(name, model, count)))
            measured = {batch: _turns(workers, batch, max(2, rounds // batch), say) for batch in BATCHES}
            rows += [_row(worker, models, count, measured) for worker in workers]
    return rows


def _turns(workers: Sequence[Worker], batch: int, rounds: int, say: Say) -> dict[str, dict[str, Any]]:
    """By name: the seconds of all calls [rounds, calls], and the most memory that was needed."""
    for worker in workers:
        worker.seconds(batch, 0)  # the first call does not count
    calls = {worker.name: _calls(worker, batch) for worker in workers}
    seconds: dict[str, list[list[float]]] = {worker.name: [] for worker in workers}
    begin = time.monotonic()
    for done in range(rounds):
        for worker in workers:
            seconds[worker.name].append(worker.seconds(batch, calls[worker.name]))
        left = (time.monotonic() - begin) / (done + 1) * (rounds - done - 1)
        say(f"batch {batch}: round {done + 1} of {rounds}, {left:.0f} s left")
    return {worker.name: {"seconds": np.array(seconds[worker.name]), "bytes": worker.peak_bytes} for worker in workers}


def _calls(worker: Worker, batch: int) -> int:
    """How many calls make a round."""
    (once,) = worker.seconds(batch, 1)
    return int(np.clip(ROUND_SECONDS / once, 1, MOST_CALLS))


def _row(
    worker: Worker, models: Mapping[str, Path], threads: int, measured: Mapping[int, Mapping[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    one, many = (measured[batch] for batch in BATCHES)
    seconds, first = one[worker.name]["seconds"], next(iter(models))
    p50, p95 = np.quantile(seconds, [0.5, 0.95])
    return {
        "model": worker.name,
        "threads": threads,
        "file_bytes": models[worker.name].stat().st_size,
        "startup_s": round(worker.startup["seconds"], 3),
        "startup_cpu_s": round(worker.startup["cpu_seconds"], 3),
        "library_bytes": int(worker.startup["bytes_before"]),
        "memory_bytes": one[worker.name]["bytes"],
        "memory_16_bytes": many[worker.name]["bytes"],
        "p50_ms": round(1e3 * float(p50), 4),
        "p95_ms": round(1e3 * float(p95), 4),
        "min_ms": round(1e3 * float(seconds.min()), 4),
        "images_s": round(BATCHES[1] / float(np.median(many[worker.name]["seconds"])), 2),
        "ratio": round(_ratio(one, worker.name, first), 4),
        "ratio_16": round(_ratio(many, worker.name, first), 4),
    }


def _ratio(measured: Mapping[str, Mapping[str, Any]], name: str, first: str) -> float:
    mine, theirs = (measured[which]["seconds"].min(1) for which in (name, first))  # [rounds]
    return float(np.median(mine / theirs))


def cores() -> int:
    """How many threads can run at once here."""
    return os.cpu_count() or 1


def model_names(models: Sequence[Path], *, best: bool = False) -> dict[str, Path]:
    """Model files and ONNX files by the names of their rows.

    Raises:
        RunFolderError: neither a run folder nor such a file.
        BenchError: one is given twice.
    """
    found: dict[str, Path] = {}
    for place in models:
        file = model_file(place, best=best and place.is_dir())
        if file in found.values():
            raise BenchError(f"{place} is given twice; give each model once")
        found[str(place)] = file
    return found


def bench_text(rows: Sequence[Mapping[str, Any]], asked: Sequence[int] = THREADS) -> str:
    """A table for a person, and how it is to be read."""
    console = Console(width=WIDTH, file=io.StringIO())
    figures = ("file MB", "start s", "memory MB", "p50 ms", "p95 ms", "ratio", f"images/s ({BATCHES[1]})")
    table = Table("model", "threads", *figures, box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row["model"], str(row["threads"]), f"{row['file_bytes'] / 1e6:.2f}", f"{row['startup_s']:.2f}",
            f"{row['memory_bytes'] / 1e6:.0f}", f"{row['p50_ms']:.2f}", f"{row['p95_ms']:.2f}", f"{row['ratio']:.3f}",
            f"{row['images_s']:.1f}",
        )  # fmt: skip
    with console.capture() as captured:
        console.print(table)
    lines = [captured.get().rstrip(), LEGEND]
    if left_out := [count for count in asked if count > cores()]:
        lines.append(f"not measured with {', '.join(map(str, left_out))} threads: there are {cores()} cores")
    return "\n".join(lines)
