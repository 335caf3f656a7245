"""What is known of scoring images beside their pixels, for criteria that ask for it (`criteria.Needing`)."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Annotations:
    """Of some images, in their order; None where it is not known.

    Attributes:
        labels: int64 [B], indices into the architecture's classes.
        metadata: int64 [B, V], indices into its vocabularies; None: all unknown.
        masks: [B, S, S], 1 inside the lesion.
    """

    labels: Tensor | None = None
    metadata: Tensor | None = None
    masks: Tensor | None = None

    def __getitem__(self, part: slice) -> Annotations:
        """Those of some of the images."""
        return Annotations(*(None if tensor is None else tensor[part] for tensor in self._tensors()))

    def to(self, device: object) -> Annotations:
        """On another device."""
        return Annotations(*(None if tensor is None else tensor.to(device) for tensor in self._tensors()))  # type: ignore[call-overload]

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, spec.name) for spec in fields(self))


NOTHING = Annotations()
