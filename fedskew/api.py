"""fedskew in Python: use the model of a run, make a model smaller, run a federation. See docs/api.md for examples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fedskew import apps
from fedskew.config import Config, ConfigError, load_config
from fedskew.config.load import from_mapping, with_preset
from fedskew.config.schema import PruneConfig, TrainConfig
from fedskew.data.batches import ImageBatches
from fedskew.data.decode import UnreadableImage, decode, decode_picture
from fedskew.data.preprocessing import Preprocessing
from fedskew.data.samples import METADATA_FIELDS, DataError, Sample, encode_metadata, lower_ends, nearest_name
from fedskew.learning.train import predict
from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel, build
from fedskew.model.modelfile import load_model
from fedskew.pruning.annotations import annotations_of
from fedskew.pruning.budget import check_budget, only_step
from fedskew.pruning.decide import Plan
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.step import propose
from fedskew.runs.folder import RunFolder
from fedskew.runs.resume import DEFAULT_NODES
from fedskew.runs.start_checks import check_enough_nodes, check_rule
from fedskew.tools.evaluate import model_file, setting_of

log = logging.getLogger("flwr.fedskew.runs")

Metadata = str | float | None
BODY_SITE = "localization"  # as HAM10000 calls it; `predict` takes it as `site` too
# Settings of `prune.*` that say when a run prunes and what it does with labels: a single step has neither.
OF_RUNS = ("first-round", "last-round", "interval", "steps-per-stage", "max-stage", "calibrate", "freeze", "thaw",
           "rollback", "batch-size", "removed")  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        probabilities: by the name of the class, in the model's order; they sum to 1.
        decision: the likeliest class.
        unknown: columns of the model's metadata that it took as unknown: not given, or no value that it has learned.
    """

    probabilities: Mapping[str, float]
    decision: str
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class FedskewModel:
    """A trained model, with all that it takes to use it.

    Attributes:
        module: a torch module in evaluation mode. `module(images [B, 3, S, S], metadata [B, V])` are logits
            [B, classes]; metadata are int64 indices into `architecture.vocabularies`, 0 for unknown.
        preprocessing: how its pictures are prepared.
    """

    module: MultimodalModel
    preprocessing: Preprocessing

    @property
    def architecture(self) -> Architecture:
        """What is left of the encoder, the vocabularies and the classes."""
        return self.module.architecture

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.architecture.classes

    def preprocess(self, image: str | Path | Image.Image) -> Tensor:
        """A picture as the model sees it: the same pixels as in training without augmentation.

        It is turned as its EXIF says, becomes RGB (from CMYK, grey or a palette), and is scaled and normalised as
        `preprocessing` says.

        Args:
            image: path of a JPEG or PNG file, or a picture of Pillow's, which is left as it was.

        Returns:
            float32 [1, 3, S, S].

        Raises:
            UnreadableImage: it is none of these, damaged, absurdly large, or has 16 bits a channel.
        """
        return next(iter(self._batches(image, np.zeros((1, 0), dtype=np.int64)))).images

    def predict(
        self,
        image: str | Path | Image.Image,
        *,
        metadata: Mapping[str, Metadata] | None = None,
        **values: Metadata,
    ) -> Prediction:
        """What the model says of a picture.

        Args:
            image: as `preprocess` takes it.
            metadata: values by the names of the model's own columns, `dict(architecture.vocabularies)`, for names
                that are no word of Python. A column in bins, as `age`, takes a number.
            values: the same as keywords: `age=55, sex="female", localization="back"`. `site` is the body site, the
                column `localization`, unless the model has a column `site` of its own.

        Raises:
            UnreadableImage: as `preprocess`.
            DataError: the model has no such column, a value is given twice, or is neither text nor number.
        """
        codes, unknown = self._encoded({**(metadata or {})}, values)
        _, found = predict(self.module, self._batches(image, codes), TrainConfig())
        probabilities = {name: float(value) for name, value in zip(self.classes, found[0], strict=True)}
        return Prediction(MappingProxyType(probabilities), max(probabilities, key=probabilities.__getitem__), unknown)

    def _batches(self, image: str | Path | Image.Image, codes: np.ndarray) -> ImageBatches:
        """One image through the code that training and evaluation read theirs with; metadata [1, V]."""
        prepared, first = self.preprocessing, np.zeros(1, dtype=np.int64)
        pixels = _pixels(image, prepared)[None]  # uint8 [1, edge, edge, 3]
        return ImageBatches(pixels, first, codes, first, batch_size=1, image_size=prepared.image_size,
                            statistics=prepared.statistics)  # fmt: skip

    def _encoded(self, metadata: dict[str, Metadata], values: Mapping[str, Metadata]) -> tuple[np.ndarray, Any]:
        """Metadata as vocabulary indices [1, V], and the names of those that are unknown."""
        known = dict(self.architecture.vocabularies)
        for name, value in values.items():
            name = BODY_SITE if name == "site" and "site" not in known and BODY_SITE in known else name
            if name in metadata:
                raise DataError(f"{name} is given twice, as a keyword and in `metadata` or as `site`; keep one of them")
            metadata[name] = value
        for name, value in metadata.items():
            _check_metadata(name, value, known)
        codes = encode_metadata([_sample(metadata)], known)  # [1, V]
        return codes, tuple(name for name, code in zip(known, codes[0], strict=True) if code == 0)


