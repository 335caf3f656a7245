"""Whether runs may be compared, and their differences in pairs of test images with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedskew.console import counted
from fedskew.files import file_sha256
from fedskew.metrics import Difference, PairingError, Predictions, paired_differences
from fedskew.runs.predictions import SAME_ACCURACY, PredictionsError, accuracy_of, read_predictions
from fedskew.runs.reading import MODEL, PREDICTIONS
from fedskew.tools.compare import Comparison, RunResult

TITLES = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "f1_macro": "Macro F1",
          "auroc_macro": "Macro AUROC"}  # fmt: skip
LEGEND = (
    "Paired differences to the first run with 95 % bootstrap intervals over lesions: these models on another test set "
    "of the same kind. Another seed may differ by more."
)


Differences = Mapping[str, Mapping[str, Difference]]  # name of the run → metric


def paired(runs: Sequence[RunResult]) -> tuple[Differences, list[str]]:
    """Differences to the first run in pairs of test images, and for every run that cannot be paired, why."""
    try:
        first = _predictions(runs[0])
    except (PairingError, PredictionsError) as error:
        return {}, [f"no paired differences: {error}"]
    columns: dict[str, Mapping[str, Difference]] = {}
    reasons = []
    for run in counted(runs[1:], len(runs) - 1, "runs compared"):
        try:
            columns[run.name] = paired_differences([first], [_predictions(run)])
        except (PairingError, PredictionsError) as error:
            reasons.append(f"no paired differences between {runs[0].name} and {run.name}: {error}")
    return columns, reasons


def comparison_of(runs: Sequence[RunResult], columns: Differences) -> Comparison | None:
    """The table of paired differences; None if there are none."""
    if not columns:
        return None
    first, compared = _predictions(runs[0]), next(iter(columns.values()))
    names = [name for name in compared if name in TITLES] + [name for name in compared if name.startswith("recall.")]
    rows = [(_title(name, first), *(difference_text(found[name]) for found in columns.values())) for name in names]
    return Comparison((f"difference to {runs[0].name}", *columns), tuple(rows))


def paired_comparison(runs: Sequence[RunResult]) -> tuple[Comparison | None, list[str]]:
    """The table of paired differences to the first run, and for every run that cannot be paired with it, why."""
    columns, reasons = paired(runs)
    return comparison_of(runs, columns), reasons


def to_data(columns: Differences) -> dict[str, Any]:
    """Paired differences, JSON-ready: run → metric → the fields of `Difference`, and whether one is `seen`."""
    return {
        name: {metric: asdict(found) | {"seen": found.seen} for metric, found in metrics.items()}
        for name, metrics in columns.items()
    }


def _predictions(run: RunResult) -> Predictions:
    """Predictions of the round that is compared."""
    found = read_predictions(run.model)
    if found.round_number != run.record["round"]:
        raise PairingError(
            f"the predictions in {run.model} are of round {found.round_number}, its metrics of round "
            f"{run.record['round']}; resume the run, or wait until it has finished this round"
        )
    if not _is_of_model(found, run):
        raise PairingError(
            f"the predictions in {run.model} are not those of its model: make them anew with fedskew evaluate "
            f"{run.path}{' --best' if run.model != run.path else ''} --predictions {run.model / PREDICTIONS}"
        )
    return found


def _is_of_model(found: Predictions, run: RunResult) -> bool:
    """Whether predictions are a run's own: by the hash of its model's file, else by the accuracy on record.

    Committed records hold no model, and predictions of earlier versions no hash.
    """
    file = run.model / MODEL
    if found.model and file.is_file():
        return found.model == file_sha256(file)
    accuracy = run.record.get("accuracy")
    return accuracy is None or abs(accuracy_of(found) - accuracy) <= SAME_ACCURACY


def _title(metric: str, predictions: Predictions) -> str:
    if metric in TITLES:
        return TITLES[metric]
    name = metric.partition(".")[2]
    of_class = predictions.labels == predictions.classes.index(name)
    lesions = len(set(predictions.lesions[of_class].tolist()))
    return f"Recall {name} ({of_class.sum()} images of {lesions} lesions)"


def difference_text(difference: Difference) -> str:
    """`+0.013 [-0.010, +0.035], no difference seen`."""
    text = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    return text if difference.seen else f"{text}, no difference seen"
