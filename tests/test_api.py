"""fedskew in Python: what it says of an image is what the run itself recorded of it."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from builders import MICRO, architecture, inputs, lively_model, tiny_config
from masking import MaskedReference
from PIL import Image

import fedskew
from fedskew.config import ConfigError
from fedskew.data.decode import UnreadableImage
from fedskew.data.preprocessing import training_preprocessing
from fedskew.data.samples import METADATA_FIELDS, DataError
from fedskew.learning.datasets import open_data
from fedskew.model.architecture import Architecture
from fedskew.model.modelfile import encode_model, load_model
from fedskew.runs.folder import RunFolderError
from fedskew.runs.predictions import read_predictions

SETTINGS = {
    "preset": "demo",
    "data": {"generated-images": 160, "open": 0.2},
    "model": {"name": MICRO},
    "train": {"batch-size": 16, "threads": 1, "warm-start-epochs": 0},
    "prune": {"batch-size": 16},
    "federation": {"rounds": 1},
    "run": {"threads": 1},
}


@pytest.fixture(scope="module")
def model(finished_run):
    return fedskew.load(finished_run.path)


@pytest.fixture(scope="module")
def pictures(generated):
    """Image id → (path, sample) of the data set that the run used."""
    files = {path.stem: path for path in generated.rglob("*.jpg")}
    samples = open_data(tiny_config().data, 32).samples
    return {sample.image_id: (files[sample.image_id], sample) for sample in samples}


def test_importing_it_loads_no_torch():
    code = "import sys, fedskew; print(fedskew.__version__, fedskew.__all__, {'torch', 'flwr'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = "['FedskewModel', 'Prediction', 'load', 'prune', 'simulate']"
    assert done.stdout.strip() == f"{fedskew.__version__} {names} set()"


def test_a_name_that_it_has_not_is_no_attribute():
    assert {"load", "prune", "simulate"} <= set(dir(fedskew))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        fedskew.lode  # noqa: B018


@pytest.mark.parametrize("best", [False, True])
def test_it_says_of_every_test_image_what_the_run_recorded(finished_run, pictures, best):
    model = fedskew.load(finished_run.path, best=best)
    recorded = read_predictions(finished_run.path / ("best" if best else ""))
    assert model.classes == recorded.classes
    for name, expected in zip(recorded.images, recorded.probabilities, strict=True):
        path, sample = pictures[str(name)]
        found = model.predict(path, age=sample.age, sex=sample.sex, site=sample.localization)
        assert np.allclose(list(found.probabilities.values()), expected, atol=1e-5)
        assert found.decision == recorded.classes[expected.argmax()]
        assert found.unknown == tuple(key for key in ("sex", "age", "localization") if sample.value(key) is None)


def test_metadata_change_what_it_says(model, pictures):
    path, _ = next(iter(pictures.values()))
    told = [model.predict(path, **words).probabilities["mel"] for words in ({}, {"age": 85}, {"sex": "male"})]
    assert len({round(value, 7) for value in told}) == 3


def test_metadata_can_be_given_by_the_names_of_the_model_too(model, pictures):
    path, _ = next(iter(pictures.values()))
    words = model.predict(path, age=51.0, sex="FEMALE ", site="lower extremity")
    assert words == model.predict(path, metadata={"age": "50", "sex": "female", "localization": "lower extremity"})
    assert words.unknown == ()
    unknown = model.predict(path, age=51, sex="diverse", localization=None)
    assert unknown.unknown == ("sex", "localization"), "counted as unknown, as in training, and said"
    assert unknown.probabilities == model.predict(path, age=50).probabilities


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"agee": 50}, r"no metadata 'agee'; did you mean age\?; it has: sex, age, localization"),
        ({"lesion": 50}, "no metadata 'lesion'; it has: sex, age, localization"),
        ({"age": [50]}, r"age is \[50\], expected a number"),
        ({"sex": True}, "sex is True, expected a text"),
        ({"site": "back", "localization": "back"}, "localization is given twice"),
        ({"sex": "male", "metadata": {"sex": "male"}}, "sex is given twice"),
    ],
)
def test_metadata_that_the_model_has_not_is_one_clear_error(model, pictures, words, told):
    path, _ = next(iter(pictures.values()))
    with pytest.raises(DataError, match=told):
        model.predict(path, **words)


def test_own_columns_are_given_by_their_names(model, pictures, tmp_path):
    """The embedding of a column decides; here all weights of a fresh model, but for one column's."""
    arch: Architecture = dataclasses.replace(
        model.architecture,
        vocabularies=(("skin type", ("unknown", "light", "dark")), ("site", ("unknown", "a", "b"))),
        weights=(0.8, 0.1, 0.1),
    )
    torch.manual_seed(0)
    state = dict(model.module.state_dict())
    for name, rows in (("skin type", 3), ("site", 3)):
        state[f"embeddings.{name}.weight"] = torch.randn(rows, arch.features)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(
        f"embeddings.{gone}." for gone in METADATA_FIELDS))}  # fmt: skip
    (tmp_path / "own.safetensors").write_bytes(encode_model(arch, state))
    own = fedskew.load(tmp_path / "own.safetensors")
    path, _ = next(iter(pictures.values()))
    found = own.predict(path, metadata={"skin type": "dark"}, site="b")
    logits = own.module(own.preprocess(path), torch.tensor([[2, 2]]))
    assert list(found.probabilities.values()) == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-6)
    assert found.unknown == ()
    with pytest.raises(DataError, match="no metadata 'age'; it has: skin type, site"):
        own.predict(path, age=40)


