"""Several runs on one page: the table of `fedskew compare`, paired differences, and the same figures beside each other.

write_comparison([Path("runs/dense"), Path("runs/pruned")], Path("report.html"))
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedskew.report import comparison_figures as figures
from fedskew.report.content import Content, read_content
from fedskew.report.coverage import coverage_of
from fedskew.report.drawing import page_style
from fedskew.report.numbers import megabytes, percent, three
from fedskew.report.page import write_page
from fedskew.report.quality import quality_of
from fedskew.report.reproduction import commands_of
from fedskew.report.traffic import traffic_of
from fedskew.tools import compare as comparing
from fedskew.tools import fairness, pairing


def write_comparison(runs: Sequence[Path], out: Path, *, best: bool = False) -> Path:
    """Write the page that compares runs; the first is what the others are compared with.

    Raises:
        RunFolderError, ConfigError, PredictionsError: as `page.write_report`, of any of them.
    """
    contents = [read_content(path, best=best) for path in runs]
    results = comparing.read_runs(runs, best=best)
    labels = comparing.run_labels(runs)
    differences, reasons = pairing.paired(results)
    with page_style():
        view = {
            "runs": [_column(i, *pair) for i, pair in enumerate(zip(labels, contents, strict=True))],
            "table": comparing.comparison(results),
            "table_legend": comparing.LEGEND,
            "paired": pairing.comparison_of(results, differences),
            "paired_legend": pairing.LEGEND,
            "warnings": [*fairness.warnings_of(results), *reasons],
            "figures": _figures(contents, labels, differences),
        }
    return write_page("comparison.html.md", view, out)


def _column(place: int, label: str, content: Content) -> dict[str, Any]:
    """What is said of one run."""
    last, traffic = content.last, traffic_of(content.records)
    return {
        "label": label,
        "name": content.name,
        "swatch": f"var(--run-{place % figures.COLOURED})",
        "round": content.judged["round"],
        "balanced_accuracy": three(content.judged.get("balanced_accuracy")),
        "parameters": percent(last["parameters"] / last["dense_parameters"], 0),
        "macs": percent(last["macs"] / last["dense_macs"], 0),
        "traffic": megabytes(traffic.total),
        "coverage": coverage_of(content.path),
        "command": commands_of(content).splitlines()[0],
    }


def _figures(
    contents: Sequence[Content], labels: Sequence[str], differences: pairing.Differences
) -> dict[str, Markup | None]:
    accuracy = [[(record["round"], record.get("balanced_accuracy")) for record in content.records]
                for content in contents]  # fmt: skip
    left = [[(record["round"], record["parameters"] / record["dense_parameters"]) for record in content.records]
            for content in contents]  # fmt: skip
    travelled = [_so_far(content) for content in contents]
    divisor, unit = (1e9, "GB") if max(total for one in travelled for _, total in one) >= 1e9 else (1e6, "MB")
    scaled = [[(number, total / divisor) for number, total in one] for one in travelled]
    rated = [(quality_of(content), content.judged) for content in contents]
    return {
        "accuracy": figures.curves("accuracy", "Balanced accuracy on the test set after each round", labels, accuracy,
                                   bottom=None),
        "parameters": figures.curves("parameters", "Share of the dense parameters after each round", labels, left,
                                     top=1.02),
        "traffic": figures.curves("traffic", "Bytes sent and received so far", labels, scaled, unit=unit),
        "tradeoff": figures.tradeoff(rated),
        "differences": figures.differences(differences),
    }  # fmt: skip


def _so_far(content: Content) -> list[tuple[int, float]]:
    totals = accumulate(record["bytes_down"] + record["bytes_up"] for record in content.records)
    return [(record["round"], total) for record, total in zip(content.records, totals, strict=True)]
