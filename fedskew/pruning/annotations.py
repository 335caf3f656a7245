"""What is known of scoring images beside their pixels, for criteria that ask for it (`criteria.Needing`)."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from fedskew.data.samples import DataError
from fedskew.model.architecture import Architecture


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


def annotations_of(
    arch: Architecture, count: int, *, labels: Tensor | None, metadata: Tensor | None, masks: Tensor | None
) -> Annotations:
    """What is known of `count` images of an architecture's, checked.

    Raises:
        DataError: another shape, or an index that the architecture does not have.
    """
    shapes = {"labels": (labels, (count,)), "metadata": (metadata, (count, len(arch.vocabularies))),
              "masks": (masks, (count, arch.image_size, arch.image_size))}  # fmt: skip
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and tensor.shape != shape:
            raise DataError(f"{name} must be {list(shape)} for these images, got {list(tensor.shape)}")
    for name, tensor, sizes in (("labels", labels, [len(arch.classes)]),
                                ("metadata", metadata, [len(values) for _, values in arch.vocabularies])):  # fmt: skip
        if tensor is not None and not ((tensor >= 0) & (tensor < tensor.new_tensor(sizes))).all():
            raise DataError(f"{name} must be indices below {', '.join(map(str, sizes))}, found others")
    return Annotations(labels, metadata, masks)
