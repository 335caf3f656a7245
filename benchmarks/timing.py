"""What the benchmarks share: options, interleaved medians, the machine's description, a table and a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# before anything imports flwr
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import torch

RESULTS = Path(__file__).parent / "results"
# of a processor, which its name does not tell and figures of bfloat16 and int8 depend on
EXTENSIONS = {"amx_bf16": "AMX", "avx512_vnni": "AVX-512 VNNI"}
Case = tuple[Any, ...]  # (model, numbers …)


def parser(documentation: str | None) -> argparse.ArgumentParser:
    """The option that every benchmark has: where its record goes."""
    found = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument(
        "--out", type=Path, default=RESULTS, metavar="FOLDER", help="the record goes here; default: benchmarks/results"
    )
    return found


def options(
    documentation: str | None, shape: str, cases: Sequence[Case], repeats: int | None = None
) -> argparse.Namespace:
    """What was asked for on the command line: `out`, `cases`, and `repeats` where there is a default.

    Args:
        documentation: of the benchmark, for --help.
        shape: of a case, as MODEL,BATCH: the first is a name, the others are numbers.
        cases: the default.
        repeats: the default; None where cases have their own.
    """

    def case(text: str) -> Case:
        name, *numbers = text.split(",")
        if len(numbers) != shape.count(",") or not all(number.isdecimal() for number in numbers):
            raise argparse.ArgumentTypeError(f"expected {shape}, found {text}")
        return name, *(int(number) for number in numbers)

    found = parser(documentation)
    found.add_argument("--case", dest="cases", type=case, action="append", metavar=shape,
                       help="measure this and not the default cases; repeatable")  # fmt: skip
    if repeats is not None:
        found.add_argument("--repeats", type=int, default=repeats, metavar="N", help=f"default: {repeats}")
    asked = found.parse_args()
    asked.cases = asked.cases or list(cases)
    return asked


def interleaved(
    cases: Mapping[str, Callable[[], object]], repeats: int, *, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every case in every repetition, after one run of each that does not count.

    The cases take turns, so that whatever else the machine does falls on all of them; the default clock counts
    this process's CPU time only, which other processes disturb little.
    """
    for run in cases.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Median over the repetitions of the ratio within one repetition."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def machine() -> dict[str, Any]:
    """Processor, threads, versions, date and load: what a figure needs to be read."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    extensions = [name for flag, name in EXTENSIONS.items() if flag in flags]
    return ", ".join([fields.get("model name", platform.machine()), *extensions])


def finish(name: str, rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Print the rows as a table and as JSON, and keep them as `NAME.json` in a folder."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_text(row.get(key, "")) for key in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    text = json.dumps({"benchmark": name, "machine": machine(), "rows": list(rows)}, indent=1)
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(text + "\n")


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
