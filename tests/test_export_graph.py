"""The ONNX graph of a model says what the model says, for every shape in which windowed attention could go wrong."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from builders import architecture, left, lively_model, vit

from fedskew.data.batches import normalise
from fedskew.data.decode import decode
from fedskew.export.graph import to_onnx
from fedskew.export.quantise import PRODUCTS, constant_products, dynamic_int8, half, in_bytes, static_int8
from fedskew.export.session import feeds, logits_of, open_session
from fedskew.tools.onnx_file import IMAGES, LOGITS, METADATA

OWN = (("skin type", ("unknown", "I", "II", "III")), ("size", ("unknown", "0", "5", "10+")))


def swin_shifted():
    """Shifted windows with masks at 16 and 8 tokens a side, one window at 4, a window larger than the picture at 2."""
    arch = replace(architecture(64), vocabularies=OWN, weights=(0.8, 0.1, 0.1))
    return left(left(arch, 0, 1, heads=(1,)), 1, 0, heads=(), hidden=7)


def swin_padded():
    """10, 5, 3 and 2 tokens a side in windows of 4: padded, shifted and not. A convolutional stem, images alone."""
    arch = architecture(40, multimodal=False, removed="skip")
    arch = replace(arch, spec=arch.spec.variant(image_size=40, stem="conv"))
    return left(left(arch, 0, 0, hidden=0), 1, 1, heads=())


def swin_odd():
    """7 tokens a side in windows of 3, shifted by 1: every window order is another."""
    return left(architecture(28, stages=2, window=3), 1, 1, hidden=0)


def vit_token():
    """A class token; an attention and an MLP are gone."""
    return left(left(vit(), 0, 1, heads=(), hidden=0), 0, 2, heads=(0, 2))


def vit_mean():
    """The mean of all tokens, images alone, an attention skipped."""
    return left(vit(class_token=False, multimodal=False, removed="skip"), 0, 0, heads=())


SHAPES = [swin_shifted, swin_padded, swin_odd, vit_token, vit_mean]


@pytest.fixture(scope="module")
def pictures(generated):
    """Photographs, HAM10000's where a folder of it is at hand: random pixels hide faults of windows."""
    folder = Path(os.environ.get("FEDSKEW_HAM10000", generated))
    files = list(islice(sorted((folder if folder.is_dir() else generated).rglob("*.jpg")), 5))
    return lambda size: normalise(torch.from_numpy(np.stack([decode(f.read_bytes(), size, "squash") for f in files])))


def asked(arch, images):
    """Metadata of every image, each index of each vocabulary among them."""
    columns = [torch.arange(len(images)) % len(values) for _, values in arch.vocabularies]
    return torch.stack(columns, 1) if columns else torch.zeros(len(images), 0, dtype=torch.long)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_the_graph_says_what_the_model_says(shape, pictures):
    arch = shape()
    model = lively_model(arch)
    graph = to_onnx(model)
    session = open_session(graph.SerializeToString())
    images = pictures(arch.image_size)
    metadata = asked(arch, images)
    with torch.no_grad():
        expected = model(images, metadata).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1, "the images have to differ for this to mean something"
    for count in (1, 2, 5):
        found = logits_of(session, images[:count].numpy(), metadata[:count].numpy())
        assert found.dtype == np.float32
        assert np.abs(found - expected[:count]).max() <= 1e-5
    size = arch.image_size
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    wanted = {IMAGES: ("tensor(float)", ["batch", 3, size, size])}
    if arch.vocabularies:
        wanted[METADATA] = ("tensor(int64)", ["batch", len(arch.vocabularies)])
    assert inputs == wanted
    assert [(value.name, value.shape) for value in session.get_outputs()] == [(LOGITS, ["batch", len(arch.classes)])]


def test_window_orders_are_constants_and_norms_and_activations_single_operators(graph):
    kinds = {node.op_type for node in graph.graph.node}
    assert {"LayerNormalization", "Gelu", "Softmax", "MatMul"} <= kinds
    assert not kinds & {"TopK", "Range", "Erf", "Pow", "Sqrt", "ScatterND"}
    assert graph.opset_import[0].version >= 17


def test_nothing_of_the_exporting_machine_is_in_it(graph):
    content = graph.SerializeToString()
    for word in (b"/home", b"site-packages", b".py", str(Path.cwd()).encode()):
        assert word not in content


@pytest.fixture(scope="module")
def model():
    return lively_model(swin_shifted())


@pytest.fixture(scope="module")
def graph(model):
    return to_onnx(model)


@pytest.fixture(scope="module")
def shown(model, pictures):
    arch = model.architecture
    images = pictures(arch.image_size)
    return images.numpy(), asked(arch, images).numpy()


def said(graph, shown):
    return logits_of(open_session(graph.SerializeToString()), *shown)


