"""One model in a process of its own: answers on standard output how long its calls took. `bench` starts it.

    python -m fedskew.export.bench_worker MODEL THREADS

A model file runs in PyTorch, an ONNX file in onnxruntime and without an import of torch. The first line is what the
start took; then each line `BATCH CALLS` on standard input gives a line with the seconds of so many calls. The first
call of a batch does not count.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedskew.errors import is_ours
from fedskew.tools.onnx_file import IMAGES, METADATA

KILOBYTE = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
Call = Callable[[int], Callable[[], object]]  # batch → one call


def main(model: Path, threads: int) -> None:
    """Serve calls until standard input ends."""
    before = _peak_bytes()
    clock = time.process_time if threads == 1 else time.perf_counter
    call = of_onnx(model, threads) if model.suffix == ".onnx" else of_torch(model, threads)
    calls = {1: call(1)}
    calls[1]()
    _answer({"cpu_seconds": time.process_time(), "bytes_before": before, "bytes": _peak_bytes()})
    for line in sys.stdin:
        batch, count = map(int, line.split())
        if batch not in calls:
            calls[batch] = call(batch)
            calls[batch]()  # the first takes memory and plans
        seconds = []
        for _ in range(count):
            start = clock()
            calls[batch]()
            seconds.append(clock() - start)
        _answer({"seconds": seconds, "bytes": _peak_bytes()})


def of_onnx(model: Path, threads: int) -> Call:
    """Calls of an exported file."""
    from fedskew.export.session import logits_of, open_session

    session = open_session(model.read_bytes(), threads)
    shapes = {value.name: value.shape[1:] for value in session.get_inputs()}
    if IMAGES not in shapes or set(shapes) - {IMAGES, METADATA}:
        raise ValueError(f"its inputs are {', '.join(shapes)}, those of an exported model are {IMAGES} and {METADATA}")

    def call(batch: int) -> Callable[[], object]:
        images, metadata = random_inputs(batch, shapes[IMAGES][-1], shapes.get(METADATA, [0])[0])
        return lambda: logits_of(session, images, metadata)

    return call


def of_torch(model: Path, threads: int) -> Call:
    """Calls of a model file."""
    import torch

    from fedskew.model.modelfile import load_model

    torch.set_num_threads(threads)
    module = load_model(model)
    arch = module.architecture

    def call(batch: int) -> Callable[[], object]:
        images, metadata = map(torch.from_numpy, random_inputs(batch, arch.image_size, len(arch.vocabularies)))

        def run() -> object:
            with torch.inference_mode():
                return module(images, metadata)

        return run

    return call


def random_inputs(batch: int, size: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [B, 3, S, S] and metadata [B, V]: how long a call takes does not depend on what they show."""
    images = np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)
    return images, np.zeros((batch, columns), dtype=np.int64)


def _peak_bytes() -> int:
    """The most memory that this process had; `ru_maxrss` begins at what the process had that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILOBYTE


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except Exception as error:  # noqa: BLE001 - whoever started this process has to hear of it
        reason = str(error) if is_ours(error) else f"{type(error).__name__}: {error}"
        _answer({"error": reason.splitlines()[0][:500]})
        sys.exit(1)
