"""Weights travel as one vector a dtype and arrive as they were sent."""

import gc
import weakref

import numpy as np
import pytest
import torch
from builders import tiny_config
from flwr.app import Array, ArrayRecord, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedskew.federation.grids import LocalGrid, StreamingGrid
from fedskew.federation.weights import TensorSpec, from_record, layout, layout_of, to_record, to_state, vector_layout
from fedskew.model.catalogue import dense_architecture
from fedskew.model.fusion import build

DTYPES = (torch.float32, torch.float16, torch.int64)
SHAPES = st.lists(st.integers(0, 4), max_size=3)
STATES = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6), st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=8
)


@given(STATES, st.randoms(use_true_random=False))
def test_any_state_arrives_as_it_was_sent_whatever_its_order(shapes, random):
    state = {name: torch.randint(-9, 9, shape).to(dtype) for name, (shape, dtype) in shapes.items()}
    names = list(state)
    random.shuffle(names)
    record = to_record({name: state[name] for name in names})
    assert len(record) == len({tensor.dtype for tensor in state.values()}), "one vector a dtype"
    back = from_record(record, layout_of(state))
    assert set(back) == set(state)
    for name, array in back.items():
        assert array.dtype == state[name].numpy().dtype
        assert array.shape == state[name].shape
        np.testing.assert_array_equal(array, state[name].numpy())


def test_the_bytes_are_those_that_flower_makes_of_one_array():
    state = {"b": torch.randn(3, 2), "a": torch.randn(4).half(), "c": torch.zeros(0, 2), "d": torch.randn(2, 5).T}
    for array in to_record(state).values():
        parts = [state[name].numpy().ravel() for name in sorted(state) if state[name].numpy().dtype == array.dtype]
        assert array.data == Array(np.concatenate(parts)).data


def test_a_model_arrives_as_it_was_sent():
    arch = dense_architecture(tiny_config().model)
    model = build(arch)
    record = to_record(model.state_dict())
    assert [array.shape for array in record.values()] == [(sum(t.numel() for t in model.state_dict().values()),)]
    state = to_state(record, arch)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    model.load_state_dict(state, strict=True)


def test_the_layout_of_an_architecture_leaves_the_random_state_alone():
    arch = dense_architecture(tiny_config(model={"image_size": 96}).model)
    layout.cache_clear()
    before = torch.get_rng_state()
    assert layout(arch) == layout_of(build(arch).state_dict())
    torch.set_rng_state(before)
    layout.cache_clear()
    layout(arch)
    assert torch.equal(before, torch.get_rng_state())


@given(STATES, STATES)
def test_different_tensors_never_pass_for_each_other(some, other):
    """The same number of values is not enough: names and shapes are part of the vector's name."""
    layouts = [
        {name: TensorSpec(tuple(shape), str(dtype).removeprefix("torch.")) for name, (shape, dtype) in shapes.items()}
        for shapes in (some, other)
    ]
    assert (vector_layout(layouts[0]) == vector_layout(layouts[1])) == (layouts[0] == layouts[1])


def test_another_layout_of_as_many_values_is_refused_with_the_remedy():
    record = to_record({"a": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="the same versions of fedskew and timm"):
        from_record(record, {"a": TensorSpec((3, 2), "float32")})
    with pytest.raises(ValueError, match=r"the weights are float32 \(6,\), expected float32 \(7,\)"):
        from_record(record, {"a": TensorSpec((7,), "float32")})
    with pytest.raises(ValueError, match="the weights are missing"):
        from_record(ArrayRecord(), {"a": TensorSpec((7,), "float32")})
    several = ArrayRecord({"one": Array(np.zeros(6, np.float32)), "two": Array(np.zeros(6, np.float32))})
    with pytest.raises(ValueError, match="expected float32"):
        from_record(several, {"a": TensorSpec((2, 3), "float32")})


def test_the_arrays_of_a_reply_are_freed_before_the_next_one_is_asked_for():
    """Not left to Python's search for reference cycles: the server's memory would grow with the number of nodes."""
    alive = []

    def app(message, context):
        reply = Message(RecordDict({"arrays": to_record({"w": torch.zeros(9)})}), reply_to=message)
        alive.append(weakref.ref(next(iter(reply.content["arrays"].values()))))
        return reply

    grid = StreamingGrid(LocalGrid(app, 3))
    gc.collect()
    gc.disable()
    try:
        messages = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
        for count, reply in enumerate(grid.send_and_receive(messages)):
            assert reply.content.array_records["arrays"], "whole while it is looked at"
            assert sum(array() is not None for array in alive[:count]) == 0
        assert count == 2
    finally:
        gc.enable()
