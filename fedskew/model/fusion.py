"""The multimodal model of the paper (section 4): an image encoder, embeddings of the metadata, and a classifier."""

from __future__ import annotations

from contextlib import nullcontext

from torch import Tensor, nn

from fedskew.model.architecture import Architecture
from fedskew.model.uninitialised import WithoutInitialisation

ENCODER = "encoder."  # names of the encoder's tensors begin so


class MultimodalModel(nn.Module):
    """Image encoder, metadata embeddings and a linear classifier on their weighted sum.

    Without `initialise` the encoder's weights are whatever the memory held: they must be loaded.
    """

    def __init__(
        self, arch: Architecture, *, drop_path: float = 0.0, embedding_std: float = 1.0, initialise: bool = True
    ) -> None:
        super().__init__()
        self.architecture = arch
        with nullcontext() if initialise else WithoutInitialisation():
            self.encoder = arch.spec.encoder(arch.units, arch.removed, drop_path)
        embeddings = {name: nn.Embedding(len(values), arch.features) for name, values in arch.vocabularies}
        for embedding in embeddings.values():
            nn.init.normal_(embedding.weight, std=embedding_std)  # the pooled feature has a deviation near 1
        self.embeddings = nn.ModuleDict(embeddings)
        self.classifier = nn.Linear(arch.features, len(arch.classes))
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor, metadata: Tensor) -> Tensor:
        """Class logits [B, classes] of images [B, 3, S, S] and metadata indices [B, vocabularies]."""
        return self.classify(self.encoder(images), metadata)

    def classify(self, features: Tensor, metadata: Tensor) -> Tensor:
        """Class logits of what the encoder makes of the images [B, features], and metadata."""
        fused = self.architecture.weights[0] * features
        for i, embedding in enumerate(self.embeddings.values()):
            fused = fused + self.architecture.weights[i + 1] * embedding(metadata[:, i])
        logits: Tensor = self.classifier(fused)
        return logits


def build(
    arch: Architecture,
    state: dict[str, Tensor] | None = None,
    *,
    drop_path: float = 0.0,
    embedding_std: float = 1.0,
) -> MultimodalModel:
    """The model of an architecture, with random weights (torch's global seed) or with `state`, loaded strictly."""
    model = MultimodalModel(arch, drop_path=drop_path, embedding_std=embedding_std, initialise=state is None)
    if state is not None:
        model.load_state_dict(state, strict=True)
    return model


def stage_prefixes(arch: Architecture, stage: int) -> tuple[str, ...]:
    """The names of all tensors of a stage of the encoder begin with one of these."""
    return tuple(ENCODER + prefix for prefix in arch.spec.stage_prefixes(stage))
