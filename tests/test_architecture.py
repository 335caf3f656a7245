"""An `Architecture` travels as JSON, alone rebuilds the model, and refuses what cannot be built."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from builders import architecture, inputs, left
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import architectures

from fedskew.model import cost
from fedskew.model.bounds import ArchitectureError
from fedskew.model.codec import architecture_from_json
from fedskew.model.fusion import build
from fedskew.model.signature import MAX_JSON_BYTES

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
        left(arch, 0, 0, heads=(0,)),
        left(arch, 0, 0, hidden=31),
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
        elif hasattr(module, "qkv"):  # an attention
            module.register_forward_hook(on_attention)
    with torch.no_grad():
        model(*inputs(model.architecture, count=1))
    return linear, linear + products


HEADS, HIDDEN = ("kept", "0.0.attention"), ("kept", "0.0.mlp")
INVALID = [
    (("version",), 3, "version"),
    (("version",), True, "version"),
    (("spec", "image_size"), -64, "image_size"),
    (("spec", "image_size"), 0, "image_size"),
    (("spec", "image_size"), 10**9, "image_size"),
    (("spec", "image_size"), 66, "image_size"),
    (("spec", "image_size"), 64.0, "image_size"),
    (("spec", "image_size"), "64", "image_size"),
    (("spec", "image_size"), None, "image_size"),
    (("spec", "patch_size"), 0, "patch_size"),
    (("spec", "patch_size"), True, "patch_size"),
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
    (
        (
            "spec",
            "stages",
        ),
        [],
        "stages",
    ),
    (
        (
            "spec",
            "stages",
        ),
        {},
        "stages",
    ),
    (
        (
            "spec",
            "stages",
        ),
        VALID["spec"]["stages"] * 4,
        "stages",
    ),
    (("spec", "stages", 0, "width"), 0, "stages[0].width"),
    (("spec", "stages", 0, "width"), 2**40, "stages[0].width"),
    (("spec", "stages", 1, "width"), 17, "stages[1].width"),
    (("spec", "stages", 0, "head_dim"), -4, "stages[0].head_dim"),
    (("spec", "stages", 0, "heads"), 10**6, "stages[0].heads"),
    (("spec", "stages", 0, "hidden"), 0, "stages[0].hidden"),
    (("spec", "stages", 0, "window"), 0, "stages[0].window"),
    (("spec", "stages", 0, "window"), 65, "stages[0].window"),
    (HEADS, [-1], "kept[0.0.attention]"),
    (HEADS, [2], "kept[0.0.attention]"),
    (HEADS, [0, 0], "kept[0.0.attention]"),
    (HEADS, [1, 0], "kept[0.0.attention]"),
    (HEADS, [0, True], "kept[0.0.attention]"),
    (HEADS, [0.0], "kept[0.0.attention]"),
    (HEADS, [[]], "kept[0.0.attention]"),
    (HEADS, 1, "kept[0.0.attention]"),
    (HIDDEN, -1, "kept[0.0.mlp]"),
    (HIDDEN, 33, "kept[0.0.mlp]"),
    (HIDDEN, False, "kept[0.0.mlp]"),
    (HIDDEN, [1], "kept[0.0.mlp]"),
    (("kept", "9.0.mlp"), 1, "kept"),
    (("kept",), {}, "kept"),
    (("spec", "stages", 0, "depth"), 0, "stages[0].depth"),
    (("spec", "stages", 0, "depth"), 101, "stages[0].depth"),
    (("spec", "stages", 0, "extra"), 1, "stages[0]"),
    (("spec", "extra"), 1, "spec"),
    (("spec",), [], "spec"),
    (("family",), "resnet", "family"),
    (("family",), 3, "family"),
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
    stage = dict(VALID["spec"]["stages"][0], width=8192, heads=1, hidden=65_536, depth=2)
    huge = with_value(("spec", "stages"), [stage])
    left_of = {"attention": [0], "mlp": 65_536}
    huge["kept"] = {f"0.{block}.{kind}": kept for block in range(2) for kind, kept in left_of.items()}
    with pytest.raises(ArchitectureError, match="parameters, at most"):
        architecture_from_json(json.dumps(huge))


def test_window_tables_of_absurd_size_are_refused_before_they_are_built():
    huge = with_value(("spec", "stages"), [dict(VALID["spec"]["stages"][0], window=64)])
    huge["spec"] |= {"image_size": 1024, "patch_size": 1}  # 256 windows of 4096 positions: a mask of 17 GB
    huge["kept"] = {key: kept for key, kept in huge["kept"].items() if key.startswith("0.")}
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
        json.dumps(with_value(("spec", "image_size"), 10**4000)),
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
    assert [arch.spec.resolution(stage) for stage in range(4)] == [10, 5, 3, 2]
    assert [arch.spec.window(stage) for stage in range(4)] == [4, 4, 3, 2]


def test_dense_undoes_all_pruning():
    arch = architecture()
    assert left(left(arch, 0, 0, heads=(), hidden=0), 3, 1, heads=(2,), hidden=8).dense() == arch
