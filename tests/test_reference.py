"""What training pictures are like, and when a picture is called unlike them: figures worked out here by other means."""

from __future__ import annotations

import colorsys
import json
from dataclasses import replace

import numpy as np
import pytest
from builders import architecture, lively_model, tiny_config
from PIL import Image

import fedskew
from fedskew.data import reference
from fedskew.data.cache import build_cache
from fedskew.data.decode import Decoded, decode_sized
from fedskew.data.preprocessing import training_preprocessing
from fedskew.data.reference import FEATURES, Reference, features, measure, reference_from
from fedskew.data.samples import DataError
from fedskew.data.sources import open_source
from fedskew.learning.datasets import open_data, split_server
from fedskew.learning.server_data import ServerData
from fedskew.model.modelfile import encode_model, load_model, read_about
from fedskew.model.signature import ModelFileError
from fedskew.runs.lineage import about_model

WIDE = dict.fromkeys(FEATURES, (0.0, 1.0)) | {"side": (100.0, 200.0), "shape": (1.0, 2.0)}


def plain(red, green, blue, *, size=8, width=150, height=150):
    pixels = np.empty((size, size, 3), dtype=np.uint8)
    pixels[:] = red, green, blue
    return Decoded(pixels, width, height)


def test_features_by_pillow_and_by_hand():
    pixels = np.random.default_rng(1).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    found = features(pixels, np.array([[40, 30], [20, 60]]))
    assert set(found) == set(FEATURES)
    for number, picture in enumerate(pixels):
        red, green, blue = (np.array(channel) / 255 for channel in Image.fromarray(picture).split())
        spread = [colorsys.rgb_to_hsv(*one)[1] * colorsys.rgb_to_hsv(*one)[2] for one in picture.reshape(-1, 3) / 255]
        grey = (red + green + blue) / 3
        across = [abs(grey[y, x + 1] - grey[y, x]) for y in range(5) for x in range(6)]
        down = [abs(grey[y + 1, x] - grey[y, x]) for y in range(4) for x in range(7)]
        expected = {
            "red": red.mean(), "green": green.mean(), "blue": blue.mean(), "red-green": red.mean() - green.mean(),
            "red-blue": red.mean() - blue.mean(), "contrast": grey.std(), "colour": np.mean(spread),
            "detail": (np.mean(across) + np.mean(down)) / 2, "side": (30, 20)[number], "shape": (4 / 3, 3)[number],
        }  # fmt: skip
        assert {name: values[number] for name, values in found.items()} == pytest.approx(expected, abs=1e-6)


def test_the_range_is_that_of_the_chosen_images_to_four_digits():
    random = np.random.default_rng(2)
    pixels, sides = random.integers(0, 256, (300, 6, 6, 3), dtype=np.uint8), random.integers(50, 900, (300, 2))
    chosen = random.permutation(300)[:150]
    found = measure(pixels, sides, chosen)
    assert found.images == 150
    means = np.sort(pixels[chosen][..., 1].mean((1, 2)) / 255)
    place = 0.005 * 149  # between the first two of 150, linearly
    assert found.ranges["green"][0] == pytest.approx(means[0] + place * (means[1] - means[0]), rel=1e-3)
    assert found.ranges["side"][1] == pytest.approx(np.quantile(sides[chosen].min(1), 0.995), rel=1e-3)
    assert reference_from(json.loads(json.dumps(found.to_mapping()))) == found
    assert measure(pixels, sides, chosen[:99]) is None, "a quantile of so few says nothing"


def test_of_very_many_images_some_are_looked_at_evenly_spread(monkeypatch):
    monkeypatch.setattr(reference, "MOST_IMAGES", 101)
    pixels = np.arange(201, dtype=np.uint8)[:, None, None, None].repeat(3, 3).repeat(2, 2).repeat(2, 1)
    found = measure(pixels, np.full((201, 2), 9), np.arange(201))
    assert found.images == 101
    assert found.ranges["red"] == pytest.approx((1 / 255, 199 / 255), rel=1e-3)  # every second: 0, 2 … 200


@pytest.mark.parametrize(
    ("name", "ends", "inside", "outside"),
    [
        ("red", (0.4, 0.8), (0.33, 0.87), (0.31, 0.89)),  # a fifth of the range on both sides
        ("red", (0.5, 0.5), (0.49, 0.51), (0.47, 0.53)),  # at least .02
    ],
)
def test_a_range_is_widened_by_a_fifth(name, ends, inside, outside):
    known = Reference(100, WIDE | {name: ends})
    for values, expected in ((inside, 0), (outside, 1)):
        for value in values:
            assert len(known.notes(plain(round(value * 255), 100, 90))) == expected, value


def test_size_and_shape_go_by_factors():
    known = Reference(100, WIDE)
    notes = {
        (width, height): known.notes(plain(200, 100, 90, width=width, height=height))
        for width, height in ((51, 51), (49, 49), (399, 399), (405, 405), (236, 100), (100, 245))
    }
    assert {size for size, lines in notes.items() if lines} == {(49, 49), (405, 405), (100, 245)}
    assert notes[100, 245] == ("unlike the pictures of its training: longer side by shorter side 2.45 (theirs 1 to 2)",)


