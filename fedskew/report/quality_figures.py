"""Figures of how good a model is: over the rounds, by class, what is taken for what, how sure it is, by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from fedskew.metrics.groups import Estimate, GroupResult
from fedskew.report.drawing import (
    COLOURS,
    TEXT,
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
from fedskew.report.network import Step
from fedskew.report.quality import ClassResult, Quality

ROW = 22  # pixels of a row with a dot and its interval
NUMBERED = 14  # classes up to which a confusion matrix has room for its numbers
NAME_LENGTH = 16


def over_rounds(records: Sequence[Mapping[str, Any]], steps: Sequence[Step], judged: int) -> Markup | None:
    """Balanced accuracy on the test set and on the images that judge the rounds; ticks where units were removed."""
    test = [(record["round"], record["balanced_accuracy"]) for record in records
            if record.get("balanced_accuracy") is not None]  # fmt: skip
    own = [(record["round"], (record.get("selection") or {}).get("value")) for record in records]
    own = [(number, value) for number, value in own if value is not None]
    if not test:
        return None
    figure = canvas(230)
    axes = plot_area(figure, 38, 30, 10, 40)
    for step in steps:
        if any(step.gone.values()):
            axes.axvline(step.round_number, color=COLOURS["warn"], linewidth=1, alpha=0.45, zorder=0)
    if own:
        axes.plot(*zip(*own, strict=True), color=COLOURS["dense"], linewidth=1.4, linestyle=(0, (3, 2)),
                  label="what rounds are judged by")  # fmt: skip
    axes.plot(*zip(*test, strict=True), color=COLOURS["model"], linewidth=2, label="test set",
              marker="o", markersize=3 if len(test) < 60 else 0)  # fmt: skip
    axes.plot([judged], [dict(test)[judged]], "o", color=COLOURS["model"], markersize=8)
    round_ticks(axes, records[0]["round"], records[-1]["round"])
    axes.set_ylim(0, 1)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.12, 1.0), ncols=2, handlelength=1.6, columnspacing=1.2)
    return to_svg(figure, "over-rounds", "Balanced accuracy after each round")


def recall_by_class(classes: Sequence[ClassResult]) -> Markup | None:
    """A row for each class that has test images: recall with its interval, and of how many images."""
    rows = [(row.name, row.recall, row.recall_range, f"{row.found} of {row.images}" if row.images else "")
            for row in classes if row.recall is not None]  # fmt: skip
    return _dots("recall", "Recall of each class with 95 % intervals", rows) if rows else None


def groups_figure(groups: Mapping[str, Sequence[GroupResult]]) -> Markup | None:
    """Balanced accuracy of each group with its interval, and of how many images."""
    rows: list[tuple[str, float | None, Estimate | None, str]] = []
    for kind, members in groups.items():
        rows.append((kind, None, None, ""))
        most = max(row.classes for rows in groups.values() for row in rows)
        for row in members:
            found = row.metrics.get("balanced_accuracy")
            rows.append(
                (row.name, found.value if found else None, found, f"n={row.images:,}{'*' * (row.classes < most)}")
            )
    return _dots("groups", "Balanced accuracy of each group with 95 % intervals", rows) if groups else None


def _dots(name: str, title: str, rows: Sequence[tuple[str, float | None, Estimate | None, str]]) -> Markup:
    """Names on the left, dots with intervals from 0 to 1, counts on the right; a row without a value is a heading."""
    figure = canvas(len(rows) * ROW + 28)
    left = 14 + max(text_width(_short(text)) for text, *_ in rows)
    right = 18 + max(text_width(count) for *_, count in rows)
    axes = plot_area(figure, left, 2, right, 26)
    axes.grid(visible=False)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    for i, (text, value, interval, count) in enumerate(rows):
        heading = value is None
        axes.text(-left / (WIDTH - left - right), i, _short(text), va="center",
                  color=COLOURS["muted" if heading else "ink"])  # fmt: skip
        if value is None:
            continue
        if interval:
            axes.plot([interval.low, interval.high], [i, i], color=COLOURS["model"], linewidth=5, alpha=0.35,
                      solid_capstyle="round")  # fmt: skip
        axes.plot([value], [i], "o", color=COLOURS["model"], markersize=6, clip_on=False)  # a 1 is a whole dot too
        axes.text(1.05, i, count, va="center", color=COLOURS["muted"])
    return to_svg(figure, name, title)


def confusion_figure(quality: Quality, classes: Sequence[str]) -> Markup | None:
    """Of the images of each row's class, how many were taken for each column's: shaded by the row's share."""
    table = quality.confusion
    if table is None:
        return None
    count, left, top = len(classes), 12 + max(text_width(_short(name, 10)) for name in classes), 46
    cell = (WIDTH - left - 6) / count
    figure = canvas(top + cell * count + 6)
    axes = drawing_area(figure)
    share = table / np.maximum(1, table.sum(1, keepdims=True))
    for right in (True, False):
        for level in range(1, 11):
            where = np.argwhere((np.ceil(share * 10) == level) & (np.eye(count, dtype=bool) == right))
            places = [(left + x * cell + 0.5, top + y * cell + 0.5, cell - 1, cell - 1) for y, x in where]
            boxes(axes, places, "model" if right else "warn", level / 10)
    frames(axes, [(left + i * cell + 0.5, top + i * cell + 0.5, cell - 1, cell - 1) for i in range(count)], "line")
    size = TEXT if count <= 9 else 8
    for y in range(count):
        axes.text(left - 6, top + (y + 0.5) * cell, _short(classes[y], 10), ha="right", va="center")
        axes.text(left + (y + 0.5) * cell, top - 8, _short(classes[y], 10), ha="center", va="bottom",
                  rotation=0 if count <= 8 else 60)  # fmt: skip
        for x in range(count) if count <= NUMBERED else ():
            colour = "on-model" if share[y, x] > 0.55 else "ink" if table[y, x] else "muted"
            axes.text(left + (x + 0.5) * cell, top + (y + 0.5) * cell, f"{table[y, x]}", ha="center", va="center",
                      fontsize=size, color=COLOURS[colour])  # fmt: skip
    axes.text(left + count * cell / 2, 10, "taken for", ha="center", va="center", color=COLOURS["muted"])
    axes.text(4, top - 8, "shows", va="bottom", color=COLOURS["muted"])
    return to_svg(figure, "confusion", "Confusion matrix: images of each class by the class they were taken for")


