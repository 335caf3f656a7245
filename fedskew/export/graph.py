"""A torch model as an ONNX graph: one file's content, with a batch of any size and what it says of itself."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx
import torch
from onnx import ModelProto
from onnxscript.optimizer import optimize
from torch import Tensor, nn

from fedskew.model.fusion import MultimodalModel
from fedskew.tools.onnx_file import IMAGES, LOGITS, METADATA, SEAL, seal

OPSET = 20  # the first with the GELU as one operator; LayerNormalization is one since 17
BATCH = "batch"
FOLDED = 2**24  # bytes: window orders and masks of a 224-pixel model become constants, weights stay as they are


class _ImageOnly(nn.Module):
    """A model without vocabularies, whose second input would be empty."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, S, S]."""
        logits: Tensor = self.model(images, images.new_zeros(images.shape[0], 0, dtype=torch.long))
        return logits


def to_onnx(model: MultimodalModel) -> ModelProto:
    """The graph of a model in evaluation mode; see `tools.onnx_file` for its inputs and outputs.

    Which images it is traced with does not matter: no operator depends on what they show.
    """
    arch, count = model.architecture, 2  # of one, the batch's axis would be taken for a constant
    images = torch.zeros(count, 3, arch.image_size, arch.image_size)
    metadata = torch.zeros(count, len(arch.vocabularies), dtype=torch.long)
    inputs: dict[str, Tensor] = {IMAGES: images} | ({METADATA: metadata} if arch.vocabularies else {})
    with _quiet():
        program = torch.onnx.export(
            model if arch.vocabularies else _ImageOnly(model),
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=tuple({0: torch.export.Dim(BATCH)} for _ in inputs),
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[LOGITS],
            verbose=False,
        )
        if program is None:  # torch's annotation allows it, for exports to a file
            raise AssertionError("torch.onnx.export gave no program")
        graph = optimize(program.model_proto, input_size_limit=FOLDED, output_size_limit=FOLDED)
    return _bare(graph)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells developers of itself: of every pass, and of operators that it does not fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _bare(graph: ModelProto) -> ModelProto:
    """Without stack traces and types of the exporting program, which would tell where it lies."""
    bare = ModelProto()
    bare.CopyFrom(graph)
    for part in (bare, bare.graph):
        part.doc_string = ""
        del part.metadata_props[:]
    for entry in (*bare.graph.node, *bare.graph.input, *bare.graph.output, *bare.graph.initializer):
        entry.doc_string = ""
        del entry.metadata_props[:]
    del bare.graph.value_info[:]
    return bare


def encode(graph: ModelProto, metadata: Mapping[str, str]) -> bytes:
    """The content of an exported file: the same for the same graph and metadata, sealed.

    Args:
        metadata: `ARCHITECTURE`, `ABOUT` and `EXPORT` of `tools.onnx_file`.
    """
    told = dict(metadata) | {SEAL: seal(metadata)}
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, dict(sorted(told.items())))
    onnx.checker.check_model(graph, full_check=True)
    content: bytes = graph.SerializeToString(deterministic=True)
    return content