def test_one_line_names_all_that_is_unlike():
    known = Reference(100, WIDE | {"red": (0.6, 0.9), "blue": (0.3, 0.5)})
    (line,) = known.notes(plain(26, 26, 230))
    assert line == (
        "unlike the pictures of its training: mean red 0.102 (theirs 0.6 to 0.9), mean blue 0.902 (theirs 0.3 to 0.5), "
        "red above blue -0.8 (theirs 0 to 1)"
    )


@pytest.mark.parametrize(
    "said",
    [
        None, [], {"ranges": {}}, {"images": 3}, {"images": True, "ranges": {}}, {"images": 3, "ranges": {"red": [1]}},
        {"images": 3, "ranges": {"red": [1, 0]}}, {"images": 3, "ranges": {"red": [0, float("nan")]}},
        {"images": 3, "ranges": {"side": [-1, 5]}}, {"images": 3, "ranges": {"red": "ab"}},
    ],
)  # fmt: skip
def test_a_reference_that_cannot_be_is_refused(said):
    with pytest.raises(DataError, match="reference"):
        reference_from(said)


def test_features_of_later_versions_are_left_out():
    assert reference_from({"images": 3, "ranges": {"fur": "long", "red": [0, 1]}}).ranges == {"red": (0, 1)}


def test_the_cache_knows_how_large_the_upright_pictures_were(tmp_path):
    sizes = {"a": (30, 20), "b": (16, 48), "turned": (40, 10)}
    for name, size in sizes.items():
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "turned" else 1
        (tmp_path / "set" / "mel").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 100, 90)).save(tmp_path / "set" / "mel" / f"{name}.jpg", exif=exif)
    (tmp_path / "set" / "nv").mkdir()
    (tmp_path / "set" / "nv" / "broken.jpg").write_bytes(b"")
    source = open_source(tmp_path / "set")
    found = build_cache(source, size=8, fit="squash", directory=tmp_path / "cache")
    assert found.sides.tolist() == [[30, 20], [16, 48], [10, 40], [0, 0]]
    again = build_cache(source, size=8, fit="squash", directory=tmp_path / "cache")
    assert again.sides.tolist() == found.sides.tolist()
    (found.path / "sides.u32").write_bytes(bytes(32))
    assert build_cache(source, size=8, fit="squash", directory=tmp_path / "cache").sides[0].tolist() == [30, 20], "anew"


def test_a_run_says_what_its_open_images_are_like_and_no_others(generated, monkeypatch):
    config = tiny_config()
    data = open_data(config.data, 32)
    server = ServerData(config, data, split_server(data, config.data))
    assert server.reference is None
    monkeypatch.setattr(reference, "LEAST_IMAGES", 10)
    server = ServerData(config, data, split_server(data, config.data))
    assert server.reference == measure(data.cached.images, data.cached.sides, server.training)
    assert server.reference.images == len(server.training) < len(server.training) + len(server.held_back)
    about = about_model(config, architecture(), 1, "", reference=server.reference)
    assert reference_from(about["reference"]) == server.reference
    assert "reference" not in about_model(config, architecture(), 1, "")


def test_a_models_own_training_pictures_are_not_unlike_and_a_page_is(finished_run, generated, tmp_path):
    """From the model file to the note, through what `load` reads."""
    data = open_data(tiny_config().data, 32)
    file, about = finished_run.path / "model.safetensors", read_about(finished_run.path / "model.safetensors")
    known = measure(data.cached.images, data.cached.sides, data.usable)
    module = load_model(file)
    target = tmp_path / "m.safetensors"
    target.write_bytes(
        encode_model(module.architecture, module.state_dict(), about | {"reference": known.to_mapping()})
    )
    model = fedskew.load(target)
    assert model.reference == known
    paths = sorted(generated.rglob("*.jpg"))
    assert [path.name for path in paths if model.predict(path).notes] == []
    (note,) = model.predict(Image.new("RGB", (600, 800), (250, 250, 248))).notes
    assert note.startswith("unlike the pictures of its training: mean green 0.98 (theirs ")
    inverted = Image.fromarray(255 - np.asarray(Image.open(paths[0])))
    assert "red above green" in model.predict(inverted).notes[0]
    assert fedskew.load(file).predict(inverted).notes == (), "a file that does not say gives no note"
    target.write_bytes(encode_model(module.architecture, module.state_dict(), about | {"reference": 3}))
    with pytest.raises(ModelFileError, match="reference must hold images and ranges"):
        fedskew.load(target)


def test_the_size_of_a_picture_in_memory_is_that_of_its_file(tmp_path):
    model = fedskew.FedskewModel(lively_model(architecture()), training_preprocessing(64, "crop"))
    model = replace(model, reference=Reference(100, {"side": (2000, 3000)}))
    Image.new("RGB", (900, 700), (200, 100, 90)).save(tmp_path / "a.jpg")
    assert decode_sized((tmp_path / "a.jpg").read_bytes(), 72, "crop")[1:] == (900, 700), "though the decoder shrinks"
    for picture in (tmp_path / "a.jpg", Image.open(tmp_path / "a.jpg"), Image.open(tmp_path / "a.jpg").convert("RGB")):
        assert model.predict(picture).notes == (
            "unlike the pictures of its training: shorter side in pixels 700 (theirs 2000 to 3000)",
        )
