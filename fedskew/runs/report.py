"""What a person reads of a run: its head, a line a round, its summary."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedskew.config.schema import Config
from fedskew.data.prepare import DataSet
from fedskew.data.splits import Split
from fedskew.metrics.classification import BY_CLASS, NUMBERS
from fedskew.runs.judging import best_record, evaluated, in_words, judge

COLUMNS = "round   acc   bal.acc  macro F1   params M (%)     MACs M (%)    down/up MB   nodes   seconds   left  judged"
FLOWER_LOOP = "flwr/serverapp/strategy/"
COST_KEYS = ("parameters", "macs", "macs_total", "memory_bytes", "model_bytes")


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Leave out what Flower's loop says of every round: the table says it in one line."""
    logger = logging.getLogger("flwr")

    def wanted(entry: logging.LogRecord) -> bool:
        return entry.levelno > logging.INFO or FLOWER_LOOP not in entry.pathname.replace("\\", "/")

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def head_lines(folder: Path, config: Config, data: DataSet, split: Split, nodes: int, held_back: int) -> list[str]:
    """Where the run is kept, on what data, and what its rounds are judged by."""
    clients = f"{len(split.clients)} for {nodes} nodes ({config.data.partition})" if nodes else "nodes have their own"
    lines = [
        f"run folder: {folder}",
        f"preset {config.preset}, model {config.model.name}, pruning {config.prune.method}, seed {config.run.seed}",
        f"data {data.place}: {len(split.test)} test, {len(split.open)} open ({held_back} held back), {clients}; "
        f"split by {config.data.split_by}",
        f"rounds are judged by {in_words(judge(config, None))} (* is the best so far)",
    ]
    return lines + [f"data: {note}" for note in data.notes[:20]]


def round_line(record: Mapping[str, Any], config: Config, elapsed: float) -> list[str]:
    """The table's line of one round, with the heading every twenty rounds; `-` where nothing was evaluated."""
    number, rounds = record["round"], config.federation.rounds
    dense = _dense_cost(record)
    judged = record.get("selection") or {"value": None, "best": False}
    left = elapsed / max(1, number) * (rounds - number) if number else 0.0
    line = (
        f"{number:3d}/{rounds:<3d} {_figure(record['accuracy'])}   {_figure(record['balanced_accuracy'])}"
        f"     {_figure(record['f1_macro'])}"
        f"   {record['parameters'] / 1e6:7.3f} ({record['parameters'] / dense[0]:4.0%})"
        f"  {record['macs'] / 1e6:8.1f} ({record['macs'] / dense[1]:4.0%})"
        f"  {record['bytes_down'] / 1e6:5.1f}/{record['bytes_up'] / 1e6:<5.1f}"
        f"  {record['clients_ok']:2d}/{record['clients_ok'] + record['clients_failed']:<2d}"
        f"  {record['seconds']:7.1f}  {duration(left) if number else '-':>6}"
        f"   {_figure(judged['value'])}{'*' if judged['best'] else ''}"
    )
    return [COLUMNS, line] if number % 20 == 0 else [line]


def _figure(value: float | None) -> str:
    return f"{'-':>5}" if value is None else f"{value:5.3f}"


def _dense_cost(record: Mapping[str, Any]) -> tuple[int, int]:
    return record["dense_parameters"], record["dense_macs"]


