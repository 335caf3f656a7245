"""What a person reads of a run before its first round and after its last: its head and its summary."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedskew.config.schema import Config
from fedskew.data.splits import Split
from fedskew.learning.datasets import DataSet
from fedskew.learning.judging import best_record, evaluated, in_words, judge
from fedskew.learning.precision import precision_in_words
from fedskew.learning.train import pick_device
from fedskew.metrics.classification import BY_CLASS, NUMBERS
from fedskew.runs.reading import IN
from fedskew.runs.round_table import NARROW, figure
from fedskew.text import duration

FLOWER_LOOP = "flwr/serverapp/strategy/"
NOTES = 20  # of the data, at most
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


def head_lines(
    config: Config, data: DataSet, split: Split, manifest: Mapping[str, Any], scoring: str = ""
) -> list[str]:
    """What a run is of, on what data, and what its rounds are judged by.

    Args:
        manifest: see `learning.manifest.run_manifest`.
        scoring: see `ServerData.scoring_note`.
    """
    nodes, held_back = manifest["nodes"], len(manifest["held_back"])
    clients = f"{len(split.clients)} for {nodes} nodes ({config.data.partition})" if nodes else "nodes have their own"
    if config.data.partition == "pooled":
        clients = f"{len(split.clients) + len(split.open) - held_back} to train on in one place"
    lines = [
        f"preset {config.preset}, model {config.model.name}, pruning {config.prune.criterion}, seed {config.run.seed}",
        f"data {data.place}: {len(split.test)} test, {len(split.open)} open ({held_back} held back), {clients}; "
        f"split by {config.data.split_by}",
        f"rounds are judged by {in_words(judge(config, None))} (* is the best so far)",
        f"computes in {precision_in_words(config.train.precision, pick_device(config.train.device))}",
        *([scoring] if scoring else []),
        *part_lines(config, manifest.get("sites", ()), manifest["unused_validation"]),
    ]
    lines += [f"data: {note}" for note in data.notes[:NOTES]]
    return [part for line in lines for part in _wrapped(line)]


def part_lines(config: Config, sites: Sequence[Sequence[str]], unused: int) -> Iterator[str]:
    """What a person must know of the nodes' parts, a line for each: which site is where, and images without a use.

    Args:
        sites: names of the sites at each node, where data are shared by site; else empty.
        unused: images that nodes hold out for validation although they do not evaluate.
    """
    if sites:
        yield "sites: " + ", ".join(f"partition-{i} = {' + '.join(names)}" for i, names in enumerate(sites))
        count = len({name for names in sites for name in names})
        if count != len(sites):
            how = "sites are divided among several" if count < len(sites) else "sites are merged at one"
            yield (
                f"WARNING: {len(sites)} nodes, but the data have {count} sites: {how}. For a node a site give "
                f"--nodes {count}"
            )
    idle = config.data.validation > 0 and not config.federation.evaluate_clients
    if unused or (idle and config.data.clients == "own"):
        images = f"{unused} of the nodes' images" if unused else "some of each node's images"
        yield (
            f"{images} are held out for validation (data.validation={config.data.validation:g}) and unused: nodes do "
            "not evaluate (federation.evaluate-clients=false). data.validation=0 trains on them too"
        )


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, NARROW, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


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
        "method": config.prune.criterion,
        "seed": config.run.seed,
        "rounds": last["round"],
        "final": {key: final.get(key) for key in ("round", *numbers, *BY_CLASS)},
        "best": {"round": chosen["round"], "chosen_by": _chosen_by(best)} | {key: chosen.get(key) for key in numbers},
        "dense": {key: last[f"dense_{key}"] for key in ("parameters", "macs", "macs_total", "memory_bytes")},
        "bytes_down": last["bytes_down_total"],
        "bytes_up": last["bytes_up_total"],
        "client_failures": sum(record["clients_failed"] for record in records),
        "rounds_below_quorum": sum(record["kept_model"] and not record.get("rolled_back") for record in records),
        "rounds_rolled_back": sum(bool(record.get("rolled_back")) for record in records),
        "participation": _participation(records),
        "pruning_steps": sum(_has_step(record) for record in records),
        "pruning_undone": sum(bool(record.get("pruning_undone")) for record in records),
        "stopped": progress.get("stopped"),
        "seconds": round(progress["seconds"], 1),
    }  # fmt: skip


def _participation(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Of every site: how many rounds say what became of it, and in how many of these its update is in the model."""
    rounds = [record.get("participation", {}) for record in records]
    return {
        site: {"rounds": sum(site in row for row in rounds), "in": sum(row.get(site) == IN for row in rounds)}
        for site in sorted({site for row in rounds for site in row})
    }


def _has_step(record: Mapping[str, Any]) -> bool:
    """Whether units were scored after a round: their scores are on record."""
    return any(key.endswith("_scores") for block in record.get("blocks", ()) for key in block)


