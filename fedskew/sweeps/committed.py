"""The records of finished runs as they can be committed: small, and saying nothing of the machine or of any image.

Of each run `config.yaml`, `metrics.jsonl`, `summary.json` and `predictions.npz`, and the sweep's `sweep.json`. An
absolute path in the configuration becomes the key that it stood at (`<data.dir>`), any other becomes `<path>`. Floats
are rounded to six digits. Of `metrics.jsonl`, which may reach megabytes otherwise, are left out: the score of each
unit; `blocks` of rounds in which no block changed; `class_counts` that are those of the round before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedskew.files import read_json, write_bytes, write_json
from fedskew.runs.folder import CONFIG, METRICS, SUMMARY, RunFolder
from fedskew.runs.predictions import encode_predictions
from fedskew.runs.reading import PREDICTIONS
from fedskew.sweeps.history import SWEEP, read_history
from fedskew.sweeps.results import Cell, ResultsError, RunResult, read_cells, read_settings

ABSOLUTE = re.compile(r"""(?<![\w.:/~<>-])(?:~?/|[A-Za-z]:\\)[^\s:'"(),;]+""")
KEPT_OF_A_RUN = ("cell", "seed", "state", "commits")


def export_records(sweep: Path, out: Path) -> list[Path]:
    """Write the records of a sweep's finished runs to `out/<cell>-s<seed>/`; those of earlier exports are replaced.

    Returns:
        The folders written.

    Raises:
        ResultsError: nothing is finished there, or a run's predictions are another model's or name paths.
    """
    cells = read_cells([sweep])
    runs = [run for cell in cells for run in cell.runs.values()]
    if not runs:
        raise ResultsError(f"{sweep} holds no finished run yet")
    written = [_export(run, out / run.path.name) for run in runs]
    write_json(out / SWEEP, _history(sweep, out, cells))
    return written


def _export(run: RunResult, target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    settings = read_settings(run.path)
    places = _paths_in(settings)
    content = yaml.safe_dump(replace_paths(settings, places), sort_keys=False, allow_unicode=True)
    write_bytes(target / CONFIG, content.encode())
    lines = RunFolder(run.path).records()
    text = "".join(json.dumps(line) + "\n" for line in shortened(replace_paths(lines, places)))
    write_bytes(target / METRICS, text.encode())
    summary = read_json(run.path / SUMMARY)
    write_json(target / SUMMARY, rounded(replace_paths(summary, places)))
    _export_predictions(run, target)
    return target


def _export_predictions(run: RunResult, target: Path) -> None:
    if run.predictions is None:
        (target / PREDICTIONS).unlink(missing_ok=True)  # of an earlier export
        return
    groups = (name for column in run.predictions.groups.values() for name in set(column.tolist()))
    for name in (*run.predictions.images, *run.predictions.lesions, *groups):
        if ABSOLUTE.search(str(name)):
            raise ResultsError(f"{run.path / PREDICTIONS} names a path as an image, lesion or group: {name}")
    write_bytes(target / PREDICTIONS, encode_predictions(run.predictions))


def _paths_in(settings: Mapping[str, Any]) -> dict[str, str]:
    """Every absolute path among the settings, and what stands for it."""
    found = {}
    for section, values in settings.items():
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, str) and ABSOLUTE.match(value):
                found[value] = f"<{section}.{key}>"
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))  # a path inside another one goes first


def replace_paths(value: Any, places: Mapping[str, str]) -> Any:
    """A JSON value without absolute paths in its texts, keys included.

    Args:
        places: what stands for paths that are known; others become `<path>`.
    """
    if isinstance(value, str):
        for path, name in places.items():
            value = value.replace(path, name)
        return ABSOLUTE.sub("<path>", value)
    if isinstance(value, Mapping):
        return {replace_paths(key, places): replace_paths(inner, places) for key, inner in value.items()}
    return [replace_paths(inner, places) for inner in value] if isinstance(value, list) else value


def shortened(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics without what makes them long, see the module."""
    lines, counts = [], None
    for record in records:
        line = rounded(record)
        line["blocks"] = [{key: item for key, item in block.items() if not key.endswith("_scores")}
                          for block in record.get("blocks", ())]  # fmt: skip
        if not any(_changed(block) for block in line["blocks"]):
            del line["blocks"]
        if record.get("class_counts") == counts:
            line.pop("class_counts", None)
        counts = record.get("class_counts")
        lines.append(line)
    return lines


def _changed(block: Mapping[str, Any]) -> bool:
    return any(block[f"{what}_before"] != block[f"{what}_after"] for what in ("heads", "hidden"))


def rounded(value: Any) -> Any:
    """A JSON value with its floats at six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def _history(sweep: Path, out: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """Order of the cells, and which code made each run; the runs of earlier exports stay."""
    here, there = read_history(sweep), read_history(out)
    finished = [run.path.name for cell in cells for run in cell.runs.values()]
    runs = {
        name: {key: value for key, value in here["runs"].get(name, {}).items() if key in KEPT_OF_A_RUN}
        for name in finished
    }
    names = [cell.name for cell in cells if cell.runs]
    study = {"study": here["study"]} if "study" in here else {}
    return {**study, "cells": list(dict.fromkeys([*names, *there["cells"]])), "runs": {**there["runs"], **runs}}
