"""Figures of how small a model got, what was pruned when, and whose data is in which round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedskew.report.coverage import Coverage
from fedskew.report.drawing import (
    COLOURS,
    WIDTH,
    boxes,
    canvas,
    drawing_area,
    frames,
    plot_area,
    round_ticks,
    text_width,
    to_svg,
)
from fedskew.report.network import CHANNELS, HEADS, Block, Step
from fedskew.report.traffic import Traffic
from fedskew.runs.reading import FAILED, IN, LATE, MISSING, REFUSED, UNUSED

ROW, LABEL = 16, 76  # pixels of a row of a block or a site, and of its name
SITES = 40  # rows of sites that have room; the table has all of them
KINDS = {HEADS: "attention heads", CHANNELS: "MLP width"}
SHADES = {IN: ("good", 0.85), UNUSED: ("odd", 0.55), LATE: ("warn", 0.9), MISSING: ("dense", 0.45),
          REFUSED: ("bad", 0.95), FAILED: ("bad", 0.5)}  # fmt: skip
Box = tuple[float, float, float, float]  # left, top, width, height
LEVELS = 12  # shades of what is left of a block


def size_over_rounds(records: Sequence[Mapping[str, Any]]) -> Markup:
    """Parameters and MACs after each round, as shares of the dense model."""
    figure = canvas(210)
    axes = plot_area(figure, 44, 28, 10, 40)
    rounds = [record["round"] for record in records]
    for key, title, colour, style in (("parameters", "parameters", "model", "-"), ("macs", "MACs", "warn", "--")):
        shares = [record[key] / record[f"dense_{key}"] for record in records]
        axes.step(rounds, shares, where="post", color=COLOURS[colour], linewidth=2, linestyle=style, label=title)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    round_ticks(axes, rounds[0], rounds[-1])
    axes.legend(loc="lower left", bbox_to_anchor=(-0.14, 1.0), ncols=2, handlelength=1.8)
    return to_svg(figure, "size", "Parameters and MACs after each round as shares of the dense model")


def traffic_figure(traffic: Traffic) -> Markup | None:
    """Bytes of each round above, all bytes so far below; what the dense model's would be behind them."""
    if not traffic.rounds:
        return None
    figure = canvas(300)
    rounds, both = np.array(traffic.rounds), np.add(traffic.sent, traffic.received)
    top, bottom = plot_area(figure, 44, 28, 10, 158), plot_area(figure, 44, 168, 10, 40)
    for axes, own, dense in ((top, both, traffic.dense), (bottom, np.cumsum(both), np.cumsum(traffic.dense))):
        divisor, unit = _unit(max(dense))
        axes.step(rounds, np.divide(dense, divisor), where="mid", color=COLOURS["dense"], linewidth=1.4,
                  linestyle=(0, (3, 2)), label="dense model")  # fmt: skip
        axes.fill_between(rounds, own / divisor, step="mid", color=COLOURS["model"], alpha=0.25, linewidth=0)
        axes.step(rounds, own / divisor, where="mid", color=COLOURS["model"], linewidth=2, label="this run")
        axes.set_ylim(0, max(dense) / divisor * 1.1)
        axes.set_ylabel(f"{unit} {'a round' if axes is top else 'so far'}")
        round_ticks(axes, rounds[0], rounds[-1])
    top.set_xlabel("")
    top.set_xticklabels([])
    top.legend(loc="lower left", bbox_to_anchor=(-0.14, 1.0), ncols=2, handlelength=1.8)
    return to_svg(figure, "traffic", "Bytes sent and received in each round and in all so far, against the dense model")


def _unit(largest: float) -> tuple[float, str]:
    return (1e9, "GB") if largest >= 1e9 else (1e6, "MB") if largest >= 1e6 else (1e3, "KB")


