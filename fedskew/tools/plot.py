"""A picture of runs: how good and how large the global model is after each round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedskew.runs.reading import RunFolderError, read_records
from fedskew.tools.compare import run_labels

PANELS = (
    ("balanced_accuracy", "balanced accuracy", None),
    ("parameters", "parameters, share of dense", "dense_parameters"),
    ("macs", "MACs, share of dense", "dense_macs"),
    ("bytes_down_total", "sent to nodes so far (MB)", None),
)


def plot_runs(runs: Sequence[Path], target: Path) -> None:
    """Draw runs over each other into an image file (its suffix names the format).

    Raises:
        RunFolderError: a folder holds no run, or the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if target.suffix[1:].lower() not in formats:
        raise RunFolderError(f"--out {target}: no image format is called {target.suffix or 'nothing'!r}; use one of "
                             f"{', '.join(f'.{name}' for name in sorted(formats))}")  # fmt: skip
    figure, grid = pyplot.subplots(2, 2, figsize=(8.4, 5.6), sharex=True, layout="constrained")
    axes = list(grid.flat)
    for path, label in zip(runs, run_labels(runs), strict=True):
        records = read_records(path)
        for axis, (key, _, dense) in zip(axes, PANELS, strict=True):
            scale = 1e6 if key.startswith("bytes") else 1
            known = [record for record in records if record[key] is not None]  # not evaluated in every round
            axis.plot([record["round"] for record in known],
                      [record[key] / (record[dense] if dense else scale) for record in known],
                      marker=".", label=label)  # fmt: skip
    for axis, (_, title, dense) in zip(axes, PANELS, strict=True):
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)  # of few rounds, matplotlib would count halves
        axis.grid(alpha=0.3)
        axis.set_ylim(0, 1.05 if dense else None)
    for axis in grid[-1]:
        axis.set_xlabel("round")
    grid[0, 0].legend(fontsize=9, frameon=False, loc="lower right")
    try:
        figure.savefig(target, dpi=130)
    except OSError as error:
        raise RunFolderError(f"--out {target} cannot be written: {error.strerror}; name a file elsewhere") from error
    finally:
        pyplot.close(figure)
