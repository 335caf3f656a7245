"""Which numbers leave a site beside the update: metrics and class counts tell of patients too.

A *cell* is a number made from a group of images: the count of a class, or a metric over them. One that is made from
fewer than the policy's `min-count` is suppressed: it is left out, and its name is told, so that nobody takes it for 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedskew.federation.messages import EXAMPLES

EFFORT = frozenset({"steps", "seconds", "seconds-train"})  # of the work, not of the images' content
BY_CLASS = frozenset({"balanced_accuracy", "f1_macro", "auroc_macro"})  # means over classes: each is a cell


def suppress_counts(counts: Mapping[str, int], least: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class counts that may be told, and the classes whose counts may not.

    The sum of all is known as the number of examples, so that of the suppressed ones follows. Where these are a single
    class, or together fewer images than a cell needs, the smallest of the others go too (complementary suppression).

    Args:
        counts: images of each class, those without images too.
        least: images that a cell needs; 1: every count may be told, 0 as well.
    """
    if least <= 1:
        return dict(counts), ()
    small = {name for name, count in counts.items() if count < least}
    others = sorted(counts.keys() - small, key=lambda name: (counts[name], name))
    while small and others and (len(small) == 1 or sum(counts[name] for name in small) < least):
        small.add(others.pop(0))
    return {name: count for name, count in counts.items() if name not in small}, tuple(sorted(small))


def split_metrics(
    names: Iterable[str], counts: Mapping[str, int], least: int, allowed: frozenset[str] | None
) -> tuple[frozenset[str], tuple[str, ...]]:
    """Metrics that may leave, and those that are suppressed because a cell is too small.

    What the policy does not let out at all is in neither: that is no secret of the images.

    Args:
        names: of the answer's metrics.
        counts: images of each class that they are made from.
        least: images that a cell needs.
        allowed: what the policy lets out; None: all.
    """
    asked = {name for name in names if name in EFFORT or name == EXAMPLES or allowed is None or name in allowed}
    present = [count for count in counts.values() if count]
    too_few = sum(present) < least
    small_class = any(count < least for count in present)
    hidden = {name for name in asked - EFFORT - {EXAMPLES} if too_few or (small_class and name in BY_CLASS)}
    return frozenset(asked - hidden), tuple(sorted(hidden))
