"""A small exported model for tests of what reads one: as `fedskew.tools.onnx_file` says, made with torch's exporter."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import torch

from fedskew.model.fusion import MultimodalModel
from fedskew.tools.onnx_file import ABOUT, ARCHITECTURE, EXPORT, IMAGES, LOGITS, METADATA, SEAL, seal


def export_onnx(module: MultimodalModel, about: dict, path: Path) -> Path:
    """Write a model as an ONNX file with a dynamic batch and what it says of itself."""
    arch = module.architecture
    images, codes = torch.randn(2, 3, arch.image_size, arch.image_size), torch.zeros(2, len(arch.vocabularies)).long()
    names, batch = [IMAGES, *([METADATA] if arch.vocabularies else [])], torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        module.eval(), (images, codes), str(path), dynamo=True, external_data=False, input_names=names,
        output_names=[LOGITS], dynamic_shapes={"images": {0: batch}, "metadata": {0: batch}}, verbose=False,
    )  # fmt: skip
    model = onnx.load(path)
    said = {ARCHITECTURE: arch.to_json(), ABOUT: json.dumps(about), EXPORT: json.dumps({"precision": "fp32"})}
    say(model, said | {SEAL: seal(said)})
    onnx.save(model, path)
    return path


def say(model: onnx.ModelProto, said: dict[str, str]) -> None:
    """Replace entries of a file's metadata."""
    kept = {entry.key: entry.value for entry in model.metadata_props} | said
    del model.metadata_props[:]
    for key, value in kept.items():
        model.metadata_props.add(key=key, value=value)
