"""Pretrained encoder weights: a timm tag, or a local file whose hash is checked. Nothing is unpickled unsafely."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedskew.config.schema import ConfigError, ModelConfig
from fedskew.files import file_sha256
from fedskew.model.families.known import KNOWN, KnownFamily
from fedskew.model.fusion import MultimodalModel

log = logging.getLogger("flwr.fedskew.model")

REMEDY = "Without access to the model hub, set model.pretrained to a local .safetensors or .pth file."


def load_pretrained(model: MultimodalModel, config: ModelConfig) -> tuple[str, ...]:
    """Load `model.pretrained` into the encoder of a dense model, in place.

    The embeddings keep their random weights, and so does the classifier unless `model.head` is `keep`. Bias tables and
    the patch embedding are resized to the model's windows and patches by timm.

    Returns:
        Names of the encoder's tensors that were loaded.

    Raises:
        ConfigError: file missing, hash wrong or not given for a .pth, unsafe pickle, weights of another model, or a
            hub that cannot be reached (names the local-file option).
    """
    check_pretrained(config)
    name = config.pretrained
    if _is_file_name(name):
        state: Mapping[str, Tensor] = _read_file(Path(name), config.pretrained_sha256)
    else:
        state = _from_hub(name, KNOWN[model.architecture.spec.family])
    loaded = _load_encoder(model, state, name)
    if config.head == "keep":
        _load_head(model, state, name)
    return loaded


def head_outputs(path: Path, expected: str = "") -> int | None:
    """How many outputs the classifier of a local file has; None if it holds none. Raises as `load_pretrained`."""
    head = _head(_read_file(path, expected))
    return None if head is None else len(head[0])


def _head(state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Weight [outputs, features] and bias [outputs] of timm's classifier."""
    while isinstance(inner := state.get("model", state.get("state_dict")), Mapping):  # as training scripts save it
        state = inner
    for name in ("head.fc", "head"):
        weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
        if weight is not None and bias is not None:
            return weight, bias
    return None


def _load_head(model: MultimodalModel, state: Mapping[str, Tensor], name: str) -> None:
    head, wanted = _head(state), tuple(model.classifier.weight.shape)
    if head is None:
        raise ConfigError(f"model.head=keep: {name} holds no classifier; set model.head=new")
    if tuple(head[0].shape) != wanted:
        raise ConfigError(
            f"model.head=keep: the classifier of {name} has {head[0].shape[0]} outputs of {head[0].shape[1]} features, "
            f"expected {wanted[0]} (model.classes) of {wanted[1]} ({model.architecture.name}); set model.head=new"
        )
    with torch.no_grad():
        for parameter, value in zip((model.classifier.weight, model.classifier.bias), head, strict=True):
            parameter.copy_(value)


def check_pretrained(config: ModelConfig) -> None:
    """Refuse at once what `load_pretrained` would refuse without a look into the weights.

    Raises:
        ConfigError: file missing, no such tag, or a stem that such weights do not fit.
    """
    name = config.pretrained
    if not name:
        return
    if config.stem != "patch":
        raise ConfigError(f"model.pretrained: {name} has timm's stem; set model.stem=patch (it is {config.stem})")
    if not _is_file_name(name):
        if name not in timm.list_models(pretrained=True):
            raise ConfigError(f"model.pretrained {name!r} is neither a file nor a timm tag with weights. {REMEDY}")
    elif not Path(name).is_file():
        raise ConfigError(
            f"model.pretrained: {name} does not exist; give the absolute path of a .safetensors or .pth file"
        )


def _is_file_name(name: str) -> bool:
    return Path(name).suffix in (".safetensors", ".pth", ".pt", ".bin") or Path(name).is_absolute()


def _from_hub(tag: str, family: KnownFamily) -> Mapping[str, Tensor]:
    _check_family(tag, family)
    log.info("the weights of %s are taken from the model hub, or from its cache on this machine", tag)
    try:
        with _without_its_tries():
            state: Mapping[str, Tensor] = timm.create_model(tag, pretrained=True).state_dict()
    except Exception as error:  # the hub client raises many kinds; each becomes one clear message
        raise ConfigError(
            f"model.pretrained: the weights of {tag!r} could not be fetched ({error}). {REMEDY}"
        ) from error
    return state


@contextmanager
def _without_its_tries() -> Iterator[None]:
    """The hub client tells each of a dozen tries; what came of them is in its exception."""
    client = logging.getLogger("huggingface_hub")
    before = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(before)


def _check_family(tag: str, family: KnownFamily) -> None:
    """Refuse the tag of another architecture before its weights are fetched."""
    if type(found := timm.create_model(tag, num_classes=0)) is not family.module:
        raise ConfigError(
            f"model.pretrained: {tag} is a {type(found).__name__}; expected the tag of a {family.title}, such as "
            f"{family.example}"
        )


def _read_file(path: Path, expected: str) -> Mapping[str, Tensor]:
    found = file_sha256(path)
    if expected and found != expected.lower():
        raise ConfigError(
            f"model.pretrained: {path} has SHA-256 {found}, model.pretrained-sha256 says {expected}; "
            "fetch the file again, or correct the hash"
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ConfigError(f"model.pretrained: {path} is no safetensors file: {error}") from error
    if not expected:
        raise ConfigError(
            f"model.pretrained: {path} is a pickle; set model.pretrained-sha256={found} after checking its source"
        )
    try:
        state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a bad or unsafe pickle
        raise ConfigError(
            f"model.pretrained: {path} does not hold plain tensors and was not unpickled: {error}"
        ) from error
    return state


def _load_encoder(model: MultimodalModel, state: Mapping[str, Tensor], name: str) -> tuple[str, ...]:
    family = KNOWN[model.architecture.spec.family]
    try:
        fitted = family.fit(dict(state), model.encoder)
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"model.pretrained: {name} does not hold the weights of a {family.title}: {error}") from error
    wanted = model.encoder.state_dict()
    found = {key: value for key, value in fitted.items() if key in wanted and isinstance(value, Tensor)}
    missing = sorted(set(wanted) - set(found))
    shapes = [key for key, value in found.items() if value.shape != wanted[key].shape]
    if missing or shapes:
        raise ConfigError(
            f"model.pretrained: {name} does not fit {model.architecture.name}: "
            f"{len(missing)} tensors missing {missing[:3]}, {len(shapes)} of another shape {shapes[:3]}; "
            f"expected the weights of a timm {family.title} of that size, or its name in model.name"
        )
    model.encoder.load_state_dict(found, strict=True)
    return tuple(found)
