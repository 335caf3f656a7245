"""Score the units of a model on open images and some views of them, in chunks, and see how far two halves agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from fedskew.config.schema import ConfigError, PruneConfig
from fedskew.console import counted
from fedskew.model.fusion import MultimodalModel
from fedskew.model.groups import SublayerKey
from fedskew.pruning.agreement import SignTable, by_stage_and_kind
from fedskew.pruning.annotations import NOTHING, Annotations
from fedskew.pruning.criteria import Criterion, Fixed, Needing, Summary, make_criterion
from fedskew.pruning.observe import Observation, observe
from fedskew.pruning.units import Table

PIXELS_AT_ONCE = 2**20  # of a chunk; in Swin-T's first stage they make 100 MB of hidden activations
FEW_VALUES = 16  # of fewer, the sign of a skewness or kurtosis is mostly chance


@dataclass(frozen=True)
class SublayerScores:
    """What the scoring images say of the units of one sublayer."""

    scores: Tensor  # [units], by the configured criterion
    reference: Tensor | None  # [units], by skewness; only for the rule `match`
    signs: SignTable | None  # of the two halves; None if no image was looked at, or only one
    values: int | None  # size of the smallest sample whose shape was taken; None if none was


class Scoring:
    """Collects what chunks of images show of the sublayers.

    Images are told apart by their half, so that the scores of either and of all come from the same pass.
    """

    def __init__(self, config: PruneConfig, seed: int, known: Annotations = NOTHING) -> None:
        self._criteria = [criterion_of(config, seed)]
        if config.rule == "match":
            self._criteria.append(criterion_of(replace(config, criterion="skewness"), seed))
        self._seen: dict[SublayerKey, dict[int, list[Summary]]] = {}
        self.gradients = check_annotations(config, known).gradients

    def look(self, seen: Observation, half: int) -> None:
        """Take in one chunk's observation of a sublayer."""
        halves = self._seen.setdefault(seen.key, {})
        old: Sequence[Summary | None] = halves.get(half) or [None] * len(self._criteria)
        halves[half] = [_extended(*pair, seen) for pair in zip(old, self._criteria, strict=True)]

    @property
    def seen(self) -> Iterable[SublayerKey]:
        """The sublayers that were looked at."""
        return self._seen.keys()

    def scores(self, key: SublayerKey) -> SublayerScores:
        """What all images that were seen say of a sublayer.

        The signs that are compared are those that the rule goes by: skewness' own for `match`. Scores that are no shape
        of a sample have none, or, from weights, the same for both halves: their agreement would say nothing.
        """
        halves = [self._seen[key][half] for half in sorted(self._seen[key])]
        whole = halves[0] if len(halves) == 1 else [a.merged(b) for a, b in zip(*halves, strict=True)]
        values = [summary.values for summary in whole if summary.values is not None]
        found = [summary.scores().cpu() for summary in whole]
        signs = None
        if len(halves) == 2 and whole[-1].values is not None:
            signs = SignTable.of(*(half[-1].scores() for half in halves))
        return SublayerScores(found[0], found[1] if len(found) > 1 else None, signs, min(values, default=None))


def _extended(old: Summary | None, criterion: Criterion, seen: Observation) -> Summary:
    if old is None:
        return criterion(seen)
    return old if isinstance(old, Fixed) else old.merged(criterion(seen))  # the same for every chunk


def criterion_of(config: PruneConfig, seed: int) -> Criterion:
    """The criterion that a configuration names."""
    return make_criterion(config.criterion, reading=config.reading, seed=seed, boundary=config.boundary)


def check_annotations(config: PruneConfig, known: Annotations) -> Needing:
    """What the criterion looks at beyond activations and weights.

    Raises:
        ConfigError: this is not known of the images.
    """
    criterion = criterion_of(config, seed=0)
    needs = criterion if isinstance(criterion, Needing) else Needing(criterion)
    if needs.gradients and known.labels is None:
        raise ConfigError(
            f"prune.criterion={config.criterion} looks at gradients of the loss, for which the images need labels, and "
            "none are given: fedskew.prune(model, images, labels=…), or a criterion without them (skewness, l1-norm)"
        )
    if needs.masks and known.masks is None:
        raise ConfigError(
            f"prune.criterion={config.criterion} looks at lesion masks, and no run has any: it is for studies, "
            "fedskew.prune(model, images, masks=…)"
        )
    return needs


