"""`fedskew export`: a model becomes one ONNX file, and only if it says the same as PyTorch on real images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedskew.export.card import CARD, exported_files, model_card
from fedskew.export.card_run import RunFacts, read_run
from fedskew.export.checking import FP32, PRECISIONS, Check, ExportError, Say
from fedskew.export.graph import encode, to_onnx
from fedskew.export.images import FEW, CheckImages, check_images
from fedskew.export.lineage import about_export
from fedskew.files import write_bytes
from fedskew.model.modelfile import load_model, read_about
from fedskew.tools.evaluate import model_file, setting_of
from fedskew.tools.onnx_file import ABOUT, ARCHITECTURE, EXPORT

FOLDER = "export"  # beside the model file


@dataclass(frozen=True)
class Export:
    """A file that was written, with what it says of itself.

    Attributes:
        card: its model card.
        model: the model file that it was made of.
        said: the content of `EXPORT` in `tools.onnx_file`: precision, versions, lineage, and what was measured.
    """

    file: Path
    card: Path
    bytes: int
    model: Path
    said: dict[str, Any]
    images: CheckImages
    warnings: tuple[str, ...]

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "file": str(self.file),
            "card": str(self.card),
            "bytes": self.bytes,
            **self.said,
            "warnings": list(self.warnings),
        }


def export_model(
    run: Path,
    *,
    precision: str = FP32,
    out: Path | None = None,
    data: Path | None = None,
    manifest: str = "",
    best: bool = False,
    say: Say = lambda _: None,
) -> Export:
    """Write the ONNX file of a run's model, or of a model file, if it passes its checks.

    Args:
        run: a run folder (its last model, or its best), or a model file.
        precision: of `PRECISIONS`.
        out: the file; None: in `export/` beside the model.
        data: real images to check on; None: the run's own.
        say: is told how far it is.

    Raises:
        ExportError: it does not say the same as the model, and by which limit; or it cannot be written there.
        RunFolderError, ModelFileError, DataError: what is missing, where.
    """
    path = model_file(run, best=best)
    target = out or path.parent / FOLDER / file_name(path, precision)
    _check_target(target)
    model = load_model(path)
    arch = model.architecture
    facts, setting = read_run(path, best=best), setting_of(path, arch, best=best, everything=True)
    about = read_about(path) | {"preprocessing": setting.preprocessing.to_mapping()}
    say("images are read, and decoded when they are new")
    images = check_images(path, arch, setting, data, best=best, manifest=manifest)
    say("the model is traced")
    check = Check(model, images, say)
    graph = to_onnx(model)
    check.same_as_torch(graph)
    if precision != FP32:
        graph = check.smaller(graph, precision)
    said = about_export(path, facts.folder.resolve().name if facts else "", precision, _measured(images, check))
    content = encode(graph, {ARCHITECTURE: arch.to_json(), ABOUT: _json(about), EXPORT: _json(said)})
    warnings = (*setting.assumed, *_doubts(images, facts))
    _write(target, content)
    files = {target.name: said | {"bytes": len(content)}} | exported_files(target.parent, said["model_sha256"])
    card = target.with_name(CARD)
    _write(card, model_card(arch, about, facts, images, files, warnings).encode())
    return Export(target, card, len(content), path, said, images, warnings)


def export_text(found: Export) -> str:
    """What a person reads of an export."""
    said = found.said
    parity, gate, on = said["parity"], said["gate"], said["checked_on"]
    lines = [
        f"{found.file}: {found.bytes / 1e6:.2f} MB ({100 * found.bytes / found.model.stat().st_size:.0f} % of the "
        f"model file), {said['precision']}, ONNX opset {said['opset']}",
        f"logits differ from PyTorch's by at most {parity['difference']:.1e} on {on['images']} {on['what']} (fp32)",
    ]
    if gate:
        lines.append(f"{said['precision']} ({said['method']}) against fp32: {_gate_text(gate)}")
    if said["test"]:
        lines.append(f"the same on the run's {said['test']['images']} test images: {_gate_text(said['test'])}")
    lines.append(f"model card: {found.card}")
    return "\n".join([*lines, *(f"warning: {line}" for line in found.warnings)])


def _gate_text(gate: dict[str, Any]) -> str:
    return (
        f"balanced accuracy {100 * gate['found']:.2f} % (fp32 {100 * gate['reference']:.2f} %), the same class for "
        f"{100 * gate['same']:.2f} % of the images"
    )


def file_name(model: Path, precision: str) -> str:
    """`model.onnx`, `model-int8.onnx`."""
    return f"{model.stem}{'' if precision == FP32 else f'-{precision}'}.onnx"


def _check_target(target: Path) -> None:
    """Before minutes of work."""
    if target.is_dir():
        raise ExportError(f"{target} is a folder; name a file in it, as {target / 'model.onnx'}")
    if target.suffix != ".onnx":
        raise ExportError(f"an exported model is an .onnx file, and {target} is named otherwise")
    if not target.parent.is_dir() and target.parent.name != FOLDER:
        raise ExportError(f"{target} cannot be written: there is no folder {target.parent}; make it, or name another")


def _write(target: Path, content: bytes) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        write_bytes(target, content)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error}; name another place with --out") from error


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _doubts(images: CheckImages, run: RunFacts | None) -> Iterator[str]:
    """What a person must know before the figures."""
    if run is not None and run.unfinished:
        yield run.unfinished
    if len(images.checked) < FEW:
        yield (
            f"it was checked on {len(images.checked)} images only, on which a loss of accuracy is hardly seen: check "
            "it on more with --data-dir"
        )


def _measured(images: CheckImages, check: Check) -> dict[str, Any]:
    return {
        "checked_on": {"images": len(images.checked), "calibration": len(images.calibration), "what": images.what},
        "parity": asdict(check.parity),
        "method": check.method,
        "gate": asdict(check.gate) if check.gate else None,
        "tried": {name: asdict(one) for name, one in check.tried.items()},
        "test": asdict(check.test) if check.test else None,
    }


__all__ = ["PRECISIONS", "Export", "ExportError", "export_model", "export_text", "file_name"]
