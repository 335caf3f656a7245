"""What a table says of one lesion or patient in two ways: reported, never a reason to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedskew.data.samples import Sample

_SHOWN = 3


def contradiction_lines(samples: Sequence[Sample], *, lesions: bool = True) -> list[str]:
    """Lesions with several labels, and patients (or lesions, where patients are not known) of several sexes.

    Args:
        lesions: whether `lesion_id` names lesions; in folders by class it may as well be a patient, who can have both
            a melanoma and a nevus.

    Returns:
        One line for each of both, with how many there are and the first few; nothing where all agree.
    """
    lines = []
    if lesions:
        lines += _several(samples, lambda s: s.lesion_id, lambda s: s.label, "lesions have images of several labels",
                          "settle which one is right")  # fmt: skip
        lines += _several(samples, lambda s: s.group, lambda s: s.sex, "patients or lesions are of several sexes",
                          "correct them, or the name if they are different patients")  # fmt: skip
    return lines


def several_sites_lines(samples: Sequence[Sample]) -> list[str]:
    """Patients or lesions with images of several sites: where data are divided by site, each goes to one node."""
    return _several(samples, lambda s: s.group, lambda s: s.site, "patients or lesions have images of several sites",
                    "each goes wholly to the site with most of its images")  # fmt: skip


def _several(
    samples: Sequence[Sample],
    name: Callable[[Sample], str],
    value: Callable[[Sample], str | None],
    text: str,
    remedy: str,
) -> list[str]:
    found: dict[str, dict[str, int]] = {}
    for sample in samples:
        told = value(sample)
        if told is not None:
            counts = found.setdefault(name(sample), {})
            counts[told] = counts.get(told, 0) + 1
    several = {key: counts for key, counts in sorted(found.items()) if len(counts) > 1}
    if not several:
        return []
    listed = [f"{key} ({', '.join(f'{told} {count}' for told, count in sorted(counts.items()))})"
              for key, counts in list(several.items())[:_SHOWN]]  # fmt: skip
    more = f"; and {len(several) - _SHOWN} more" if len(several) > _SHOWN else ""
    return [f"{len(several)} {text}: {'; '.join(listed)}{more}; {remedy}"]