def network_figure(blocks: Sequence[Block]) -> Markup | None:
    """The network as it is now: of each block its heads, filled where they are left, and the width of its MLP."""
    if not blocks:
        return None
    top = 22
    figure = canvas(top + sum(ROW + 6 * _begins(blocks, i) for i in range(len(blocks))) + 6)
    axes = drawing_area(figure)
    most = max(block.dense[HEADS] for block in blocks)
    pitch, wide = min(10.0, 148 / most), max(block.dense[CHANNELS] for block in blocks)
    left, bar = LABEL, WIDTH - LABEL - 160
    axes.text(left, 10, "heads", va="center", color=COLOURS["muted"])
    axes.text(left + 158, 10, "MLP width", va="center", color=COLOURS["muted"])
    there: list[Box] = []
    gone: list[Box] = []
    full: list[Box] = []
    rest: list[Box] = []
    for block, y in zip(blocks, _rows(axes, blocks, top), strict=True):
        heads, hidden = block.left[HEADS][-1], block.left[CHANNELS][-1]
        for i in range(block.dense[HEADS]):
            (there if i < heads else gone).append((left + i * pitch, y + 2, pitch - 1.2, ROW - 5))
        length = bar * block.dense[CHANNELS] / wide
        rest.append((left + 158, y + 2, length, ROW - 5))
        full.append((left + 158, y + 2, length * hidden / block.dense[CHANNELS], ROW - 5))
    boxes(axes, there, "model")
    boxes(axes, full, "model")
    frames(axes, [*gone, *rest], "dense")
    return to_svg(figure, "network", "The network now: heads and MLP width that each block has left")