def warnings_of(summary: Mapping[str, Any]) -> list[str]:
    """What a person must know who takes a run's result for what its name says; a line for each."""
    lines, rounds = [], summary["rounds"]
    for count, what in ((summary.get("rounds_rolled_back"), "rolled back (federation.rollback)"),
                        (summary.get("rounds_below_quorum"), "below quorum (too few usable replies)")):  # fmt: skip
        if count:
            lines.append(f"{count} of {_count(rounds, 'round')} {what}: the model before was kept")
    if undone := summary.get("pruning_undone"):
        lines.append(f"{_count(undone, 'pruning step')} undone: what was left was too bad (federation.rollback)")
    if learned_nothing(summary):
        lines.append("no round's training was taken: the model is still the one that the run began with")
    if summary["method"] != "none" and summary["final"]["parameters"] == summary["dense"]["parameters"]:
        steps = summary.get("pruning_steps")
        how = "" if steps is None else f" in {_count(steps, 'step')}" if steps else ": there was no pruning step"
        lines.append(f"pruning by {summary['method']} removed nothing{how}: this is the dense model")
    return lines


def learned_nothing(summary: Mapping[str, Any]) -> bool:
    """Whether a run of some rounds kept the model that it began with in all of them."""
    kept = summary.get("rounds_rolled_back", 0) + summary.get("rounds_below_quorum", 0)
    return 0 < summary["rounds"] == kept


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _chosen_by(best: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {key: best["selection"][key] for key in ("source", "metric", "value")} if best else None


def summary_text(summary: Mapping[str, Any], folder: Path) -> str:
    """The table that a run ends with. MB are 10⁶ bytes, MiB 2²⁰."""
    rows = _figure_rows(summary)
    about = f"{summary['method']}, seed {summary['seed']}, {duration(summary['seconds'])}"
    lines = [f"after {_count(summary['rounds'], 'round')} ({about}):", *_aligned(rows)]
    lines += [part for line in warnings_of(summary) for part in _wrapped(f"warning: {line}")]
    lines += _wrapped(f"best round: {_about_best(summary)}")
    if left_out := _left_out(summary):
        lines += _wrapped(f"not in every round: {left_out}; fedskew participation says why")
    if summary.get("stopped"):
        lines += _wrapped(f"stopped early: {summary['stopped']}")
    lines += [part for change in summary.get("changes", ()) for part in _wrapped(f"resumed: {change_text(change)}")]
    return "\n".join([*lines, f"run folder: {folder}"])


def _figure_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """How good the final model is, and how large beside the dense one."""
    final, dense = summary["final"], summary["dense"]
    rows = [
        ("accuracy", f"{final['accuracy']:.3f}", ""),
        ("balanced accuracy", f"{final['balanced_accuracy']:.3f}", ""),
        ("macro F1", f"{final['f1_macro']:.3f}", ""),
        ("macro AUROC", figure(final["auroc_macro"]), ""),
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
    return rows


def _left_out(summary: Mapping[str, Any]) -> str:
    """`site-d (2 of 20), site-h (0 of 20)`; empty if the updates of all who were asked are in every round."""
    known = summary.get("participation") or {}
    return ", ".join(f"{site} ({row['in']} of {row['rounds']})" for site, row in known.items()
                     if row["in"] < row["rounds"])  # fmt: skip


def change_text(change: Mapping[str, Any]) -> str:
    """`federation.rounds 8 → 12 from round 9`."""
    return f"{change['key']} {change['old']} → {change['new']} from round {change['round']}"


def evaluation_text(found: Mapping[str, Any]) -> str:
    """What `evaluation.evaluate_run` found, for a person."""
    rows = [
        ("accuracy", figure(found["accuracy"]), ""),
        ("balanced accuracy", figure(found["balanced_accuracy"]), ""),
        ("macro F1", figure(found["f1_macro"]), ""),
        ("macro AUROC", figure(found["auroc_macro"]), ""),
        *_recall_rows(found),
        ("calibration error", figure(found["expected_calibration_error"]), ""),
    ]
    skipped = f", {found['skipped']} unreadable" if found["skipped"] else ""
    lines = [found["model"], f"{found['data']}: {found['examples']} {_images_of(found)}{skipped}"]
    lines += [part for line in found.get("warnings", ()) for part in _wrapped(f"WARNING: {line}")]
    lines += [part for note in found.get("notes", ())[:NOTES] for part in _wrapped(f"data: {note}")]
    lines += _aligned(rows)
    return "\n".join([*lines, f"{found['parameters'] / 1e6:.3f} M parameters, {found['macs'] / 1e6:.1f} M MACs"])


def _images_of(found: Mapping[str, Any]) -> str:
    if found["split"] == "all":
        return "all images"
    same = {True: "the run's split", False: "another split than the run's", None: "a split by its settings"}
    return f"test images of {same[found.get('split_as_in_run')]}"


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Names, values and notes in columns."""
    width = max(len(name) for name, _, _ in rows)
    return [f"  {name:<{width}}  {value:>11}  {note}".rstrip() for name, value, note in rows]


def _about_best(summary: Mapping[str, Any]) -> str:
    best, chosen = summary["best"], summary["best"]["chosen_by"]
    if chosen is None and learned_nothing(summary):
        return "none, as none was taken: best/ is the model that the run began with"
    if chosen is None:
        return "none could be judged, so best/ is the last"
    return (
        f"{best['round']}, balanced accuracy {best['balanced_accuracy']:.3f}; chosen by {in_words(chosen)} "
        f"({chosen['value']:.3f})"
    )


def _recall_rows(final: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Recall and number of test images of each class that has any."""
    recall, support = final["recall"], final["support"] or {}
    return [(f"recall {name}", f"{value:.3f}", f"n={support[name]}" if name in support else "")
            for name, value in recall.items() if value is not None]  # fmt: skip
