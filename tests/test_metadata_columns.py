"""Own columns beside the image: from configuration, manifest and message to the model, by figures worked out here."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from builders import MICRO, run_here, tiny_config
from PIL import Image

from fedskew.config import ConfigError, load_config, to_yaml
from fedskew.config.load import from_mapping, to_mapping
from fedskew.config.schema import MetadataColumn, ModelConfig
from fedskew.data.samples import VOCABULARIES, DataError, Sample, bin_vocabulary, encode_metadata, lower_ends
from fedskew.learning.datasets import batches, node_data, open_data, split_server
from fedskew.model.bounds import ArchitectureError
from fedskew.model.catalogue import dense_architecture, vocabularies
from fedskew.model.codec import architecture_from_json
from fedskew.model.fusion import build
from fedskew.model.modelfile import read_model
from fedskew.tools.evaluate import evaluate_run

OWN = (
    MetadataColumn("skin", 0.1, values=("I", "II", "III")),
    MetadataColumn("age", 0.02, bins=(0, 30, 60)),
    MetadataColumn("mm", 0.03, bins=(-1, 2.5, 10)),
)


def sample(name="i", age=None, **metadata):
    return Sample(name, name, "mel", age, "female", "back", None, f"{name}.png", None, tuple(sorted(metadata.items())))


def test_bins_are_the_lower_ends_of_what_falls_into_them():
    assert bin_vocabulary((-1, 2.5, 10)) == ("unknown", "-1", "2.5", "10+")
    assert lower_ends(bin_vocabulary((-1, 2.5, 10))) == [-1, 2.5, 10]
    assert lower_ends(VOCABULARIES["age"]) == [*range(0, 95, 5), 95]
    assert lower_ends(VOCABULARIES["sex"]) is lower_ends(("unknown", "1", "2")) is lower_ends(("unknown",)) is None
    assert bin_vocabulary((1e-7, 1 / 3)) == ("unknown", "1e-07", "0.3333333333333333+")
    for wrong in ((), (1, 1), (2, 1), (0, float("inf")), (float("nan"),)):
        with pytest.raises(DataError, match="each larger than the one before"):
            bin_vocabulary(wrong)


def test_codes_follow_the_order_of_the_vocabularies():
    named = dict(vocabularies(ModelConfig(name=MICRO, metadata=OWN)))
    samples = [
        sample(skin="ii", mm=-1.0, age=30.0),
        sample(skin="III", mm=2.4, age=29.9),
        sample(skin="iv", mm="2,5", age=60.0),
        sample(mm=-1.5),
        sample(mm=99.0, skin=1.0, age=0.0),
        sample(mm="ca. 4"),
    ]
    assert encode_metadata(samples, named).tolist() == [
        [2, 2, 1], [3, 1, 1], [0, 3, 2], [0, 0, 0], [0, 1, 3], [0, 0, 0],
    ]  # fmt: skip
    numbers = {"grade": ("unknown", "1", "2")}
    assert encode_metadata([sample(grade=2.0), sample(grade="2"), sample(grade=2.5)], numbers).tolist() == [
        [2],
        [2],
        [0],
    ]
    assert encode_metadata(samples, {}).shape == (6, 0)


def test_the_weights_of_the_fusion_are_the_columns_own():
    arch = dense_architecture(ModelConfig(name=MICRO, metadata=OWN, image_weight=0.7, embedding_std=1.0))
    assert arch.weights == (0.7, 0.1, 0.02, 0.03)
    assert [name for name, _ in arch.vocabularies] == ["skin", "age", "mm"]
    assert architecture_from_json(arch.to_json()) == arch
    model = build(arch).eval()
    images, codes = torch.randn(2, 3, 32, 32), torch.tensor([[2, 0, 3], [0, 1, 1]])
    fused = 0.7 * model.encoder(images)
    for column, (name, weight) in enumerate([("skin", 0.1), ("age", 0.02), ("mm", 0.03)]):
        fused = fused + weight * model.embeddings[name].weight[codes[:, column]]
    torch.testing.assert_close(model(images, codes), model.classifier(fused))


def test_ham10000s_three_are_the_default_and_can_be_listed():
    default = dense_architecture(ModelConfig(name=MICRO))
    listed = ModelConfig(name=MICRO, metadata=tuple(MetadataColumn(name) for name in ("sex", "age", "localization")))
    assert dense_architecture(listed) == default
    assert default.weights == (0.85, 0.05, 0.05, 0.05)
    assert dense_architecture(ModelConfig(name=MICRO, metadata=OWN, image_only=True)).vocabularies == ()


YAML = """
model:
  metadata:
    skin: {weight: 0.1, values: [I, II, III]}
    age: {weight: 0.02, bins: [0, 30, 60]}
    mm: {weight: 0.03, bins: [-1, 2.5, 10]}
