"""What the template of a run is filled with: sentences, cells and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedskew.data.samples import HAM10000_CLASSES
from fedskew.report import quality_figures, run_figures
from fedskew.report.content import Content
from fedskew.report.coverage import Coverage, coverage_of
from fedskew.report.network import CHANNELS, HEADS, Block, Step, blocks_of, steps_of
from fedskew.report.numbers import megabytes, percent
from fedskew.report.quality import Quality, quality_of
from fedskew.report.reproduction import commands_of, configuration_of, facts_of
from fedskew.report.traffic import Traffic, traffic_of
from fedskew.runs.round_table import figure
from fedskew.text import duration
from fedskew.tools.participation import LEGEND

SIGNED = ("skewness", "skewness-reversed")  # criteria whose scores are removed where they are not above 0


@dataclass(frozen=True)
class Tile:
    """A number that is seen first."""

    title: str
    value: str
    note: str


@dataclass(frozen=True)
class Cost:
    """A row of what the model costs; `bar` is the share that is left, in per cent, or None where there is none."""

    title: str
    dense: str
    now: str
    share: str
    bar: float | None


def run_view(content: Content) -> dict[str, Any]:
    """Everything that `run.html.md` names. To be called within `drawing.page_style`."""
    quality, coverage, traffic = quality_of(content), coverage_of(content.path), traffic_of(content.records)
    blocks, steps = blocks_of(content.records), steps_of(content.records)
    return {
        "run": content,
        "about": _about(content),
        "state": _state(content),
        "verdict": _verdict(content, quality),
        "coverage": coverage,
        "warnings": _warnings(content),
        "unit": {"patient": "patients", "lesion": "lesions"}.get(content.split.get("unit", ""), "lesions or patients"),
        "tiles": _tiles(content, quality, traffic),
        "quality": quality,
        "judged_note": _judged_note(content),
        "costs": _costs(content, traffic),
        "pruning_line": _pruning_line(content, blocks, steps),
        "has_pruned": any(any(step.gone.values()) for step in steps),
        "score_caption": _score_caption(content),
        "steps": steps,
        "legend": _legend(coverage),
        "figures": _figures(content, quality, coverage, traffic, blocks, steps),
        "commands": commands_of(content),
        "facts": facts_of(content),
        "changes": [str(change) for change in content.changes],
        "configuration": configuration_of(content),
        "round_rows": [_round_row(record) for record in content.records],
    }


def _figures(
    content: Content, quality: Quality | None, coverage: Coverage, traffic: Traffic, blocks: Sequence[Block],
    steps: Sequence[Step],
) -> dict[str, Markup | None]:  # fmt: skip
    rounds = [record["round"] for record in content.records]
    names = content.predictions.classes if content.predictions else ()
    return {
        "over-rounds": quality_figures.over_rounds(content.records, steps, content.judged["round"]),
        "recall": quality_figures.recall_by_class(quality.classes) if quality else None,
        "confusion": quality_figures.confusion_figure(quality, names) if quality else None,
        "calibration": quality_figures.calibration_figure(quality) if quality else None,
        "groups": quality_figures.groups_figure(quality.groups) if quality else None,
        "size": run_figures.size_over_rounds(content.records),
        "traffic": run_figures.traffic_figure(traffic),
        "network": run_figures.network_figure(blocks),
        "pruning-heads": run_figures.pruning_over_rounds(blocks, rounds, HEADS),
        "pruning-hidden": run_figures.pruning_over_rounds(blocks, rounds, CHANNELS),
        "scores": run_figures.scores_figure(steps, signed=content.criterion in SIGNED),
        "signs": run_figures.signs_figure(steps),
        "coverage": run_figures.coverage_figure(coverage),
    }


def _about(content: Content) -> str:
    config = content.config
    if config is None:
        return "fedskew"
    how = "no pruning" if content.criterion == "none" else f"pruning by {content.criterion}"
    return f"fedskew · {config.preset} · {config.model.name} · {how} · seed {config.run.seed}"


def _state(content: Content) -> dict[str, str]:
    done = f"round {content.last['round']} of {content.rounds}"
    if content.is_finished:
        return {"kind": "finished", "text": f"finished, {content.last['round']} rounds"}
    if content.stopped:
        return {"kind": "stopped", "text": f"stopped after {done}"}
    return {"kind": "going", "text": f"unfinished, after {done}"}


def _verdict(content: Content, quality: Quality | None) -> str:
    last, judged = content.last, content.judged
    if quality is None:
        return f"After round {last['round']} the model has {_size(last)}. It was not tested yet."
    first, names = quality.headline[0], [row.name for row in quality.classes if row.recall is not None]
    what = "kinds of skin lesion" if set(names) <= set(HAM10000_CLASSES) else "classes"
    known = first.estimate
    interval = f", 95 % interval {percent(known.low)} to {percent(known.high)}" if known else ""
    found = f"{percent(first.value)} of the images of an average class ({len(names)} {what}{interval})"
    if judged["round"] == last["round"]:
        return f"It recognises {found}, with {_size(last)}."
    return (
        f"The model of round {judged['round']}, with {_size(judged)}, recognises {found}. The run is at round "
        f"{last['round']} now, and at {_size(last)}; that model was not tested, or what it said is not kept."
    )


def _size(record: Mapping[str, Any]) -> str:
    parameters, macs = (percent(record[key] / record[f"dense_{key}"], 0) for key in ("parameters", "macs"))
    return f"{parameters} of the dense model's parameters and {macs} of its arithmetic"


def _judged_note(content: Content) -> str:
    selection = content.judged.get("selection") or {}
    notes = []
    if content.judged["round"] != content.last["round"]:
        notes.append("the newest that was tested and whose answers are kept")
    if selection.get("best"):
        notes.append("the best so far by what rounds are judged by")
    return f" ({', '.join(notes)})" if notes else ""


def _warnings(content: Content) -> list[str]:
    lines = [f"It stopped early: {content.stopped}"] if content.stopped else []
    records = content.records
    rolled = sum(bool(record.get("rolled_back")) for record in records)
    below = sum(bool(record.get("kept_model") and not record.get("rolled_back")) for record in records)
    for count, what in ((rolled, "rolled back"), (below, "below the quorum")):
        if count:
            lines.append(f"{count} of {content.last['round']} rounds {what}: the model before was kept.")
    if content.criterion not in ("none", "") and content.last["parameters"] == content.last["dense_parameters"]:
        lines.append(f"Pruning by {content.criterion} has removed nothing so far: this is the dense model.")
    if warnings := content.split.get("warnings"):  # they name images
        lines.append(f"The data gave {len(warnings)} warning{'s' * (len(warnings) != 1)}: split.json says which.")
    return lines


def _tiles(content: Content, quality: Quality | None, traffic: Traffic) -> list[Tile]:
    last, tiles = content.last, []
    if quality:
        earlier = f"round {quality.round_number}" if quality.round_number != last["round"] else ""
        for row in (quality.headline[0], quality.headline[3]):
            interval = f"{row.estimate.low:.3f} to {row.estimate.high:.3f}" if row.estimate else ""
            tiles.append(Tile(row.title, figure(row.value), ", ".join(filter(None, (interval, earlier)))))
    tiles.append(Tile("Parameters", percent(last["parameters"] / last["dense_parameters"], 0),
                      f"{last['parameters'] / 1e6:.2f} of {last['dense_parameters'] / 1e6:.2f} M"))  # fmt: skip
    tiles.append(Tile("MACs of an image", percent(last["macs"] / last["dense_macs"], 0),
                      f"{last['macs'] / 1e6:,.1f} of {last['dense_macs'] / 1e6:,.1f} M"))  # fmt: skip
    if last.get("model_bytes"):
        tiles.append(Tile("Model file", megabytes(last["model_bytes"]), "float32"))
    if traffic.rounds:
        saved = 1 - traffic.total / traffic.total_dense if traffic.total_dense else 0.0
        tiles.append(Tile("Travelled so far", megabytes(traffic.total), f"{percent(saved, 0)} less than dense"))
    return tiles


def _costs(content: Content, traffic: Traffic) -> list[Cost]:
    last = content.last

    def row(title: str, dense: float | None, now: float | None, text: Any) -> Cost:
        share = None if not dense or now is None else now / dense
        before, after = ("–" if value is None else text(value) for value in (dense, now))
        return Cost(title, before, after, percent(share), None if share is None else round(100 * share, 1))

    overhead = last["model_bytes"] - last["memory_bytes"] if last.get("model_bytes") else None
    dense_file = last["dense_memory_bytes"] + overhead if overhead is not None else None
    rows = [
        row("Parameters", last["dense_parameters"], last["parameters"], lambda value: f"{value / 1e6:.3f} M"),
        row("MACs, linear and convolution", last["dense_macs"], last["macs"], lambda value: f"{value / 1e6:,.1f} M"),
        row("MACs with attention", last.get("dense_macs_total"), last.get("macs_total"),
            lambda value: f"{value / 1e6:,.1f} M"),
        row("Model file", dense_file, last.get("model_bytes"), megabytes),
    ]  # fmt: skip
    if traffic.rounds:
        both = traffic.sent[-1] + traffic.received[-1]
        rows.append(row("Bytes of the last round", traffic.dense[-1], both, megabytes))
        rows.append(row("Bytes of all rounds", traffic.total_dense, traffic.total, megabytes))
    return rows


def _pruning_line(content: Content, blocks: Sequence[Block], steps: Sequence[Step]) -> str:
    if content.criterion == "none":
        return "Nothing: this run averages the nodes' updates and prunes nothing."
    if not steps:
        return "Nothing yet: there was no pruning step."
    numbers = [step.round_number for step in steps]
    when = (
        f"in round {numbers[0]}"
        if len(numbers) == 1
        else f"in {len(numbers)} rounds from {numbers[0]} to {numbers[-1]}"
    )
    emptied = [f"{block.name} ({what})" for block in blocks
               for kind, what in ((HEADS, "attention"), (CHANNELS, "MLP"))
               if block.dense[kind] and not block.left[kind][-1]]  # fmt: skip
    heads = [sum(block.left[HEADS][-1] for block in blocks), sum(block.dense[HEADS] for block in blocks)]
    width = [sum(block.left[CHANNELS][-1] for block in blocks), sum(block.dense[CHANNELS] for block in blocks)]
    text = (
        f"By {content.criterion}, {when}: {heads[0]} of {heads[1]} attention heads and {width[0]:,} of {width[1]:,} "
        "hidden channels are left. What is removed is gone: later rounds send, train and store the smaller model."
    )
    return text + (f" Blocks that were emptied: {', '.join(emptied)}." if emptied else "")


def _score_caption(content: Content) -> str:
    base = "All steps together. Within a sublayer the lowest scores go first."
    return f"{base} The line is 0, at and below which the sign rule removes." if content.criterion in SIGNED else base


def _legend(coverage: Coverage) -> list[tuple[str, str, str]]:
    there = {share.outcome for row in coverage.rounds for share in row.shares.values()}
    return [
        (word, f"background:var(--{run_figures.SHADES[word][0]});opacity:{run_figures.SHADES[word][1]}", meaning)
        for word, meaning in LEGEND if word in there
    ]  # fmt: skip


def _round_row(record: Mapping[str, Any]) -> list[str]:
    selection = record.get("selection") or {}
    judged = figure(selection.get("value")) + ("*" if selection.get("best") else "")
    sites = f"{record.get('clients_ok', 0)}/{record.get('clients_ok', 0) + record.get('clients_failed', 0)}"
    numbers = (record.get(key) for key in ("balanced_accuracy", "accuracy", "f1_macro", "auroc_macro"))
    return [
        str(record["round"]), *map(figure, numbers), judged, percent(record["parameters"] / record["dense_parameters"]),
        percent(record["macs"] / record["dense_macs"]), f"{record['bytes_down'] / 1e6:.1f}",
        f"{record['bytes_up'] / 1e6:.1f}", sites, duration(record.get("seconds", 0.0)),
    ]  # fmt: skip
