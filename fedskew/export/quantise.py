"""Smaller numbers in an ONNX graph: half precision, and int8 weights with static or dynamic activations.

Only convolutions and products with constant weights change to int8: softmax, LayerNorm, GELU, residuals, the bias of
positions and the products of queries, keys and attention stay as they are, which Swins need (microsoft/onnxruntime
16219, huggingface/optimum 151). Weights have a scale for each output channel and 7 of 8 bits: on a CPU without VNNI
two products of an unsigned by a signed byte are summed in 16 bits, and with 8 bits they saturate (docs/edge.md).
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

PRODUCTS = ("MatMul", "Gemm")
FLOAT_IN_HALF = ("LayerNormalization", "GroupNormalization", "Softmax", "ReduceMean")  # sums and exponents
WORTH_IT = 2**10  # values of a constant that is kept in bytes
Feed = Mapping[str, np.ndarray]


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Gives onnxruntime the images of a calibration, a batch at a time."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        """See `CalibrationDataReader`."""
        return next(self._feeds, None)


def half(graph: ModelProto) -> ModelProto:
    """Weights and activations in float16; inputs, outputs, sums and exponents stay float32."""
    copy = ModelProto()
    copy.CopyFrom(graph)
    converted = ONNXModel(convert_float_to_float16(copy, keep_io_types=True, op_block_list=list(FLOAT_IN_HALF)))
    converted.topological_sort()
    ordered: ModelProto = converted.model
    return ordered


def static_int8(graph: ModelProto, calibration: Iterable[Feed]) -> ModelProto:
    """Weights and what meets them in int8; the ranges of activations are those of the calibration images.

    Args:
        calibration: inputs of the graph, a batch each.
    """
    with prepared(graph) as (source, target):
        quantize_static(
            source,
            target,
            Reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_quantize=constant_products(onnx.load(source)),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": list(PRODUCTS),  # a sum of products goes on in float
            },
        )
        return in_bytes(onnx.load(target))


def dynamic_int8(graph: ModelProto) -> ModelProto:
    """Weights in int8, and what meets them too, in the range that it has in each call."""
    with prepared(graph) as (source, target):
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_quantize=constant_products(onnx.load(source)),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return in_bytes(onnx.load(target))


def constant_products(graph: ModelProto) -> list[str]:
    """Names of the products whose second factor is a constant."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    return [node.name for node in graph.graph.node if node.op_type in PRODUCTS and node.input[1] in constants]


def in_bytes(graph: ModelProto) -> ModelProto:
    """The graph with constants of small whole numbers, as masks of shifted windows, in bytes; the same bits result.

    A session makes them float32 again when it is opened, once.
    """
    casts = []
    for tensor in graph.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < WORTH_IT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        small = values.clip(-128, 127).astype(np.int8)
        if np.array_equal(small, values):
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(small, f"{name}_bytes"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}_float", to=TensorProto.FLOAT))
    rest = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*casts, *rest])
    return graph


@contextmanager
def prepared(graph: ModelProto) -> Iterator[tuple[Path, Path]]:
    """The graph in a file with the shapes of its tensors, and a place for the result, both for as long as it takes."""
    root = logging.getLogger()
    before = root.level
    with tempfile.TemporaryDirectory(prefix="fedskew-export-") as folder:
        plain, source = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        onnx.save(graph, plain)
        try:
            root.setLevel(logging.ERROR)  # onnxruntime advises on the root logger what is done here already
            # onnxruntime's optimiser would move transpositions into the file that every session moves anyway
            quant_pre_process(plain, source, skip_symbolic_shape=True, skip_optimization=True)
            yield source, Path(folder) / "int8.onnx"
        finally:
            root.setLevel(before)
