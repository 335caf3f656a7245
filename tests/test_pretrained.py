"""Pretrained weights: a local file whose hash is checked, never unpickled unsafely; a hub that may be out of reach."""

import logging
import pickle
from pathlib import Path

import pytest
import torch
from builders import architecture, block_of, tiny_config
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer

from fedskew.config import ConfigError
from fedskew.config.schema import ModelConfig
from fedskew.files import file_sha256
from fedskew.learning.initial import initial_model
from fedskew.model.fusion import build
from fedskew.model.pretrained import load_pretrained


def timm_model(*, classes=11, window=4, image_size=32, patch=4, seed=5):
    """timm's own model of the shape of `architecture(image_size=32, stages=2)`, with other weights."""
    torch.manual_seed(seed)
    return SwinTransformer(img_size=image_size, patch_size=patch, num_classes=classes, embed_dim=8, depths=(2, 2),
                           num_heads=(2, 4), window_size=window)  # fmt: skip


def original_layout(state):
    """The names of Microsoft's checkpoints: downsampling at the end of a stage, `head.`, and index buffers."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head.")
        renamed[name] = tensor
    return renamed | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long)}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(architecture(image_size=32, stages=2))


def config(path, sha256=""):
    return ModelConfig(pretrained=str(path), pretrained_sha256=sha256)


def saved(path, content):
    """Save as the suffix says; returns the path and its hash."""
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path, file_sha256(path)


def assert_loaded(model, source, names):
    """The encoder has timm's weights and computes what timm's does; the rest kept its own."""
    state = source.state_dict()
    assert set(names) == {name for name in state if not name.startswith("head.")}
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.encoder.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    source.reset_classifier(0)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encoder(images), source.eval()(images))


@pytest.mark.parametrize("classes", [11, 0], ids=["with-head", "headless"])
def test_a_local_safetensors_file_is_loaded(model, tmp_path, classes):
    source = timm_model(classes=classes)
    path, sha256 = saved(tmp_path / "w.safetensors", source.state_dict())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "encoder" not in name}
    assert_loaded(model, source, load_pretrained(model, config(path)))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items()), (
        "classifier, embeddings"
    )
    load_pretrained(model, config(path, sha256.upper()))


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("layout", ["timm", "original"])
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_a_local_pickle_is_loaded_in_every_layout(model, tmp_path, wrapper, layout, suffix):
    source = timm_model()
    state = source.state_dict() if layout == "timm" else original_layout(source.state_dict())
    path, sha256 = saved(tmp_path / f"w{suffix}", {wrapper: state, "epoch": 3} if wrapper else state)
    assert_loaded(model, source, load_pretrained(model, config(path, sha256)))


def test_windows_and_patches_of_another_size_are_fitted(model, tmp_path):
    path, _ = saved(tmp_path / "w.safetensors", timm_model(window=8, patch=2).state_dict())
    load_pretrained(model, config(path))
    assert block_of(model, 0, 0).attn.relative_position_bias_table.shape == (49, 2)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_wrong_hash_is_refused_and_nothing_is_loaded(model, tmp_path, suffix):
    path, sha256 = saved(tmp_path / f"w{suffix}", timm_model().state_dict())
    before = model.encoder.patch_embed.proj.weight.clone()
    with pytest.raises(ConfigError, match=sha256):
        load_pretrained(model, config(path, "0" * 64))
    assert torch.equal(model.encoder.patch_embed.proj.weight, before)


def test_a_pickle_without_hash_is_refused_and_the_hash_is_told(model, tmp_path):
    path, sha256 = saved(tmp_path / "w.pth", timm_model().state_dict())
    with pytest.raises(ConfigError, match=f"pretrained-sha256={sha256}"):
        load_pretrained(model, config(path))


class Bomb:
    """Would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_pickle_is_never_executed(model, tmp_path, how):
    path, trace = tmp_path / "w.pth", tmp_path / "executed"
    content = timm_model().state_dict() | {"payload": Bomb(trace)}
    torch.save(content, path) if how == "torch" else path.write_bytes(pickle.dumps(content))
    with pytest.raises(ConfigError, match="not unpickled"):
        load_pretrained(model, config(path, file_sha256(path)))
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.zeros(3), 7, None, {"model": 5}, {}, {"model": {}}, {"weight": torch.zeros(3)}, {"layers": "x"},
     {3: torch.zeros(3)}, {"patch_embed.proj.weight": 3}, {"norm.weight": "x"}],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_a_pickle_that_holds_no_swin_is_refused(model, tmp_path, content):
    path, sha256 = saved(tmp_path / "w.pth", content)
    with pytest.raises(ConfigError, match=r"w\.pth"):
        load_pretrained(model, config(path, sha256))