"""


def test_the_configuration_is_read_written_and_sent(tmp_path):
    (tmp_path / "own.yaml").write_text(YAML)
    config = load_config(file=tmp_path / "own.yaml")
    assert config.model.metadata == OWN
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(file=tmp_path / "again.yaml") == config
    assert from_mapping(json.loads(json.dumps(to_mapping(config))), "message") == config
    short = load_config(overrides="'model.metadata={sex: {}, mm: {bins: [0]}}'").model.metadata
    assert short == (MetadataColumn("sex"), MetadataColumn("mm", bins=(0,)))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("3", "must map names to settings"),
        ("[sex]", "must map names to settings"),
        ("{sex: 0.1}", "'sex' must be a name with settings"),
        ("{1: {}}", "1 must be a name with settings"),
        ("{mm: {}}", "'mm' needs either values or bins"),
        ("{mm: {values: [a], bins: [1]}}", "'mm' needs either values or bins"),
        ("{mm: {bins: [2, 1]}}", "each larger than the one before"),
        ("{mm: {bins: [a]}}", "mm.bins must be a number"),
        ("{mm: {weight: 1.5, bins: [1]}}", "weight is 1.5, expected 0 to 1"),
        ("{mm: {weight: .nan, bins: [1]}}", "weight is nan, expected 0 to 1"),
        ("{mm: {wieght: 1, bins: [1]}}", "unknown setting 'wieght' of 'mm'; did you mean weight?"),
        ("{skin: {values: [a, A]}}", "must be different texts"),
        ("{skin: {values: [unknown, a]}}", "must be different texts"),
        ("{skin: {values: ['']}}", "must be different texts"),
        ("{skin: {values: [true, a]}}", "skin.values must be a text, found True"),
        ("{skin: {values: ['1', 2+]}}", "read as bins of a number"),
        ("{age: {values: [young, old]}}", "number of years: give bins"),
    ],
)
def test_a_wrong_column_is_refused_by_name(tmp_path, value, words):
    (tmp_path / "own.yaml").write_text(f"model:\n  metadata: {value}\n")
    with pytest.raises(ConfigError) as error:
        load_config(file=tmp_path / "own.yaml")
    assert str(error.value).startswith(f"{tmp_path}/own.yaml: model.metadata")
    assert words in str(error.value)


def test_weights_that_would_have_no_effect_are_refused():
    with pytest.raises(ConfigError, match=r"model\.age-weight has no effect.* age: \{weight: 0\.2\}"):
        ModelConfig(metadata=OWN, age_weight=0.2)
    with pytest.raises(ConfigError, match="names a column twice: skin, age, mm, mm"):
        ModelConfig(metadata=(*OWN, OWN[-1]))


@pytest.mark.parametrize("name", ["a.b", "type", "forward", "keys"])
def test_names_that_torch_cannot_take_are_refused_before_a_model_is_built(name):
    with pytest.raises(ConfigError, match=name):
        dense_architecture(ModelConfig(name=MICRO, metadata=(MetadataColumn(name, bins=(0,)),)))
    arch = dense_architecture(ModelConfig(name=MICRO))
    with pytest.raises(ArchitectureError, match=name):
        dataclasses.replace(arch, vocabularies=((name, ("unknown",)),), weights=(1.0, 0.1))


# A federated run on a hospital's own table


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """60 pictures of two classes that only the own column tells apart."""
    path, random = tmp_path_factory.mktemp("clinic"), np.random.default_rng(5)
    rows = ["name;dx;typ;size"]
    for number in range(60):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path / f"{number:02d}.png")
        rows.append(f"{number:02d};{'mel' if number % 3 else 'nv'};{'V' if number % 3 else 'I'};{number},5")
    (path / "t.csv").write_text("\n".join(rows))
    (path / "manifest.yaml").write_text(
        "file: t.csv\nimage: name\nlabel: dx\nmetadata: {skin: {column: typ, values: {V: III}},"
        " mm: {column: size, numbers: true}}\n"
    )
    return path


def own_config(clinic, tmp_path, **model):
    return tiny_config(
        data={"source": "folder", "dir": str(clinic), "cache_dir": str(tmp_path / "cache"), "test": 0.3},
        model={"classes": ("mel", "nv"), "metadata": OWN, "image_weight": 0.2} | model,
        train={"lr": 3e-2, "local_epochs": 6, "batch_size": 8}, federation={"rounds": 2},
        prune={"criterion": "none"}, run={"output_dir": str(tmp_path)},
    )  # fmt: skip


def test_a_run_learns_from_an_own_column_and_its_file_alone_evaluates(clinic, tmp_path):
    lens = MetadataColumn("lens", values=("wet", "dry"))
    columns = (MetadataColumn("skin", 1.0, values=("I", "II", "III")), *OWN[1:], lens)
    folder = run_here(own_config(clinic, tmp_path, metadata=columns), 2)
    assert folder.records()[-1]["accuracy"] == 1.0, "noise in the pictures: only `skin` tells the classes apart"
    notes = folder.records()[1]["notes"]
    assert set(notes) == {"partition-0", "partition-1"}
    assert all(any("no image has a value for lens" in line for line in lines) for lines in notes.values())
    assert not any("localization" in line for lines in notes.values() for line in lines)
    arch, _ = read_model(folder.path / "model.safetensors")
    assert dict(arch.vocabularies)["skin"] == ("unknown", "I", "II", "III")
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "m.safetensors"
    alone.write_bytes((folder.path / "model.safetensors").read_bytes())
    assert evaluate_run(alone, clinic, everything=True)["accuracy"] == 1.0


def test_batches_hold_the_codes_of_the_rows(clinic, tmp_path):
    config = own_config(clinic, tmp_path)
    data = open_data(config.data, 32, vocabularies=vocabularies(config.model))
    (batch,) = batches(data, np.array([0, 1, 59]), dense_architecture(config.model), batch_size=3)
    # 00: I, 0.5 mm; 01: V = III, 1.5 mm; 59: V, 59.5 mm; nobody tells an age
    assert batch.metadata.tolist() == [[1, 0, 1], [3, 0, 1], [3, 0, 3]]


def test_what_the_model_will_not_know_is_noted(clinic, tmp_path):
    config = own_config(clinic, tmp_path)
    other = (*vocabularies(config.model), ("lens", ("unknown", "a")))
    data = open_data(config.data, 32, vocabularies=(("skin", ("unknown", "II", "III")), *other[1:]))
    assert "skin 'i' is not in the vocabulary: unknown for 20 images" in data.notes
    assert "no image has a value for lens (model.metadata): map a column to it in the manifest, as " \
           "metadata: {lens: column}" in data.notes  # fmt: skip
    assert not any("for age" in note for note in data.notes), "that HAM10000's three may be missing is nothing new"
    blind = open_data(config.data, 32, vocabularies=(("sex", ("unknown", "female")), ("age", ("unknown", "0")))).notes
    assert blind[-1] == "no image has any metadata that the model could see (sex, age): map columns to them in the " \
                        "manifest, or set model.image-only=true"  # fmt: skip
    many = open_data(config.data, 32, vocabularies=(("mm", ("unknown", "none of them")),)).notes
    assert many[-1] == "mm: 50 more values are not in the vocabulary, of 50 images"


def test_a_nodes_own_manifest_comes_before_the_servers(clinic, tmp_path):
    config = dataclasses.replace(own_config(clinic, tmp_path).data, manifest="/on/the/server/only.yaml")
    own = {"data-dir": str(clinic), "name": "site-a"}
    assert len(node_data(config, 32, own).data.samples) == 60
    (tmp_path / "half.yaml").write_text("file: t.csv\nimage: name\nlabel: dx\nlabels: {mel: mel, nv: null}\n")
    half = node_data(config, 32, own | {"manifest": str(tmp_path / "half.yaml")})
    assert len(half.data.samples) == 40
    part = node_data(config, 32, own | {"partition-id": 0, "num-partitions": 2})
    assert len(part.data.samples) == 60, "the server's manifest is a file over there, whoever shares the data"


def test_a_split_is_the_same_with_and_without_own_columns(clinic, tmp_path):
    config = own_config(clinic, tmp_path)
    plain = split_server(open_data(config.data, 32), config.data)
    own = split_server(open_data(config.data, 32, vocabularies=vocabularies(config.model)), config.data)
    assert plain.test.tolist() == own.test.tolist()


def test_values_without_quotes_that_yaml_takes_for_truths(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("model:\n  metadata:\n    smoker: {values: [no, yes]}\n")
    with pytest.raises(ConfigError, match=r"found False: YAML reads no, off, yes and on .* in quotes, as \"no\""):
        load_config(file=path)


def test_values_that_read_as_bins_are_refused_and_a_bin_is_known_by_its_name(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text('model:\n  metadata:\n    n: {values: ["1", "2", "3+"]}\n')
    with pytest.raises(ConfigError, match="read as bins of a number; rename the last one"):
        load_config(file=path)
    samples = [Sample(str(n), str(n), "nv", None, None, None, None, "", None, (("n", value),))
               for n, value in enumerate(("1", "3+", "2", "5", "0", 3.0, "4+"))]  # fmt: skip
    codes = encode_metadata(samples, {"n": ("unknown", "1", "2", "3+")})[:, 0]
    assert codes.tolist() == [1, 3, 2, 3, 0, 3, 0]
