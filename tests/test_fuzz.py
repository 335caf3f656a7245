"""Ten thousand damaged messages, configurations and metadata files: each is consistent, or refused clearly."""

from __future__ import annotations

import json
import resource
import string
from copy import deepcopy

import pytest
from builders import architecture
from hypothesis import given, settings
from hypothesis import strategies as st

from fedskew.config import ConfigError, load_config
from fedskew.config.load import from_mapping, to_mapping
from fedskew.config.schema import Config
from fedskew.data.samples import DataError
from fedskew.data.sources import open_source
from fedskew.model import cost
from fedskew.model.bounds import ArchitectureError
from fedskew.model.codec import architecture_from_json
from fedskew.model.fusion import build

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.just("9" * 500),
    st.just([[[[]]]]),
    st.just(-1),
    st.just(0),
)


@pytest.fixture(autouse=True, scope="module")
def memory_stays_small():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    assert grown < 1, f"fuzzing took {grown:.2f} GiB"


def paths(value, prefix=()):
    """Every place in a JSON value."""
    yield prefix
    if isinstance(value, dict):
        for key in value:
            yield from paths(value[key], (*prefix, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from paths(value[index], (*prefix, index))


def damage(document, draw):
    """Replace, remove or add something at one to three places."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from([path for path in paths(document) if path]))
        parent = document
        for key in place[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "replace":
            parent[place[-1]] = deepcopy(draw(VALUES))  # a later step may change it in place
        elif action == "remove":
            del parent[place[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=5))] = deepcopy(draw(VALUES))
        else:
            parent.append(deepcopy(draw(VALUES)))
        if not any(path for path in paths(document) if path):
            break
    return document


ARCHITECTURE = json.loads(architecture(image_size=32, stages=2).to_json())
CONFIG = to_mapping(Config())


@settings(max_examples=5000)
@given(st.data())
def test_a_damaged_architecture_message_is_refused_or_consistent(data):
    text = json.dumps(damage(ARCHITECTURE, data.draw))
    try:
        arch = architecture_from_json(text)
    except ArchitectureError as error:
        assert 10 < len(str(error)) < 600
        return
    assert architecture_from_json(arch.to_json()) == arch
    if cost.parameters(arch) < 200_000:
        assert sum(parameter.numel() for parameter in build(arch).parameters()) == cost.parameters(arch)


@settings(max_examples=1000)
@given(
    st.one_of(
        st.text(max_size=200),
        st.binary(max_size=200),
        st.recursive(VALUES, st.lists).map(lambda v: json.dumps(v, default=str)),
    )
)
def test_garbage_is_no_architecture(text):
    with pytest.raises(ArchitectureError):
        architecture_from_json(text)


@settings(max_examples=3000)
@given(st.data())
def test_a_damaged_configuration_is_refused_or_valid(data):
    document = damage(CONFIG, data.draw)
    try:
        config = from_mapping(document, "the message")
    except ConfigError as error:
        assert 10 < len(str(error)) < 1000
        return
    assert from_mapping(to_mapping(config), "again") == config


@settings(max_examples=1000)
@given(st.text(alphabet=string.printable, max_size=80))
def test_any_text_as_overrides_is_refused_or_valid(text):
    try:
        config = load_config("demo", overrides=text)
    except ConfigError as error:
        assert str(error)
        return
    assert isinstance(config, Config)


ROWS = [
    "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset",
    "HAM_1,ISIC_1,nv,histo,50.0,male,back,rosendahl",
    "HAM_1,ISIC_2,nv,histo,,female,,rosendahl",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzzed")
    for name in ("ISIC_1", "ISIC_2"):
        (path / f"{name}.jpg").write_bytes(b"not read here")
    return path


@settings(max_examples=1000)
@given(st.data())
def test_a_damaged_metadata_file_is_refused_or_consistent(folder, data):
    content = bytearray("\n".join(ROWS).encode())
    for _ in range(data.draw(st.integers(1, 12))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        if not content:
            break
    (folder / "HAM10000_metadata.csv").write_bytes(bytes(content))
    try:
        source = open_source(folder)
    except DataError as error:
        assert str(error)
        return
    assert len({sample.image_id for sample in source.samples}) == len(source.samples)
    assert all(sample.image_id and sample.label for sample in source.samples)