@pytest.mark.parametrize("change", ["wider", "deeper", "other"])
def test_weights_of_another_model_are_refused_and_the_difference_is_named(model, tmp_path, change):
    torch.manual_seed(0)
    widths = {"embed_dim": 16 if change == "wider" else 8, "depths": (2, 4) if change == "deeper" else (2, 2)}
    other = SwinTransformer(img_size=32, num_classes=2, num_heads=(2, 4), window_size=4, **widths)
    state = {"resnet." + name: tensor for name, tensor in other.state_dict().items()}
    path, _ = saved(tmp_path / "w.safetensors", state if change == "other" else other.state_dict())
    if change == "deeper":
        model = build(architecture(image_size=32, stages=2, depth=6))
    with pytest.raises(ConfigError, match=r"does not (fit|hold)"):
        load_pretrained(model, config(path))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "/nowhere/at/all"])
def test_a_missing_file_is_named(model, tmp_path, name):
    with pytest.raises(ConfigError, match=r"does not exist; give the absolute path"):
        load_pretrained(model, config(tmp_path / name))


def test_a_damaged_file_is_named(model, tmp_path):
    for name in ("w.safetensors", "w.pth"):
        path = tmp_path / name
        path.write_bytes(b"not a model" * 50)
        with pytest.raises(ConfigError, match=name):
            load_pretrained(model, config(path, file_sha256(path)))


def test_an_unknown_tag_names_the_local_file_option(model):
    with pytest.raises(ConfigError, match=r"set model.pretrained to a local"):
        load_pretrained(model, config("swin_tiny_patch4_window7_224.nonsense"))


def test_a_host_without_access_is_told_of_the_local_file_option(model, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"could not be fetched.*local .safetensors or .pth file"):
        load_pretrained(model, config("swin_s3_tiny_224.ms_in1k"))


def test_the_tries_of_the_hub_client_are_not_told_one_by_one(model, monkeypatch, caplog):
    """Ten lines of its log, on a machine without the Internet, before the one that says what to do."""

    def fail(*_, **__):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 8s [Retry 4/5].")
        raise OSError("Name or service not known")

    monkeypatch.setattr("fedskew.model.pretrained.timm.create_model", fail)
    monkeypatch.setattr("fedskew.model.pretrained._check_family", lambda *_: None)
    with caplog.at_level(logging.INFO), pytest.raises(ConfigError, match=r"could not be fetched \(Name or service"):
        load_pretrained(model, config("swin_s3_tiny_224.ms_in1k"))
    (said,) = [line.getMessage() for line in caplog.records]
    assert said.startswith("the weights of swin_s3_tiny_224.ms_in1k are taken from the model hub")
    logging.getLogger("huggingface_hub.utils._http").warning("heard again")
    assert caplog.records[-1].getMessage() == "heard again"


def test_a_run_starts_from_pretrained_weights(generated, tmp_path):
    base = tiny_config()
    first, arch = initial_model(base)
    torch.manual_seed(9)
    other = build(arch)
    path, _ = saved(tmp_path / "w.safetensors", other.encoder.state_dict())
    chosen = tiny_config(model={"pretrained": str(path)})
    state, _ = initial_model(chosen)
    assert torch.equal(state["encoder.patch_embed.proj.weight"], other.encoder.patch_embed.proj.weight)
    assert torch.equal(state["classifier.weight"], first["classifier.weight"]), "still from the run's seed"
