"""Figures of several runs beside each other: curves, what is lost for how much smaller, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fedskew.metrics import Difference
from fedskew.report.drawing import COLOURS, WIDTH, canvas, plot_area, round_ticks, text_width, to_svg
from fedskew.report.quality import Quality

COLOURED = 8  # runs that have a colour of their own; later ones begin anew with another dash
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
ROW = 20
TITLES = {"balanced_accuracy": "Balanced acc.", "accuracy": "Accuracy", "f1_macro": "Macro F1", "auroc_macro": "AUROC"}


def curves(
    name: str,
    title: str,
    labels: Sequence[str],
    series: Sequence[Sequence[tuple[int, float | None]]],
    *,
    bottom: float | None = 0.0,
    top: float | None = None,
    unit: str = "",
) -> Markup | None:
    """A line for each run, over its rounds; which line is which says the list of runs above.

    Args:
        bottom, top: of the axis; None: what the values need.
        unit: of the values.
    """
    known = [[(number, value) for number, value in one if value is not None] for one in series]
    if not any(known):
        return None
    figure = canvas(210)
    axes = plot_area(figure, 44, 8, 10, 40)
    for i, (label, points) in enumerate(zip(labels, known, strict=True)):
        if points:
            axes.plot(*zip(*points, strict=True), color=COLOURS[f"run-{i % COLOURED}"], linewidth=2, label=label,
                      linestyle=DASHES[i // COLOURED % len(DASHES)])  # fmt: skip
    values = [value for points in known for _, value in points]
    axes.set_ylim(bottom if bottom is not None else max(0.0, min(values) - 0.05), top or max(values) + 0.05)
    axes.set_ylabel(unit)
    rounds = [number for one in series for number, _ in one]
    round_ticks(axes, min(rounds), max(rounds))
    return to_svg(figure, name, title)


def tradeoff(runs: Sequence[tuple[Quality | None, Mapping[str, Any]]]) -> Markup | None:
    """How good against how small: further left is smaller, further up is better.

    Args:
        runs: of each what is said of it, and the record of that round.
    """
    known = [(i, quality, record) for i, (quality, record) in enumerate(runs) if quality]
    if not known:
        return None
    figure = canvas(230)
    axes = plot_area(figure, 44, 8, 10, 40)
    axes.grid(axis="x")
    for i, quality, record in known:
        first = quality.headline[0]
        share, colour = record["parameters"] / record["dense_parameters"], COLOURS[f"run-{i % COLOURED}"]
        if first.estimate:
            axes.plot([share, share], [first.estimate.low, first.estimate.high], color=colour, linewidth=4, alpha=0.35,
                      solid_capstyle="round")  # fmt: skip
        axes.plot([share], [first.value or 0.0], "o", color=colour, markersize=8)
    axes.set_xlim(0, 1.05)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set(ylim=(0, 1), xlabel="parameters left", ylabel="balanced accuracy")
    return to_svg(figure, "tradeoff", "Balanced accuracy against the share of parameters that is left")


def differences(found: Mapping[str, Mapping[str, Difference]]) -> Markup | None:
    """Paired differences to the first run with their intervals: a bar across 0 is no difference seen."""
    if not found:
        return None
    there = next(iter(found.values()))
    names = [name for name in (*TITLES, *there) if name in there and (name in TITLES or name.startswith("recall."))]
    names = list(dict.fromkeys(names))
    height = len(names) * (ROW + 8 * (len(found) - 1)) + 44
    titles = [TITLES.get(name, f"recall {name.partition('.')[2]}"[:18]) for name in names]
    figure, left = canvas(height), 12 + max(map(text_width, titles))
    axes = plot_area(figure, left, 2, 10, 42)
    axes.grid(visible=False)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=COLOURS["ink"], linewidth=1)
    for i, metrics in enumerate(found.values()):
        offset = (i - (len(found) - 1) / 2) * 0.6 / max(1, len(found))
        for y, name in enumerate(names):
            one, colour = metrics[name], COLOURS[f"run-{(i + 1) % COLOURED}"]
            axes.plot([one.low, one.high], [y + offset] * 2, color=colour, linewidth=4, alpha=0.35,
                      solid_capstyle="round")  # fmt: skip
            axes.plot([one.mean], [y + offset], "o", color=colour, markersize=5,
                      markerfacecolor=colour if one.seen else COLOURS["paper"])  # fmt: skip
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks([])
    for y, title in enumerate(titles):
        axes.text(-left / (WIDTH - left - 10), y, title, va="center", transform=axes.get_yaxis_transform())
    axes.set_xlabel("difference to the first run")
    return to_svg(figure, "differences", "Paired differences to the first run with 95 % intervals")
