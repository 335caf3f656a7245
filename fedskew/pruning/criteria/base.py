"""What a criterion is: a function from a look at a sublayer to a summary that gives one score a unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

from fedskew.config import registry
from fedskew.pruning.observe import Observation


class Summary(Protocol):
    """What a criterion keeps of one sublayer for some images.

    `values` is the size of the smallest sample whose shape the scores are; None where the scores are no shape of a
    sample. The signs of such scores are compared between two halves of the images.
    """

    @property
    def values(self) -> int | None:
        """See above."""
        ...

    def merged(self, other: Self) -> Self:
        """The summary of the images of both."""
        ...

    def scores(self) -> Tensor:
        """One float32 score a unit [units]; NaN where there is nothing to judge by."""
        ...


Criterion = Callable[[Observation], Summary]


@dataclass(frozen=True)
class Needing:
    """A criterion that looks at more than activations and weights.

    Attributes:
        gradients: `Observation.gradients` are to be there, for which the images need labels.
        masks: `Observation.masks` are to be there: lesion masks of the images, which no run has.
    """

    criterion: Criterion
    gradients: bool = False
    masks: bool = False

    def __call__(self, seen: Observation) -> Summary:
        """What the criterion keeps."""
        return self.criterion(seen)


@dataclass(frozen=True)
class CriterionSettings:
    """What of `prune.*` and the run a criterion may depend on.

    Attributes:
        reading: how batch and windows collapse, one of `READINGS`.
        seed: for what is drawn at random; another in every round.
        boundary: deviations from the mean up to which `automatic` keeps a unit.
    """

    reading: str
    seed: int
    boundary: float = 2.0


CriterionFactory = Callable[[CriterionSettings], Criterion]
CRITERIA: registry.Registry[CriterionFactory] = registry.CRITERIA  # see `config.registry` for whose state this is
register_criterion = CRITERIA.register  # decorator: `prune.criterion=NAME` is what this makes of its settings


def make_criterion(name: str, *, reading: str, seed: int, boundary: float = 2.0) -> Criterion:
    """The criterion of `prune.criterion`, bound to its settings.

    Raises:
        ConfigError: unknown name.
    """
    return CRITERIA.find(name)(CriterionSettings(reading, seed, boundary))


@dataclass(frozen=True)
class Fixed:
    """Scores that further images do not change."""

    given: Tensor  # [units]
    values: int | None = None

    def merged(self, other: Fixed) -> Fixed:
        """The first of the two."""
        return self

    def scores(self) -> Tensor:
        """As given."""
        return self.given


@dataclass(frozen=True)
class Negative:
    """The opposite of other scores."""

    inner: Summary

    @property
    def values(self) -> int | None:
        """Of the other summary."""
        return self.inner.values

    def merged(self, other: Negative) -> Negative:
        """The opposite of the merged ones."""
        return Negative(self.inner.merged(other.inner))

    def scores(self) -> Tensor:
        """Minus the scores."""
        return -self.inner.scores()


@dataclass(frozen=True)
class Ratio:
    """A sum over a sum, of all images."""

    above: Tensor  # float64 [units]
    below: Tensor  # float64 [units]
    values: None = None

    def merged(self, other: Ratio) -> Ratio:
        """The sums of both."""
        return Ratio(self.above + other.above, self.below + other.below)

    def scores(self) -> Tensor:
        """Their ratio; NaN where both are 0."""
        return (self.above / self.below).float()