def test_a_file_that_does_not_say_how_pictures_are_prepared_is_loaded_with_a_word(finished_run, tmp_path, caplog):
    file = finished_run.path / "model.safetensors"
    module = load_model(file)
    (tmp_path / "old.safetensors").write_bytes(encode_model(module.architecture, module.state_dict()))
    assert fedskew.load(tmp_path / "old.safetensors").preprocessing == training_preprocessing(32, "squash")
    assert "does not say how pictures are prepared" in caplog.text
    with pytest.raises(RunFolderError, match="neither a model file nor a run folder"):
        fedskew.load(tmp_path)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_a_picture_that_was_opened_gives_the_pixels_of_its_file(model, pictures):
    path, _ = next(iter(pictures.values()))
    wanted = model.preprocess(path)
    assert wanted.shape == (1, 3, 32, 32)
    assert wanted.dtype == torch.float32
    with Image.open(path) as opened:
        size = opened.size
        assert torch.equal(model.preprocess(opened), wanted)
        assert (opened.size, opened.mode) == (size, "RGB"), "it is as it was"
        opened.load()
        assert opened.size == size
        assert (model.preprocess(opened) - wanted).abs().mean() < 0.1, "from all of its pixels: other rounding"


def test_pixels_are_those_of_pillow_and_imagenet(model):
    """By hand: squash to 36, the middle 32, ImageNet's statistics."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    square = np.asarray(image.resize((36, 36), Image.Resampling.LANCZOS, reducing_gap=3.0))[2:34, 2:34] / 255
    expected = ((square - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)
    assert np.allclose(model.preprocess(image)[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA"])
def test_every_kind_of_picture_is_turned_and_becomes_rgb(model, tmp_path, mode):
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:10], pixels[10:, :20, 0] = 255, 255  # white on top, red on the left
    image, exif = Image.fromarray(pixels).convert(mode), Image.Exif()
    exif[0x0112] = 6
    kind = "JPEG" if mode == "CMYK" else "PNG"
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(encoded(image, kind, exif=exif))
    from_file, lying = model.preprocess(path), model.preprocess(image.convert("RGB"))
    upright = model.preprocess(Image.fromarray(np.asarray(image.convert("RGB")).swapaxes(0, 1)[:, ::-1].copy()))
    assert (upright - from_file).abs().mean() < 0.05
    assert (lying - from_file).abs().mean() > 0.5
    with Image.open(path) as opened:
        opened.load()
        assert (model.preprocess(opened) - from_file).abs().mean() < 0.05, "its EXIF counts when it is loaded already"


def test_what_is_no_picture_is_one_clear_error(model, tmp_path):
    with pytest.raises(UnreadableImage, match=r"nowhere\.jpg cannot be read: No such file"):
        model.preprocess(tmp_path / "nowhere.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UnreadableImage, match=r"text\.jpg is no image that can be used: .*no JPEG or PNG"):
        model.preprocess(tmp_path / "text.jpg")
    with pytest.raises(UnreadableImage, match="8 bits"):
        model.preprocess(Image.fromarray(np.full((8, 8), 40000, np.uint16)))


def test_a_pruned_model_computes_what_the_masked_one_does():
    arch = architecture()
    model = fedskew.FedskewModel(lively_model(arch), training_preprocessing(64, "crop"))
    images, metadata = inputs(arch, 4)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    smaller, plan = fedskew.prune(model, images, criterion="l1-norm", rule="share", share=0.4)
    assert plan.units > 0
    assert smaller.architecture.cost.parameters < arch.cost.parameters
    assert smaller.preprocessing == model.preprocessing
    assert not smaller.module.training
    reference = MaskedReference(lively_model(arch))
    reference.follow(plan, "ratio")
    with torch.no_grad():
        assert torch.allclose(smaller.module(images, metadata), reference(images, metadata), atol=1e-5)
        assert not torch.allclose(smaller.module(images, metadata), model.module(images, metadata), atol=1e-2)
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the original is what it was"
    shared = {tensor.data_ptr() for tensor in after.values()} & {
        tensor.data_ptr() for tensor in smaller.module.state_dict().values()
    }
    assert not shared, "training the one does not change the other"


def test_stages_that_are_chosen_lose_units_alone(model):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    _, plan = fedskew.prune(model, images, stages=[1], rule="share", share=0.5, min_heads=0)
    assert {key.stage for key, gone in plan.remove.items() if gone} == {1}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"shre": 0.5}, r"unknown key prune.shre; did you mean prune.share\?"),
        ({"share": 2.0}, "prune.share is 2.0, expected at most 1"),
        ({"criterion": "none"}, "removes nothing"),
        ({"criterion": "random"}, "prune.rule=match"),
        ({"rollback": 0.1}, "prune.rollback has no effect on a single step"),
        ({"first_round": 2}, "prune.first-round has no effect"),
        ({"stages": [9]}, r"stages \[9\] are none of this model's, 0 to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(model, settings, told):
    with pytest.raises(ConfigError, match=told):
        fedskew.prune(model, torch.zeros(2, 3, 32, 32), **settings)


def test_images_of_another_shape_are_refused(model):
    with pytest.raises(DataError, match=r"must be \[B, 3, 32, 32\].* got \[1, 3, 64, 64\]"):
        fedskew.prune(model, torch.zeros(1, 3, 64, 64))


def test_a_federation_in_python_ends_with_a_model_that_can_be_loaded(generated, tmp_path):
    folder = fedskew.simulate({**SETTINGS, "run": {"threads": 1, "output-dir": str(tmp_path)}}, nodes=2)
    assert folder.path.parent == tmp_path
    assert [record["round"] for record in folder.records()] == [0, 1]
    model = fedskew.load(folder)
    assert model.architecture.cost.parameters == folder.records()[-1]["parameters"]
    assert model.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    same = fedskew.simulate(tiny_config(federation={"rounds": 1}, run={"output_dir": str(tmp_path)}), nodes=2)
    assert same.path != folder.path


@pytest.mark.parametrize(
    ("config", "nodes", "told"),
    [
        ("dmo", None, r"unknown preset 'dmo'; did you mean demo\?"),
        ({"preset": "dmo"}, None, r"unknown preset 'dmo'; did you mean demo\?"),
        ({"trian": {"lr": 1}}, None, r"the configuration: unknown section 'trian'; did you mean train\?"),
        ({"preset": "demo", "federation": {"quorum": 5}}, None, "federation.quorum is 5, and 4 nodes are simulated"),
        ({"preset": "demo"}, 0, "nodes is 0, expected at least 1"),
        ({"preset": "hospitals"}, 4, "data.clients is own"),
        (3, None, "the configuration is 3, expected sections"),
    ],
)
def test_a_federation_that_cannot_be_is_one_clear_error(config, nodes, told):
    with pytest.raises(ConfigError, match=told):
        fedskew.simulate(config, nodes)
