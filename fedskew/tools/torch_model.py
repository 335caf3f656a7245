"""A trained torch module with all that it takes to use it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedskew.data.preprocessing import Preprocessing
from fedskew.data.reference import Reference
from fedskew.data.samples import NamedVocabularies
from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel
from fedskew.model.modelfile import load_model, read_about
from fedskew.model.signature import reference_of
from fedskew.pruning.observe import evaluating
from fedskew.tools.evaluate import model_file, setting_of
from fedskew.tools.predict import Picture, Predictor

log = logging.getLogger("flwr.fedskew.runs")


@dataclass(frozen=True, eq=False)
class FedskewModel(Predictor):
    """A trained model, with all that it takes to use it.

    Attributes:
        module: a torch module in evaluation mode. `module(images [B, 3, S, S], metadata [B, V])` are logits
            [B, classes]; metadata are int64 indices into `architecture.vocabularies`, 0 for unknown.
        preprocessing: how its pictures are prepared.
        reference: what the pictures of its training are like; None in files that do not say.
    """

    module: MultimodalModel
    preprocessing: Preprocessing
    reference: Reference | None = None

    @property
    def architecture(self) -> Architecture:
        """What is left of the encoder, the vocabularies and the classes."""
        return self.module.architecture

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.architecture.classes

    @property
    def vocabularies(self) -> NamedVocabularies:
        """Names and values of the metadata, in the model's order."""
        return self.architecture.vocabularies

    def preprocess(self, image: Picture) -> Tensor:
        """See `Predictor.preprocess`; a tensor."""
        return torch.from_numpy(super().preprocess(image))

    def _logits(self, images: np.ndarray, codes: np.ndarray) -> np.ndarray:
        device = next(self.module.parameters()).device
        shown = [torch.from_numpy(values).to(device) for values in (images, codes)]
        with torch.no_grad(), evaluating(self.module):
            logits: np.ndarray = self.module(*shown).float().cpu().numpy()
        return logits


def load_torch(place: Path, *, best: bool) -> FedskewModel:
    """The model of a run folder or of a `model.safetensors`; see `load`."""
    best = best and place.is_dir()
    file = model_file(place, best=best)
    module = load_model(file)
    setting = setting_of(file, module.architecture, best=best, everything=True)
    for line in setting.assumed:
        log.warning("%s: %s", file, line)
    return FedskewModel(module, setting.preprocessing, reference_of(read_about(file), file))
