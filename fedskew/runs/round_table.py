"""A run as a table that grows by one line a round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedskew.config.schema import Config
from fedskew.learning.judging import VALIDATION
from fedskew.text import duration

NARROW = 78  # characters of the narrowest table of rounds: 80 less the mark that its lines have in Flower's stream
COLUMNS = (  # of that table: name, width, rank; those of rank 0 are always there, the others from 1 on if they fit
    ("round", 5, 0), ("acc", 5, 0), ("bal.acc", 7, 0), ("F1", 5, 0), ("AUROC", 5, 3), ("loss", 6, 4),
    ("params M", 8, 1), ("params", 6, 0), ("MACs M", 7, 2), ("MACs", 4, 0), ("MB down/up", 10, 0), ("nodes", 5, 0),
    ("time", 6, 0), ("left", 6, 0), ("judged", 6, 0),
)  # fmt: skip


def round_line(record: Mapping[str, Any], config: Config, elapsed: float, width: int = NARROW) -> list[str]:
    """The table's line of one round, with the heading every twenty rounds; `-` where nothing was evaluated.

    Args:
        elapsed: seconds of all rounds so far.
        width: characters that there are; more than `NARROW` adds columns.
    """
    rounds = config.federation.rounds
    cells = _cells(record, rounds, elapsed)
    columns = _columns(rounds, width)
    line = " ".join(f"{cells[name]:>{size}}" for name, size in columns).rstrip()
    return [round_heading(config, width), line] if record["round"] % 20 == 0 else [line]


def round_heading(config: Config, width: int = NARROW) -> str:
    """The heading of the table of rounds; `*` in its last column marks the best round so far."""
    return " ".join(f"{name:>{size}}" for name, size in _columns(config.federation.rounds, width))


def _columns(rounds: int, width: int) -> list[tuple[str, int]]:
    """Names and widths of the columns: those that are always there, and as many others as `width` has room for."""
    sizes = {name: size for name, size, _ in COLUMNS} | {"round": max(5, 2 * len(str(rounds)) + 1)}
    chosen = {name for name, _, rank in COLUMNS if not rank}
    for rank in sorted({rank for _, _, rank in COLUMNS if rank}):
        more = chosen | {name for name, _, own in COLUMNS if own == rank}
        if sum(sizes[name] + 1 for name in more) - 1 <= width:
            chosen = more
    return [(name, sizes[name]) for name, _, _ in COLUMNS if name in chosen]


def _cells(record: Mapping[str, Any], rounds: int, elapsed: float) -> dict[str, str]:
    """The text of every column by its name."""
    number = record["round"]
    judged = record.get("selection") or {"value": None, "best": False}
    loss = record.get("train_loss")
    return {
        "round": f"{number}/{rounds}",
        "acc": figure(record["accuracy"]),
        "bal.acc": figure(record["balanced_accuracy"]),
        "F1": figure(record["f1_macro"]),
        "AUROC": figure(record.get("auroc_macro")),
        "loss": _hidden(record, "loss") if loss is None else f"{loss:.3f}",
        "params M": f"{record['parameters'] / 1e6:.3f}",
        "params": f"{record['parameters'] / record['dense_parameters']:.0%}",
        "MACs M": f"{record['macs'] / 1e6:.1f}",
        "MACs": f"{record['macs'] / record['dense_macs']:.0%}",
        "MB down/up": f"{_megabytes(record['bytes_down'])}/{_megabytes(record['bytes_up'])}",
        "nodes": f"{record['clients_ok']}/{record['clients_ok'] + record['clients_failed']}",
        "time": f"{record['seconds']:.1f}s" if record["seconds"] < 60 else duration(record["seconds"]),
        "left": duration(elapsed / number * (rounds - number)) if number else "-",
        "judged": (
            _hidden(record, f"validation-{judged.get('metric')}") + " "
            if judged["value"] is None and judged.get("source") == VALIDATION
            else figure(judged["value"]) + ("*" if judged["best"] else " ")
        ),
    }


def _hidden(record: Mapping[str, Any], metric: str) -> str:
    """What stands for a figure that there is not: that nodes suppress it, or that nobody has it."""
    nodes = (record.get("nodes") or {}).values()
    return "supp." if any(metric in node and node[metric] is None for node in nodes) else "-"


def figure(value: float | None) -> str:
    """Three digits; `-` where there is no figure."""
    return "-" if value is None else f"{value:.3f}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count < 99.95e6 else f"{count / 1e6:.0f}"