def test_half_keeps_sums_and_exponents_and_both_ends_in_float32(graph, shown):
    small = half(graph)
    onnx.checker.check_model(small, full_check=True)
    assert np.abs(said(small, shown) - said(graph, shown)).max() < 0.02
    assert len(small.SerializeToString()) < 0.62 * len(graph.SerializeToString())
    casts = {node.output[0]: node for node in small.graph.node if node.op_type == "Cast"}
    for node in small.graph.node:
        if node.op_type in ("LayerNormalization", "Softmax"):
            (kind,) = casts[node.input[0]].attribute
            assert kind.i == onnx.TensorProto.FLOAT, node.name
    assert {value.type.tensor_type.elem_type for value in small.graph.output} == {onnx.TensorProto.FLOAT}
    constants = {tensor.name: tensor for tensor in small.graph.initializer}
    weights = [constants[node.input[1]] for node in small.graph.node if node.op_type == "MatMul"
               and node.input[1] in constants]  # fmt: skip
    assert weights
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}


def test_static_int8_changes_products_with_constant_weights_and_nothing_else(graph, shown):
    names = constant_products(graph)
    small = static_int8(graph, [feeds(*shown)])
    onnx.checker.check_model(small, full_check=True)
    before, after = (Counter(node.op_type for node in one.graph.node) for one in (graph, small))
    assert set(after - before) == {"QuantizeLinear", "DequantizeLinear", "Cast"}
    assert not before - after
    made = {node.output[0]: node for node in small.graph.node}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in small.graph.initializer}
    changed = 0
    for node in small.graph.node:
        sources = [made[name].op_type if name in made else "" for name in node.input[:2]]
        if node.name in names:
            assert sources == ["DequantizeLinear"] * 2, node.name
            weight, scale = (constants[name] for name in made[node.input[1]].input[:2])
            assert weight.dtype == np.int8
            assert np.abs(weight.astype(int)).max() <= 64, "two products of 8 by 8 bits do not fit into 16"
            assert scale.shape == (weight.shape[0 if node.op_type == "Gemm" else 1],), "a scale for each output"
            changed += 1
        elif node.op_type != "DequantizeLinear":
            assert "DequantizeLinear" not in sources, f"{node.name} ({node.op_type}) must stay in float"
    assert changed == len(names) > 20
    products = sum(node.op_type in PRODUCTS for node in graph.graph.node)
    assert products > len(names), "queries by keys and attention by values are products of activations"
    assert np.abs(said(small, shown) - said(graph, shown)).max() < 0.3


def test_masks_of_shifted_windows_are_kept_in_bytes_and_come_out_as_the_same_bits(graph):
    """They are zeros and -100; of Swin-T's file at the paper's budget they were a tenth."""
    small = dynamic_int8(graph)
    floats, bytes_ = ({tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in one.graph.initializer
                       if tensor.data_type == kind} for one, kind in
                      ((graph, onnx.TensorProto.FLOAT), (small, onnx.TensorProto.INT8)))  # fmt: skip
    casts = {node.output[0]: node.input[0] for node in small.graph.node if node.op_type == "Cast"}
    masks = {name: casts[name] for name in floats if name in casts}
    assert masks
    for name, kept in masks.items():
        assert set(np.unique(floats[name])) == {0, -100}
        assert np.array_equal(bytes_[kept].astype(np.float32), floats[name])


def test_a_constant_that_bytes_cannot_hold_stays_as_it_is():
    values = {"fraction": np.full(2000, 0.5), "large": np.full(2000, 128.0), "endless": np.full(2000, -np.inf),
              "few": np.ones(3), "whole": np.arange(2000) % 128 - 64.0}  # fmt: skip
    constants = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    output = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [None])
    node = onnx.helper.make_node("Concat", list(values), ["out"], axis=0)
    graph = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [output], constants),
                                   opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)  # fmt: skip
    expected = np.concatenate([value.astype(np.float32) for value in values.values()])
    small = in_bytes(graph)
    assert [node.op_type for node in small.graph.node] == ["Cast", "Concat"]
    assert np.array_equal(open_session(small.SerializeToString()).run(None, {})[0], expected)


def test_dynamic_int8_changes_the_same_products(graph, shown):
    small = dynamic_int8(graph)
    integers = [node for node in small.graph.node if node.op_type == "MatMulInteger"]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in small.graph.initializer}
    assert integers
    for node in integers:
        assert np.abs(constants[node.input[1]].astype(int)).max() <= 64
    kinds = [node.op_type for node in small.graph.node]
    assert kinds.count("Softmax") == [node.op_type for node in graph.graph.node].count("Softmax")
    assert np.abs(said(small, shown) - said(graph, shown)).max() < 0.3


def test_openvino_reads_the_same_files(graph, shown):
    """Where it is installed: it is no dependency, as it reads what onnxruntime reads."""
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    for one, limit in ((graph, 1e-4), (static_int8(graph, [feeds(*shown)]), 0.3)):
        model = core.read_model(one.SerializeToString())
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
        found = compiled(feeds(*shown))[LOGITS]
        assert np.abs(found - said(graph, shown)).max() <= limit
