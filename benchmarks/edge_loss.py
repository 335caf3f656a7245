"""What half and int8 lose on a trained model, in every way that was tried, on real images.  docs/edge.md shows it.

    python benchmarks/edge_loss.py RUN [MODEL…]

The models are those of the given files, all of the run RUN, or its last one. Calibrated on up to 256 open images of the
run, measured against float32 on its other open images and on its test images; nothing is chosen here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from edge import int8_ways
from timing import finish, parser

from fedskew.export.checks import gate, parity
from fedskew.export.graph import to_onnx
from fedskew.export.images import CheckImages, check_images
from fedskew.export.quantise import half
from fedskew.export.session import feeds, logits_of, open_session
from fedskew.model.architecture import Architecture
from fedskew.model.modelfile import load_model
from fedskew.tools.evaluate import model_file, setting_of


def rows_of(model: Path, images: CheckImages) -> Iterator[dict[str, Any]]:
    """A row for each way."""
    module = load_model(model)
    arch, graph = module.architecture, to_onnx(module)

    def calibration() -> Iterator[Mapping[str, np.ndarray]]:
        for batch in images.batches(images.calibration, arch):
            yield feeds(batch.images.numpy(), batch.metadata.numpy())

    made = {"fp32": lambda: graph, "fp16": lambda: half(graph)} | int8_ways(graph, calibration)
    sets = {"open": images.checked, "test": images.test}
    reference: dict[str, np.ndarray] = {}
    for name, make in made.items():
        one = make()
        row: dict[str, Any] = {"parameters_share": arch.cost.parameters / arch.dense().cost.parameters, "way": name,
                               "bytes": len(one.SerializeToString())}  # fmt: skip
        for where, indices in sets.items():
            assert indices is not None, "these are not the run's own data"
            labels, found = said(one, images, indices, arch)
            if name == "fp32":
                reference[where] = found
                row[f"{where} torch"] = parity(in_torch(module, images, indices), found).difference
            measured = gate(labels, arch.classes, reference[where], found)
            row |= {f"{where} images": measured.images, f"{where} same": measured.same,
                    f"{where} balanced accuracy": measured.found, f"{where} logits": measured.difference}  # fmt: skip
        print(row, flush=True)
        yield row


def said(
    graph: onnx.ModelProto, images: CheckImages, indices: np.ndarray, arch: Architecture
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits of images."""
    session = open_session(graph.SerializeToString())
    pairs = [(batch.labels.numpy(), logits_of(session, batch.images.numpy(), batch.metadata.numpy()))
             for batch in images.batches(indices, arch)]  # fmt: skip
    labels, logits = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return labels, logits


def in_torch(module: torch.nn.Module, images: CheckImages, indices: np.ndarray) -> np.ndarray:
    """What PyTorch says of the same images."""
    with torch.inference_mode():
        parts = [module(batch.images, batch.metadata).numpy() for batch in images.batches(indices, module.architecture)]
    return np.concatenate(parts)


def options() -> argparse.Namespace:
    """What was asked for."""
    found = parser(__doc__)
    found.add_argument("run", type=Path)
    found.add_argument("models", type=Path, nargs="*")
    return found.parse_args()


if __name__ == "__main__":
    asked = options()
    torch.set_num_threads(1)
    own = model_file(asked.run)
    arch = load_model(own).architecture
    images = check_images(own, arch, setting_of(own, arch, best=False, everything=True), None, best=False)
    finish("edge_loss", [row for model in asked.models or [own] for row in rows_of(model, images)], asked.out)