def load(path: str | Path | RunFolder, *, best: bool = False) -> FedskewModel:
    """The model of a run, or of a model file.

    Args:
        path: a run folder, or a `model.safetensors`.
        best: of a run folder, the model of its best round instead of that of its last.

    Raises:
        RunFolderError: there is neither.
        ModelFileError: the file is damaged or says something that cannot be.
    """
    place = path.path if isinstance(path, RunFolder) else Path(path)
    best = best and place.is_dir()
    file = model_file(place, best=best)
    module = load_model(file)
    setting = setting_of(file, module.architecture, best=best, everything=True)
    for line in setting.assumed:
        log.warning("%s: %s", file, line)
    return FedskewModel(module, setting.preprocessing)


def prune(
    model: FedskewModel,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    metadata: Tensor | None = None,
    masks: Tensor | None = None,
    stages: Sequence[int] | None = None,
    seed: int = 0,
    **settings: Any,
) -> tuple[FedskewModel, Plan]:
    """A smaller model: one pruning step, as after a round of a run, without rollback.

    Args:
        model: is not changed.
        images: [B, 3, S, S] to score by, as `preprocess` makes them; a few hundred for a skewness that is no chance.
        labels: int64 [B], indices into `classes`; `criterion="taylor"` needs them.
        metadata: int64 [B, V] as the module takes them, for the loss of `taylor`; None: all unknown.
        masks: [B, S, S], 1 inside the lesion; `criterion="lesion-attention"` needs them.
        stages: numbers of the stages that are pruned; None: all.
        seed: of the criterion `random`.
        settings: keys of `prune.*` with `_` for `-`: `criterion`, `rule`, `share`, `reading`, `min_macs`, …
            (`fedskew options prune`). Those that say when a run prunes are refused.

    Returns:
        The smaller model, and what was removed by which scores. The plan numbers the units as in `model`.

    Raises:
        ConfigError: settings that do not exist, cannot be, or would remove nothing; a budget out of reach; a criterion
            that needs labels or masks, without them.
        DataError: images, labels, metadata or masks of another shape.
    """
    config, arch = _prune_config(settings), model.architecture
    size = arch.image_size
    if images.ndim != 4 or images.shape[1:] != (3, size, size) or not len(images):
        raise DataError(f"images must be [B, 3, {size}, {size}] with B >= 1, got {list(images.shape)}")
    chosen = tuple(range(arch.stages)) if stages is None else tuple(stages)
    if strange := [stage for stage in chosen if stage not in range(arch.stages)]:
        raise ConfigError(f"stages {strange} are none of this model's, 0 to {arch.stages - 1}")
    device = next(model.module.parameters()).device
    known = annotations_of(arch, len(images), labels=labels, metadata=metadata, masks=masks).to(device)
    check_budget(arch, config, only_step(chosen))
    plan = propose(model.module, images.to(device), config, chosen, seed, known=known).plan
    state, smaller = slice_model(model.module.state_dict(), arch, plan)
    return replace(model, module=build(smaller, state).to(device).eval()), plan


