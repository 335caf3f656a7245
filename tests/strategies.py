"""Hypothesis strategies: valid architectures, dense or pruned, that are small enough to build."""

from __future__ import annotations

from hypothesis import strategies as st

from fedskew.model.architecture import RESERVED, Architecture
from fedskew.model.families.swin import SwinSpec, SwinStage
from fedskew.model.families.vit import ViTSpec
from fedskew.model.groups import REMOVED_MODES, PrunableGroup, Spec

NAMES = st.text(min_size=1, max_size=8)
VOCABULARY_NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,7}", fullmatch=True).filter(lambda name: name not in RESERVED)


@st.composite
def specs(draw, max_side: int = 12) -> Spec:
    """Encoders of every family: odd resolutions, windows that do not divide them."""
    if draw(st.integers(0, 3)) == 0:
        return ViTSpec(
            4 * draw(st.integers(2, 5)), 4, draw(st.sampled_from([4, 6])), draw(st.integers(1, 5)),
            draw(st.integers(1, 4)), draw(st.sampled_from([2, 8, 12])), draw(st.integers(1, 3)), draw(st.booleans()),
        )  # fmt: skip
    patch = draw(st.sampled_from([2, 4]))
    low = -(-8 // patch)
    width, stages = draw(st.sampled_from([4, 6])), []
    for i in range(draw(st.integers(1, 3))):
        heads, hidden = draw(st.integers(1, 4)), draw(st.sampled_from([2, 8, 12]))
        head_dim, window, depth = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
        stages.append(SwinStage(width * 2**i, head_dim, heads, hidden, window, depth))
    side = draw(st.integers(low, max(low, max_side)))
    stem = draw(st.sampled_from(SwinSpec.stems if patch == 4 else SwinSpec.stems[:1]))
    return SwinSpec(patch * side, patch, tuple(stages), stem)


@st.composite
def kept(draw, group: PrunableGroup):
    """What may be left of a group, from nothing to everything."""
    if group.numbered:
        return tuple(sorted(draw(st.sets(st.integers(0, group.units - 1), max_size=group.units))))
    return draw(st.sampled_from([0, 1, group.units // 2, group.units]))


@st.composite
def architectures(draw, max_side: int = 12) -> Architecture:
    """Valid architectures: any encoder, removed sublayers, any metadata."""
    spec = draw(specs(max_side))
    vocabularies = draw(
        st.lists(
            st.tuples(VOCABULARY_NAMES, st.lists(NAMES, min_size=1, max_size=4, unique=True)),
            max_size=3,
            unique_by=lambda pair: pair[0],
        )
    )
    weights = draw(
        st.lists(st.floats(0, 1), min_size=1 + len(vocabularies), max_size=1 + len(vocabularies)),
    )
    return Architecture(
        name=draw(NAMES),
        spec=spec,
        kept=tuple((group.key, draw(kept(group))) for group in spec.groups),
        classes=tuple(draw(st.lists(NAMES, min_size=2, max_size=5, unique=True))),
        vocabularies=tuple((name, tuple(values)) for name, values in vocabularies),
        weights=tuple(weights),
        removed=draw(st.sampled_from(REMOVED_MODES)),
    )
