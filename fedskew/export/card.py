"""`MODEL_CARD.md`: what an exported model is, what it was made of, how good it is, and what nobody may use it for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import onnx
from google.protobuf.message import DecodeError

from fedskew.export import checks
from fedskew.export.card_run import RunFacts, coverage, data_lines, quality
from fedskew.export.images import CheckImages
from fedskew.model.architecture import Architecture
from fedskew.model.families.known import KNOWN
from fedskew.text import printable
from fedskew.tools.onnx_file import EXPORT

CARD = "MODEL_CARD.md"  # beside the exported file
TEMPLATES = Path(__file__).with_name("templates")
SPECIAL = re.compile(r"([\\`*_\[\]|~#])")


def model_card(
    arch: Architecture, about: Mapping[str, Any], run: RunFacts | None, images: CheckImages,
    files: Mapping[str, Mapping[str, Any]], warnings: tuple[str, ...],
) -> str:  # fmt: skip
    """The card of a model.

    Args:
        about: what the model file says of itself.
        run: its run; None where only the file is at hand.
        files: what the exported files say of themselves (`EXPORT`), with their `bytes`, by their names.
        warnings: what a person must know first.
    """
    said = next(iter(files.values()))
    view = {
        "name": said["run"] or arch.name,
        "warnings": warnings,
        "arch": _shape(arch),
        "size": arch.image_size,
        "prepared": about["preprocessing"],
        "vocabularies": [(name, ", ".join(values)) for name, values in arch.vocabularies],
        "classes": arch.classes,
        "files": [_file(name, one) for name, one in files.items()],
        "checked_on": _checked_on(said, images),
        "limits": {"difference": f"{checks.MAX_DIFFERENCE:g}", "same": f"{100 * checks.MIN_SAME:g} %",
                   "loss": f"{100 * checks.MAX_LOSS:g}"},
        "tests": [_test(name, one["test"]) for name, one in files.items() if one["test"]],
        "data": data_lines(run),
        "coverage": coverage(run, about.get("lineage", {}).get("round", run.records[-1]["round"] if run else 0)),
        "quality": quality(run),
        "lineage": list(_lineage(about, said)),
    }  # fmt: skip
    # not HTML, so no autoescape: what people named is escaped for Markdown, whose readers show HTML too
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=False, finalize=escaped, undefined=jinja2.StrictUndefined,
        trim_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("model_card.md").render(view)


def escaped(value: Any) -> Any:
    """A text as Markdown and HTML show it, in one line; other values as they are."""
    if not isinstance(value, str):
        return value
    plain = printable(" ".join(value.split()))
    return SPECIAL.sub(r"\\\1", plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def exported_files(folder: Path, model_sha256: str) -> dict[str, dict[str, Any]]:
    """What the exports of a model in a folder say of themselves, with their `bytes`, by their names."""
    found = {}
    for path in sorted(folder.glob("*.onnx")):
        try:
            told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        except (OSError, DecodeError):  # not an export that this card is of
            continue
        said = json.loads(told[EXPORT]) if EXPORT in told else {}
        if said.get("model_sha256") == model_sha256:
            found[path.name] = said | {"bytes": path.stat().st_size}
    return found


def _shape(arch: Architecture) -> dict[str, str]:
    cost, dense = arch.cost, arch.dense().cost
    return {
        "title": f"{KNOWN[arch.spec.family].title} ({arch.name})",
        "parameters": f"{cost.parameters:,}",
        "parameters_share": f"{100 * cost.parameters / dense.parameters:.1f} %",
        "macs": f"{cost.linear:,}",
        "macs_share": f"{100 * cost.linear / dense.linear:.1f} %",
    }


def _file(name: str, said: Mapping[str, Any]) -> dict[str, str]:
    gate = said["gate"]
    return {
        "name": name,
        "precision": said["precision"],
        "megabytes": f"{said['bytes'] / 1e6:.2f}",
        "method": said["method"] or "–",
        "difference": f"≤ {said['parity']['difference']:.1e}",
        "same": f"{100 * gate['same']:.2f} %" if gate else "–",
        "balanced": f"{100 * gate['reference']:.2f} % → {100 * gate['found']:.2f} %" if gate else "–",
    }


def _checked_on(said: Mapping[str, Any], images: CheckImages) -> str:
    on = said["checked_on"]
    labels = [images.data.samples[i].label for i in images.checked]
    counts = ", ".join(f"{name} {labels.count(name)}" for name in sorted(set(labels)))
    return f"Checked on {on['images']} {on['what']} ({counts}); int8 was calibrated on {on['calibration']} others."


def _test(name: str, gate: Mapping[str, Any]) -> str:
    return (
        f"{name}: balanced accuracy {100 * gate['found']:.2f} % (fp32 {100 * gate['reference']:.2f} %), the same class "
        f"for {100 * gate['same']:.2f} % of {gate['images']} images"
    )


def _lineage(about: Mapping[str, Any], said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    told = about.get("lineage", {})
    names = {"preset": "preset", "method": "pruned by", "seed": "seed", "round": "round", "split_hash": "split",
             "fedskew": "trained with fedskew", "code": "code it was trained with"}  # fmt: skip
    yield "run", said["run"] or "not known"
    yield from ((title, str(told[key])) for key, title in names.items() if key in told)
    yield "model file (SHA-256)", said["model_sha256"]
    yield "exported with fedskew", said["fedskew"] + (f", commit {said['commit']}" if said["commit"] else "")
    yield "code it was exported with", said["code"]
    yield "libraries", ", ".join(f"{name} {number}" for name, number in said["versions"].items())
