"""An `Architecture` travels as JSON, alone rebuilds the model, and refuses what cannot be built."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from builders import architecture, inputs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import architectures

from fedskew.model import cost
from fedskew.model.architecture import MAX_JSON_BYTES, BlockShape
from fedskew.model.bounds import ArchitectureError
from fedskew.model.codec import architecture_from_json
from fedskew.model.fusion import build

VALID = json.loads(architecture(stages=2).to_json())


def with_value(path, value):
    """The valid document with one value replaced; `path` is a sequence of keys and indices."""
    document = copy.deepcopy(VALID)
    target = document
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return document


@given(architectures())
def test_json_gives_the_same_architecture_back(arch):
    text = arch.to_json()
    again = architecture_from_json(text)
    assert again == arch
    assert again.to_json() == text
    assert architecture_from_json(text.encode()).digest == arch.digest


@given(architectures())
def test_json_is_canonical_whatever_the_order_of_keys_and_spaces(arch):
    def shuffled(value):
        if isinstance(value, dict):
            return {key: shuffled(value[key]) for key in reversed(value)}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(shuffled(json.loads(arch.to_json())), indent=3)
    assert architecture_from_json(text).to_json() == arch.to_json()


def test_equal_architectures_have_equal_text_and_digest():
    whole, real = (replace(architecture(multimodal=False), weights=weights) for weights in ((1,), (1.0,)))
    assert whole == real
    assert whole.to_json() == real.to_json()
    assert whole.digest == real.digest


def test_any_difference_changes_the_digest():
    arch = architecture()
    others = [
        arch.with_blocks({(0, 0): BlockShape((0,), 32)}),
        arch.with_blocks({(0, 0): BlockShape((0, 1), 31)}),
        replace(arch, removed="skip"),
        replace(arch, classes=arch.classes[::-1]),
        replace(arch, weights=(0.8, 0.05, 0.05)),
    ]
    assert len({other.digest for other in [arch, *others]}) == 6


@settings(max_examples=60)
@given(architectures())
@example(architecture(image_size=12, stages=3))  # 3, 2, 1 tokens a side
@example(architecture(image_size=40))  # 10, 5, 3, 2 tokens a side, windows of 4
def test_rebuilt_from_json_alone_the_model_has_the_counted_size_and_cost(arch):
    model = build(architecture_from_json(arch.to_json())).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == cost.parameters(arch), "parameters"
    stored = [*model.parameters(), *model.buffers()]
    assert sum(tensor.numel() * tensor.element_size() for tensor in stored) == cost.memory_bytes(arch), "memory"
    assert hooked_macs(model) == (cost.macs(arch).linear, cost.macs(arch).total), "MACs"


def hooked_macs(model):
    """MACs of one image by watching every linear, convolution and attention layer of the real model at work."""
    linear = products = 0

    def on_linear(module, inputs, output):
        nonlocal linear
        linear += output.numel() * module.in_features

    def on_conv(module, inputs, output):
        nonlocal linear
        linear += output.numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1]

    def on_attention(module, inputs, output):
        nonlocal products
        windows, tokens, _ = inputs[0].shape
        products += 2 * windows * tokens**2 * module.proj.in_features

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(on_linear)
        elif isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(on_conv)
        elif hasattr(module, "relative_position_bias_table"):
            module.register_forward_hook(on_attention)
    with torch.no_grad():
        model(*inputs(model.architecture, count=1))
    return linear, linear + products


BLOCK = ("stages", 0, "blocks", 0)
INVALID = [
    (("version",), 2, "version"),
    (("version",), True, "version"),
    (("image_size",), -64, "image_size"),
    (("image_size",), 0, "image_size"),
    (("image_size",), 10**9, "image_size"),
    (("image_size",), 66, "image_size"),
    (("image_size",), 64.0, "image_size"),
    (("image_size",), "64", "image_size"),
    (("image_size",), None, "image_size"),
    (("patch_size",), 0, "patch_size"),
    (("patch_size",), True, "patch_size"),
    (("removed",), "drop", "removed"),
    (("removed",), ["norm"], "removed"),
    (("name",), "", "name"),
    (("name",), "n" * 201, "name"),
    (("name",), 7, "name"),
    (("classes",), ["one"], "classes"),
    (("classes",), ["one", "one"], "classes"),
    (("classes",), ["one", 2], "classes"),
    (("classes",), "one, two", "classes"),
    (("classes",), ["c" * 201, "two"], "classes"),
    (("classes",), [f"c{i}" for i in range(1001)], "classes"),
    (("weights",), [0.9, 0.05], "weights"),
    (("weights",), [float("nan"), 0.05, 0.05], "weights"),
    (("weights",), [float("inf"), 0.05, 0.05], "weights"),
    (("weights",), [-0.1, 0.05, 0.05], "weights"),
    (("weights",), [True, 0.05, 0.05], "weights"),
    (("weights",), ["1", 0.05, 0.05], "weights"),
    (("weights",), {}, "weights"),
    (("vocabularies",), [["sex"]], "vocabularies"),
    (("vocabularies",), ["sex"], "vocabularies"),
    (("vocabularies",), [["sex", ["u"]], ["sex", ["u"]]], "vocabularies"),
    (("vocabularies",), [["sex", []], ["age", ["u"]]], "sex"),
    (("vocabularies",), [["sex", [1]], ["age", ["u"]]], "sex"),
    (("vocabularies",), [[["sex"], ["u"]], ["age", ["u"]]], "vocabularies"),
    (("vocabularies",), [["a.b", ["u"]], ["age", ["u"]]], "vocabularies"),
    (("stages",), [], "stages"),
    (("stages",), {}, "stages"),
    (("stages",), VALID["stages"] * 4, "stages"),
    (("stages", 0, "width"), 0, "stages[0].width"),
    (("stages", 0, "width"), 2**40, "stages[0].width"),
    (("stages", 1, "width"), 17, "stages[1].width"),
    (("stages", 0, "head_dim"), -4, "stages[0].head_dim"),
    (("stages", 0, "dense_heads"), 10**6, "stages[0].dense_heads"),
    (("stages", 0, "dense_hidden"), 0, "stages[0].dense_hidden"),
    (("stages", 0, "window"), 0, "stages[0].window"),
    (("stages", 0, "window"), 65, "stages[0].window"),
    (("stages", 0, "blocks"), [], "stages[0]"),
    (("stages", 0, "blocks"), [VALID["stages"][0]["blocks"][0]] * 101, "stages[0]"),
    (("stages", 0, "blocks", 0), 3, "stages[0].blocks[0]"),
    ((*BLOCK, "heads"), [-1], "stages[0].blocks[0].heads"),
    ((*BLOCK, "heads"), [2], "stages[0].blocks[0].heads"),
    ((*BLOCK, "heads"), [0, 0], "stages[0].blocks[0].heads"),
    ((*BLOCK, "heads"), [1, 0], "stages[0].blocks[0].heads"),
    ((*BLOCK, "heads"), [0, True], "stages[0].blocks[0].heads"),
    ((*BLOCK, "heads"), [0.0], "stages[0].blocks[0].heads"),
    ((*BLOCK, "heads"), [[]], "stages[0].blocks[0].heads"),
    ((*BLOCK, "heads"), 1, "stages[0].blocks[0].heads"),
    ((*BLOCK, "hidden"), -1, "stages[0].blocks[0].hidden"),
    ((*BLOCK, "hidden"), 33, "stages[0].blocks[0].hidden"),
    ((*BLOCK, "hidden"), False, "stages[0].blocks[0].hidden"),
    ((*BLOCK, "extra"), 1, "stages[0].blocks[0]"),
    (("extra",), 1, "architecture"),
]


@pytest.mark.parametrize(("path", "value", "named"), INVALID)
def test_what_cannot_be_built_is_refused_by_the_name_of_the_field(path, value, named):
    with pytest.raises(ArchitectureError) as error:
        architecture_from_json(json.dumps(with_value(path, value)))
    assert named in str(error.value)
    assert len(str(error.value)) < 600, "a message for people, not a dump of what came"


@pytest.mark.parametrize("key", sorted(VALID))
def test_a_missing_key_is_named(key):
    with pytest.raises(ArchitectureError, match=key):
        architecture_from_json(json.dumps({name: value for name, value in VALID.items() if name != key}))


def test_a_model_of_absurd_size_is_refused_before_it_is_built():
    block = {"heads": [0], "hidden": 65_536}
    huge = with_value(("stages",), [dict(VALID["stages"][0], width=8192, dense_hidden=65_536, blocks=[block] * 2)])
    with pytest.raises(ArchitectureError, match="parameters, at most"):
        architecture_from_json(json.dumps(huge))


def test_window_tables_of_absurd_size_are_refused_before_they_are_built():
    huge = with_value(("stages",), [dict(VALID["stages"][0], window=64)])
    huge |= {"image_size": 1024, "patch_size": 1}  # 256 windows of 4096 positions: a mask of 17 GB
    with pytest.raises(ArchitectureError, match="bytes of parameters and window tables"):
        architecture_from_json(json.dumps(huge))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "1",
        '"architecture"',
        "{",
        "{}",
        "[" * 100_000,
        '{"a":' * 50_000,
        "9" * 10_000,
        b"\xff\xfe\x00",
        " " * (MAX_JSON_BYTES + 1),
        json.dumps(with_value(("image_size",), 10**4000)),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_architecture_at_all_is_refused(text):
    with pytest.raises(ArchitectureError):
        architecture_from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([0, -1, 2**70]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated(draw):
    """The valid document with one to three values replaced, removed or added, anywhere in it."""
    document = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        target = document
        while True:
            keys = list(target) if isinstance(target, dict) else list(range(len(target)))
            key = draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(target[key], dict | list) or draw(st.integers(0, 3)) == 0:
                break
            target = target[key]
        action = draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "add" and isinstance(target, dict):
            target[draw(st.text(max_size=5))] = draw(JSON)
        elif action == "add":
            target.append(draw(JSON))
        elif key is not None and action == "remove":
            del target[key]
        elif key is not None:
            target[key] = draw(JSON)
    return document


@settings(max_examples=300)
@given(mutated())
def test_a_mutated_document_is_valid_or_refused_and_never_anything_else(document):
    try:
        arch = architecture_from_json(json.dumps(document))
    except ArchitectureError:
        return
    assert architecture_from_json(arch.to_json()) == arch


def test_resolution_rounds_up_and_windows_never_exceed_it():
    arch = architecture(image_size=40)
    assert [arch.resolution(stage) for stage in range(4)] == [10, 5, 3, 2]
    assert [arch.window(stage) for stage in range(4)] == [4, 4, 3, 2]


def test_dense_undoes_all_pruning():
    arch = architecture()
    assert arch.with_blocks({(0, 0): BlockShape((), 0), (3, 1): BlockShape((2,), 8)}).dense() == arch