def pruning_over_rounds(blocks: Sequence[Block], rounds: Sequence[int], kind: str) -> Markup | None:
    """A row for each block: the darker, the more of it is left after that round; on the right how much is left now."""
    if not blocks or not any(block.dense[kind] for block in blocks):
        return None
    top, right = 22, 76
    height = top + sum(ROW + 6 * _begins(blocks, i) for i in range(len(blocks))) + 22
    figure = canvas(height)
    axes = drawing_area(figure)
    cell = (WIDTH - LABEL - right) / len(rounds)
    axes.text(LABEL, 10, f"{KINDS[kind]} left", va="center", color=COLOURS["muted"])
    shaded: dict[int, list[Box]] = {}
    outlines = []
    for block, y in zip(blocks, _rows(axes, blocks, top), strict=True):
        outlines.append((LABEL, y + 1, cell * len(rounds), ROW - 2))
        for start, length, value in _spans(block.left[kind]):
            level = round(LEVELS * value / max(1, block.dense[kind]) + 0.49)
            shaded.setdefault(level, []).append((LABEL + start * cell, y + 1, length * cell, ROW - 2))
        axes.text(WIDTH - right + 6, y + ROW / 2, f"{block.left[kind][-1]}/{block.dense[kind]}", va="center")
    for level, places in shaded.items():
        if level:
            boxes(axes, places, "model", level / LEVELS)
    frames(axes, outlines, "line")
    for i in sorted({0, len(rounds) // 2, len(rounds) - 1}):
        axes.text(LABEL + (i + 0.5) * cell, height - 10, f"{rounds[i]}", ha="center", va="center",
                  color=COLOURS["muted"])  # fmt: skip
    axes.text(0, height - 10, "round", va="center", color=COLOURS["muted"])
    return to_svg(figure, f"pruning-{kind}", f"{KINDS[kind]} that each block has left after each round")


def _begins(blocks: Sequence[Block], i: int) -> bool:
    return i > 0 and blocks[i].stage != blocks[i - 1].stage


def _rows(axes: Axes, blocks: Sequence[Block], top: float) -> list[float]:
    """The upper edge of each block's row, with its name written: a gap between stages."""
    found, y = [], top
    for i, block in enumerate(blocks):
        y += 6 * _begins(blocks, i)
        axes.text(0, y + ROW / 2, f"block {block.name}", va="center")
        found.append(y)
        y += ROW
    return found


def _spans(values: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first, length, value) of stretches of equal values."""
    edges = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    return [(a, b - a, values[a]) for a, b in pairwise(edges)]


def scores_figure(steps: Sequence[Step], *, signed: bool) -> Markup | None:
    """Scores of the units that stayed and of those that went, over all steps: heads above, MLP groups below."""
    known = [kind for kind in ("attention", "mlp")
             if sum(len(step.kept.get(kind, ())) + len(step.removed.get(kind, ())) for step in steps) > 1]  # fmt: skip
    if not known:
        return None
    height, between = 150, 62
    figure = canvas(height * len(known) + 10)
    for i, kind in enumerate(known):
        axes = plot_area(figure, 44, 26 + height * i, 10, between - 14 + height * (len(known) - 1 - i))
        kept = np.array([score for step in steps for score in step.kept.get(kind, ())])
        gone = np.array([score for step in steps for score in step.removed.get(kind, ())])
        low, high = np.quantile(np.concatenate([kept, gone]), [0.005, 0.995])
        edges = np.linspace(low, high if high > low else low + 1, 31)
        for scores, colour, name in ((kept, "model", "kept"), (gone, "bad", "removed")):
            counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
            axes.stairs(counts, edges, fill=True, color=COLOURS[colour], alpha=0.3)
            axes.stairs(counts, edges, color=COLOURS[colour], linewidth=1.4, label=f"{name} ({len(scores):,})")
        if signed:
            axes.axvline(0, color=COLOURS["ink"], linewidth=1)
        axes.set_ylabel({"attention": "heads", "mlp": "MLP groups"}[kind])
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.legend(loc="lower left", bbox_to_anchor=(-0.05, 0.98), ncols=2, handlelength=1.2)
    axes.set_xlabel("score")
    return to_svg(figure, "scores", "Scores of the units that were kept and of those that were removed")


def signs_figure(steps: Sequence[Step]) -> Markup | None:
    """Whether two halves of the scoring images judge the units alike, beyond chance, at each pruning step."""
    if not any(step.kappa for step in steps):
        return None
    figure = canvas(200)
    axes = plot_area(figure, 38, 28, 10, 40)
    for kind, title, colour, marker in (("attention", "heads", "model", "o"), ("mlp", "MLP groups", "warn", "s")):
        known = [(step.round_number, step.kappa[kind]) for step in steps if kind in step.kappa]
        if known:
            axes.plot(*zip(*known, strict=True), color=COLOURS[colour], marker=marker, markersize=4, linewidth=1.6,
                      label=title)  # fmt: skip
    axes.axhline(0, color=COLOURS["ink"], linewidth=1)
    axes.set_ylim(min(-0.2, axes.get_ylim()[0]), 1.05)
    axes.set_yticks([0, 0.5, 1], ["0 chance", ".5", "1 same"])
    figure.axes[0].set_position((62 / WIDTH, 40 / 200, (WIDTH - 72) / WIDTH, 132 / 200))
    round_ticks(axes, steps[0].round_number, steps[-1].round_number)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.2, 1.0), ncols=2, handlelength=1.6)
    return to_svg(figure, "signs", "Agreement of two halves of the scoring images on the signs of the scores")


def coverage_figure(coverage: Coverage) -> Markup | None:
    """A row for each site, a column for each round: what became of it."""
    rounds = coverage.rounds
    if not rounds:
        return None
    rows = sorted(coverage.sites, key=lambda row: (row.contributed, row.name))[:SITES]
    names = sorted(row.name for row in rows)
    left = 10 + max(text_width(name[:16]) for name in names)
    height = ROW * len(names) + 26
    figure = canvas(height)
    axes = drawing_area(figure)
    cell = (WIDTH - left - 4) / len(rounds)
    shaded: dict[str, list[Box]] = {}
    outlines = []
    for y, name in enumerate(names):
        axes.text(0, (y + 0.5) * ROW, name if len(name) <= 16 else f"{name[:15]}…", va="center")
        outlines.append((left, y * ROW + 1, cell * len(rounds), ROW - 2))
        for x, row in enumerate(rounds):
            if name in row.shares:
                place = (left + x * cell, y * ROW + 1, cell, ROW - 2)
                shaded.setdefault(row.shares[name].outcome, []).append(place)
    for outcome, places in shaded.items():
        boxes(axes, places, *SHADES[outcome])
    frames(axes, outlines, "line")
    for i in sorted({0, len(rounds) // 2, len(rounds) - 1}):
        axes.text(left + (i + 0.5) * cell, height - 10, f"{rounds[i].number}", ha="center", va="center",
                  color=COLOURS["muted"])  # fmt: skip
    axes.text(0, height - 10, "round", va="center", color=COLOURS["muted"])
    return to_svg(figure, "coverage", "What became of each site in each round")
