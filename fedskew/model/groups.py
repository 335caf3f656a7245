"""What a family says of its encoder: which groups of units can be pruned, what goes with them, and what they cost.

The table of groups is all that slicing, observing, counting and budgets know of a family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from torch import Tensor, nn

ATTENTION, MLP = "attention", "mlp"
REMOVED_MODES = ("norm", "skip")
WINDOWS, PICTURE, TOKENS = "windows", "picture", "tokens"  # layouts of a `Probe`


@dataclass(frozen=True, order=True)
class SublayerKey:
    """One prunable sublayer of an encoder."""

    stage: int
    block: int
    kind: str  # ATTENTION or MLP

    def __str__(self) -> str:
        return f"{self.stage}.{self.block}.{self.kind}"


@dataclass(frozen=True)
class Cut:
    """Which slices of a tensor go with a unit: the axis holds `parts` · units · `width` values, in that order.

    Attributes:
        name: of the tensor, within the encoder.
    """

    name: str
    axis: int
    parts: int = 1  # q, k and v rows of one matrix are three
    width: int = 1  # values a unit


@dataclass(frozen=True)
class Probe:
    """Where a sublayer's activations can be seen, and how they lie.

    `windows` are [B · windows, window², C], `picture` [B, side, side, C], `tokens` [B, prefix + side², C].
    """

    module: str  # name within the encoder
    output: bool  # what the module returns, or what it is given
    layout: str
    side: int  # tokens a side of the picture
    window: int  # tokens a side of a window
    shift: int = 0  # by which windows are moved against the picture
    prefix: int = 0  # tokens that are no part of the picture


@dataclass(frozen=True)
class PrunableGroup:
    """A sublayer's interchangeable units: heads of an attention, hidden channels of an MLP.

    Attributes:
        units: of the dense model.
        numbered: whether an architecture says which units are left, not only how many.
        width: channels of the tokens that go in and out.
        cuts: what goes with a unit.
        prefix: names of all tensors that go with the last unit begin so.
        norm: as `prefix`, for what goes with the last unit only where an emptied sublayer is skipped.
        probe: activations before the non-linearity; `after` it where there is one.
    """

    key: SublayerKey
    units: int
    numbered: bool
    width: int
    cuts: tuple[Cut, ...]
    prefix: str
    norm: str
    probe: Probe
    after: Probe | None = None


@dataclass(frozen=True)
class Cost:
    """Parameters, multiply-accumulates of one image, and bytes of buffers."""

    parameters: int = 0
    linear: int = 0  # MACs of linear and convolution layers
    products: int = 0  # MACs of the two attention products
    buffers: int = 0  # bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.linear + other.linear,
            self.products + other.products,
            self.buffers + other.buffers,
        )


class Segment(NamedTuple):
    """A piece of an encoder's forward pass; they run one after the other."""

    key: SublayerKey | None  # the sublayer that it is, with its residual connection
    run: Callable[[Tensor], Tensor]


Units = Mapping[SublayerKey, int]  # how many units each sublayer has left


def whole_heads(heads: int, width: float) -> int:
    """The number of heads that is nearest to a share of them; at least one."""
    return max(1, math.floor(width * heads + 0.5))


class Spec(Protocol):
    """The fixed shape of an encoder: what pruning does not change. One class a family."""

    family: ClassVar[str]
    stems: ClassVar[tuple[str, ...]]  # what can make tokens of a picture

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        ...

    @property
    def features(self) -> int:
        """Width of the pooled image feature."""
        ...

    @property
    def stage_count(self) -> int:
        """How many stages there are, for schedules that go stage by stage."""
        ...

    @property
    def groups(self) -> tuple[PrunableGroup, ...]:
        """Everything that can be pruned, in the order of the forward pass."""
        ...

    @property
    def undecayed(self) -> tuple[str, ...]:
        """Parts of names of matrices that weight decay leaves alone."""
        ...

    def variant(self, *, image_size: int, stem: str, width: float = 1.0) -> Self:
        """For pictures of another size, with one of `stems`, with a share `width` of the heads and channels.

        Heads stay as broad as they are, so the share is rounded to whole heads; at least one is left.

        Raises:
            ArchitectureError: they do not fit.
        """
        ...

    def fixed_cost(self) -> Cost:
        """Cost of everything outside of the sublayers."""
        ...

    def sublayer_cost(self, key: SublayerKey, units: int, removed: str) -> Cost:
        """Cost of a sublayer and its norm with this many units left."""
        ...

    def stage_prefixes(self, stage: int) -> tuple[str, ...]:
        """Names of all tensors of a stage begin with one of these."""
        ...

    def encoder(self, units: Units, removed: str, drop_path: float) -> nn.Module:
        """The encoder, [B, 3, S, S] to [B, features], with this many units left."""
        ...

    def half(self, key: SublayerKey, units: Units, removed: str) -> tuple[str, nn.Module, Segment]:
        """Prefix of a block's names, the block with this many units left, and the segment of `key` in it."""
        ...

    def segments(self, encoder: nn.Module) -> Iterator[Segment]:
        """The forward pass of an encoder in pieces, from images to features."""
        ...

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready."""
        ...

    @classmethod
    def from_mapping(cls, value: Any) -> Self:
        """Out of `to_mapping`; raises `ArchitectureError`."""
        ...