def simulate(config: Config | str | Mapping[str, Any], nodes: int | None = None) -> RunFolder:
    """Run a federation of simulated hospitals in this process, from its start to its end.

    Args:
        config: a `Config`; the name of a preset or path of a YAML file, as `--preset` takes it; or sections as in such
            a file, with the preset that they change: `{"preset": "demo", "federation": {"rounds": 2}}`.
        nodes: how many hospitals; None: 4.

    Returns:
        The run folder: `path`, `records()` (a mapping a round), and what docs/runs.md says. Without `run.output-dir`
        it lies in `$FEDSKEW_HOME/runs`.

    Raises:
        ConfigError, DataError, RunFolderError, TrainingError: what cannot be, and the remedy.
    """
    count = DEFAULT_NODES if nodes is None else nodes
    if count < 1:
        raise ConfigError(f"nodes is {nodes}, expected at least 1")
    configured = _configuration(config)
    check_enough_nodes(configured, count)
    return apps.simulate_config(configured, count)


def _configuration(config: Config | str | Mapping[str, Any]) -> Config:
    if isinstance(config, Config):
        return config
    return load_config(config) if isinstance(config, str) else with_preset(config, "the configuration")


def _pixels(image: str | Path | Image.Image, prepared: Preprocessing) -> np.ndarray:
    """uint8 [edge, edge, 3]."""
    if isinstance(image, Image.Image):
        return decode_picture(image, prepared.edge, prepared.fit)
    try:
        return decode(Path(image).read_bytes(), prepared.edge, prepared.fit)
    except OSError as error:
        raise UnreadableImage(f"{image} cannot be read: {error.strerror or error}; give the path of an image") from None
    except UnreadableImage as error:
        raise UnreadableImage(f"{image} is no image that can be used: {error}") from error


def _check_metadata(name: str, value: Metadata, known: Mapping[str, Sequence[str]]) -> None:
    if name not in known:
        near = nearest_name(name, list(known))
        has = ", ".join(known) if known else "none: it sees images alone"
        meant = f"; did you mean {near}?" if near else ""
        raise DataError(f"this model has no metadata {name!r}{meant}; it has: {has}")
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | Real)):
        wanted = "a number" if lower_ends(known[name]) is not None else "a text"
        raise DataError(f"{name} is {value!r:.80}, expected {wanted}, or None where it is not known")


def _sample(metadata: Mapping[str, Metadata]) -> Sample:
    """Metadata as training has them of an image."""
    told = {name: value.strip() if isinstance(value, str) else value for name, value in metadata.items()}
    own: dict[str, Any] = {name: told.pop(name, None) for name in METADATA_FIELDS}
    more = tuple((name, value) for name, value in told.items() if value is not None)
    return Sample("", "", "", site=None, image="", metadata=more, **own)


def _prune_config(settings: Mapping[str, Any]) -> PruneConfig:
    given = {name.replace("_", "-"): value for name, value in settings.items()}
    known = {spec.name.replace("_", "-") for spec in fields(PruneConfig)}
    if idle := [name for name in given if name in OF_RUNS and name in known]:
        raise ConfigError(
            f"prune.{idle[0]} has no effect on a single step; it is of runs: fedskew.simulate, or `stages` for a choice"
        )
    config = from_mapping({"prune": given}, "fedskew.prune").prune
    if config.criterion == "none":
        raise ConfigError("prune.criterion is none, which removes nothing; leave it out for skewness")
    check_rule(config)
    return config