def view(images: Tensor, number: int) -> Tensor:
    """View 0 to 7 of images [..., S, S]: a lesion has no upright.

    0 is the picture itself, 1 its left-right mirror image, 2 and 3 the same upside down, 4 to 7 the first four with
    the axes swapped (two of them are the quarter turns). The first 1, 2, 4 or 8 are each closed under composition;
    the first four keep the axes of a picture that was squashed to a square.
    """
    for bit, axis in ((1, -1), (2, -2)):
        images = images.flip(axis) if number & bit else images
    return images.transpose(-1, -2) if number & 4 else images


def images_at_once(images: Tensor) -> int:
    """How many images [..., S, S] go through the model together: memory does not grow with their number."""
    return max(1, PIXELS_AT_ONCE // (images.shape[-1] * images.shape[-2]))


class Chunk(NamedTuple):
    """Some of the images that units are scored on, on their way through the encoder."""

    half: int
    tokens: Tensor  # images [≤ n, 3, S, S], or what became of them
    known: Annotations


def scoring_chunks(images: Tensor, views: int, known: Annotations = NOTHING) -> Iterator[Chunk]:
    """Every view of images [B, 3, S, S], some at a time; all views of an image are in one half."""
    size = images_at_once(images)
    for half in range(2):
        for number in range(views):
            for start in range(half, len(images), 2 * size):  # one image has no second half
                part = slice(start, start + 2 * size, 2)
                yield Chunk(half, view(images[part], number), viewed(known[part], number))


def viewed(known: Annotations, number: int) -> Annotations:
    """What is known of view `number` of the images."""
    return known if known.masks is None else replace(known, masks=view(known.masks, number))


def score_units(
    model: MultimodalModel,
    images: Tensor,
    config: PruneConfig,
    table: Table,
    seed: int,
    known: Annotations = NOTHING,
) -> dict[SublayerKey, SublayerScores]:
    """Scores of every unit in a table, all from the same model: one forward pass a view.

    Raises:
        ConfigError: the criterion looks at something of the images that is not known.
    """
    scoring = Scoring(config, seed, known)
    starts = range(0, len(images), images_at_once(images))
    chunks = counted(scoring_chunks(images, config.views, known), config.views * len(starts), "parts of images scored")
    for half, chunk, about in chunks:
        observe(model, chunk, partial(scoring.look, half=half), table,
                activation=config.mlp_activation, known=about, gradients=scoring.gradients)  # fmt: skip
    return {key: scoring.scores(key) for key in scoring.seen}


def sign_tables(scored: Mapping[SublayerKey, SublayerScores]) -> dict[tuple[int, str], SignTable]:
    """How two halves of the scoring images judge the units, by stage and kind; empty where that cannot be said."""
    return by_stage_and_kind({key: found.signs for key, found in scored.items() if found.signs})


def few_value_warnings(scored: Mapping[SublayerKey, SublayerScores], reading: str) -> list[str]:
    """One line a stage whose skewness or kurtosis is taken over fewer than 16 values."""
    remedy = "raise prune.batch-size" if reading == "pool" else "set prune.reading=pool, or a larger model.image-size"
    doubt = "each is coarse, whatever their mean" if reading == "per-window" else "its sign is mostly chance"
    least: dict[int, int] = {}
    for key, found in scored.items():
        if found.values is not None and found.values < FEW_VALUES:
            least[key.stage] = min(found.values, least.get(key.stage, found.values))
    return [
        f"stage {stage}: prune.reading={reading} takes each score over {values} values, fewer than {FEW_VALUES}: "
        f"{doubt}; {remedy}"
        for stage, values in sorted(least.items())
    ]