def duration(seconds: float) -> str:
    """`4m05s`, `2h10m`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def summary_of(records: Sequence[Mapping[str, Any]], config: Config, progress: Mapping[str, Any]) -> dict[str, Any]:
    """The final state of a run, its best round and what that was chosen by, and what the run cost.

    `final` is the last round that was evaluated: the last of all, unless a run was resumed with fewer rounds.
    """
    last, final = records[-1], evaluated(records)[-1]
    best = best_record(records)
    chosen = final if best is None else best
    numbers = (*NUMBERS, *COST_KEYS)
    return {
        "preset": config.preset,
        "method": config.prune.method,
        "seed": config.run.seed,
        "rounds": last["round"],
        "final": {key: final.get(key) for key in ("round", *numbers, *BY_CLASS)},
        "best": {"round": chosen["round"], "chosen_by": _chosen_by(best)} | {key: chosen.get(key) for key in numbers},
        "dense": {key: last[f"dense_{key}"] for key in ("parameters", "macs", "macs_total", "memory_bytes")},
        "bytes_down": last["bytes_down_total"],
        "bytes_up": last["bytes_up_total"],
        "client_failures": sum(record["clients_failed"] for record in records),
        "rounds_below_quorum": sum(record["kept_model"] for record in records),
        "stopped": progress.get("stopped"),
        "seconds": round(progress["seconds"], 1),
    }  # fmt: skip


def _chosen_by(best: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {key: best["selection"][key] for key in ("source", "metric", "value")} if best else None


def summary_text(summary: Mapping[str, Any], folder: Path) -> str:
    """The table that a run ends with. MB are 10⁶ bytes, MiB 2²⁰."""
    final, dense = summary["final"], summary["dense"]
    rows = [
        ("accuracy", f"{final['accuracy']:.3f}", ""),
        ("balanced accuracy", f"{final['balanced_accuracy']:.3f}", _about_best(summary["best"])),
        ("macro F1", f"{final['f1_macro']:.3f}", ""),
        ("macro AUROC", _figure(final["auroc_macro"]), ""),
        (
            "parameters",
            f"{final['parameters'] / 1e6:.3f} M",
            f"{final['parameters'] / dense['parameters']:.1%} of dense",
        ),
        ("MACs (linear/conv)", f"{final['macs'] / 1e6:.1f} M", f"{final['macs'] / dense['macs']:.1%} of dense"),
        (
            "MACs with attention",
            f"{final['macs_total'] / 1e6:.1f} M",
            f"{final['macs_total'] / dense['macs_total']:.1%} of dense",
        ),
        (
            "memory footprint",
            f"{final['memory_bytes'] / 2**20:.2f} MiB",
            f"{final['memory_bytes'] / dense['memory_bytes']:.1%} of dense",
        ),
        ("model file", f"{final['model_bytes'] / 1e6:.2f} MB", ""),
        ("sent to nodes", f"{summary['bytes_down'] / 1e6:.1f} MB", ""),
        ("received from nodes", f"{summary['bytes_up'] / 1e6:.1f} MB", ""),
    ]
    rows[4:4] = _recall_rows(final)
    width = max(len(name) for name, _, _ in rows)
    about = f"{summary['method']}, seed {summary['seed']}, {duration(summary['seconds'])}"
    lines = [f"after {summary['rounds']} rounds ({about}):"]
    lines += [f"  {name:<{width}}  {value:>11}  {note}".rstrip() for name, value, note in rows]
    lines += [f"resumed: {change_text(change)}" for change in summary.get("changes", ())]
    return "\n".join([*lines, f"run folder: {folder}"])


def change_text(change: Mapping[str, Any]) -> str:
    """`federation.rounds 8 → 12 from round 9`."""
    return f"{change['key']} {change['old']} → {change['new']} from round {change['round']}"


def _about_best(best: Mapping[str, Any]) -> str:
    chosen = best["chosen_by"]
    if chosen is None:
        return "no round could be judged: best/ is the last"
    return (
        f"{best['balanced_accuracy']:.3f} in the best round, {best['round']}, "
        f"chosen by {in_words(chosen)} ({chosen['value']:.3f})"
    )


def _recall_rows(final: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Recall and number of test images of each class that has any."""
    recall, support = final["recall"], final["support"] or {}
    return [(f"recall {name}", f"{value:.3f}", f"n={support[name]}" if name in support else "")
            for name, value in recall.items() if value is not None]  # fmt: skip