def calibration_figure(quality: Quality) -> Markup | None:
    """How often the model is right when it is so sure, and how often it is so sure."""
    known = [one for one in quality.bins if one.count]
    if not known:
        return None
    figure = canvas(280)
    axes = plot_area(figure, 52, 8, 10, 92)
    axes.plot([0, 1], [0, 1], color=COLOURS["dense"], linewidth=1, linestyle=(0, (3, 2)))
    points = [(one.confidence or 0.0, one.accuracy or 0.0) for one in known]
    axes.plot(*zip(*points, strict=True), color=COLOURS["model"], linewidth=2, marker="o", markersize=5,
              clip_on=False)  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="how often it is right")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [""] * 5)
    below = plot_area(figure, 52, 200, 10, 36)
    total = sum(one.count for one in known)
    bars = [(one.low + 0.004, 0, one.high - one.low - 0.008, one.count / total) for one in known]
    boxes(below, bars, "model", 0.6)
    highest = max(one.count for one in known) / total
    below.set(xlim=(0, 1), ylim=(0, highest * 1.15), xlabel="how sure it is of its answer", ylabel="images")
    below.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    below.set_yticks([highest], [f"{highest:.0%}"])
    below.grid(visible=False)
    return to_svg(figure, "calibration", "How sure the model is, and how often it is right then")


def _short(text: str, length: int = NAME_LENGTH) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
