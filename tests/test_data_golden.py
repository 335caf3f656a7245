"""What HAM10000's path has always given, as recorded before there were own tables and own metadata: bit by bit."""

import hashlib
import io
import json
import zipfile
from dataclasses import replace

from builders import MICRO, architecture, lively_model, tiny_config

from fedskew.config.load import to_mapping
from fedskew.config.schema import ModelConfig
from fedskew.data.samples import HAM10000_CLASSES, encode_labels, encode_metadata
from fedskew.data.sources import open_source
from fedskew.data.splits import partition, split_manifest, split_samples
from fedskew.model.catalogue import dense_architecture
from fedskew.model.modelfile import encode_model


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_metadata_labels_and_split_of_the_generated_data(generated):
    samples = open_source(generated).samples
    assert digest(encode_metadata(samples).tobytes()) == (
        "a9b5f7f0f71b11e231fba2fabe3a726ccb063b1c35829b8896177d3fb14b9d68"
    )
    assert digest(encode_labels(samples, HAM10000_CLASSES).tobytes()) == (
        "d0e291094d02c0f2b72d0f994d399ca2b27b46d19d77e92d03f7f0567d090d86"
    )
    split = split_samples(samples, test=0.2, open=0.2, unit="lesion", seed=0)
    parts = partition(samples, split.clients, nodes=3, kind="iid", alpha=0.5, unit="lesion", seed=0)
    canonical = json.dumps(split_manifest(samples, split, parts), sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == (
        "758abd9bc6354f7b4533ee08f6ebd0b842e822acdbb633376578b6b9bb8c410c"
    )


def test_the_fingerprint_that_names_caches(generated, tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(generated.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                archive.writestr(zipfile.ZipInfo(path.relative_to(generated).as_posix()), path.read_bytes())
    (tmp_path / "d.zip").write_bytes(content.getvalue())
    assert open_source(tmp_path / "d.zip").fingerprint == (
        "10a9cd63f99472de861bc94964ebc95496700101e2a26530edbc3df5676663cd"
    )


def test_architecture_message_and_a_model_file_that_says_nothing():
    """As version 2 of the architecture's text writes them."""
    digests = {only: dense_architecture(ModelConfig(name=MICRO, image_only=only)).digest for only in (False, True)}
    assert digests == {
        False: "b589d7b0f7181e0670c9d6703c4441a0321243a917510b31c908749d3d11d40b",
        True: "53c13e50e0a7d50602c5263ea5cfb78a83d1764d5c1112c8fde796c99f0f949c",
    }
    arch = replace(architecture(stages=1, depth=1), weights=(0.9, 0.05, 0.05))
    assert digest(encode_model(arch, lively_model(arch).state_dict())) == (
        "a04755dac82796ae20ba16067477585e7203788328bf7397d32570cd176f76a2"
    )
    assert "metadata" not in to_mapping(tiny_config())["model"], "in messages as it was"
    assert json.dumps(to_mapping(tiny_config())["model"]["sex-weight"]) == "0.05"
