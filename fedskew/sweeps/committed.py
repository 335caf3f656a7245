"""The records of finished runs as they can be committed: small, and naming no place of the machine, image or patient.

Of each run `config.yaml`, `metrics.jsonl`, `summary.json` and `predictions.npz`, and the sweep's `sweep.json`. An
absolute path in the configuration becomes the key that it stood at (`<data.dir>`), any other becomes `<path>`. Floats
are rounded to six digits. Images and lesions or patients get other names (`pseudonyms`), their sex and age are left
out, and notes on the data, which name the first images that something is wrong with, are only counted. Of
`metrics.jsonl`, which may reach megabytes otherwise, are left out: the score of each unit; `blocks` of rounds in which
no block changed; `class_counts` that are those of the round before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedskew.files import read_json, write_bytes, write_json
from fedskew.metrics import Predictions
from fedskew.runs.folder import CONFIG, METRICS, SUMMARY, RunFolder
from fedskew.runs.predictions import encode_predictions
from fedskew.runs.reading import PREDICTIONS
from fedskew.sweeps.history import SWEEP, read_history
from fedskew.sweeps.results import Cell, ResultsError, RunResult, read_cells, read_settings

TAIL = r"""[^\s:'"(),;]+"""
ABSOLUTE = re.compile(rf"(?<![\w.:/~<>-])(?:~?/|[A-Za-z]:\\){TAIL}")
KEPT_OF_A_RUN = ("cell", "seed", "state", "commits")
KEPT_GROUPS = ("site",)  # sex and age of single images are nobody's business, and no table reads them


def export_records(sweep: Path, out: Path) -> list[Path]:
    """Write the records of a sweep's finished runs to `out/<cell>-s<seed>/`; those of earlier exports are replaced.

    Returns:
        The folders written.

    Raises:
        ResultsError: nothing is finished there, or a run's predictions are another model's or name a path as a group.
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
    found = pseudonyms(run.predictions)
    for name in (name for column in found.groups.values() for name in set(column.tolist())):
        if ABSOLUTE.search(str(name)):
            raise ResultsError(f"{run.path / PREDICTIONS} names a path as a group: {name}")
    write_bytes(target / PREDICTIONS, encode_predictions(found))


def pseudonyms(predictions: Predictions) -> Predictions:
    """The same predictions with other names of images and lesions or patients, by which nobody finds them.

    Runs that share a test set still share its names, so they can be paired, in the same order, so that the bootstrap
    draws the same. A name is the place among all of them in alphabetical order, behind a hash of them all: it takes the
    whole list of names to make it, not a guess at one of them.
    """
    columns = {"images": predictions.images, "lesions": predictions.lesions}
    content = json.dumps([column.tolist() for column in columns.values()])
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    new = {}
    for what, column in columns.items():
        names, places = np.unique(column, return_inverse=True)
        new[what] = np.array([f"{digest}-{place:0{len(str(len(names)))}d}" for place in places])
    groups = {name: column for name, column in predictions.groups.items() if name in KEPT_GROUPS}
    return replace(predictions, **new, groups=groups)


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
        places: what stands for paths that are known, and for what lies in them; others become `<path>`.
    """
    if isinstance(value, str):
        for path, name in places.items():
            value = re.sub(rf"{re.escape(path)}(?:/{TAIL})?", lambda _, name=name: name, value)
        return ABSOLUTE.sub("<path>", value)
    if isinstance(value, Mapping):
        return {replace_paths(key, places): replace_paths(inner, places) for key, inner in value.items()}
    return [replace_paths(inner, places) for inner in value] if isinstance(value, list) else value


def shortened(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics without what makes them long or names images, see the module."""
    found, counts = [], None
    for record in records:
        line = rounded(record)
        line["blocks"] = [{key: item for key, item in block.items() if not key.endswith("_scores")}
                          for block in record.get("blocks", ())]  # fmt: skip
        if notes := record.get("notes"):
            line["notes"] = {node: [f"notes on the data: {len(lines)}"] for node, lines in notes.items()}
        if not any(_changed(block) for block in line["blocks"]):
            del line["blocks"]
        if record.get("class_counts") == counts:
            line.pop("class_counts", None)
        counts = record.get("class_counts")
        found.append(line)
    return found


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
