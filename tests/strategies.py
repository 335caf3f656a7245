"""Hypothesis strategies: valid architectures, dense or pruned, that are small enough to build."""

from __future__ import annotations

from hypothesis import strategies as st

from fedskew.model.architecture import REMOVED_MODES, RESERVED, STEMS, Architecture, BlockShape, StageShape

NAMES = st.text(min_size=1, max_size=8)
VOCABULARY_NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,7}", fullmatch=True).filter(lambda name: name not in RESERVED)


@st.composite
def block_shapes(draw, dense_heads: int, dense_hidden: int) -> BlockShape:
    """What may be left of a block, from nothing to everything."""
    heads = draw(st.sets(st.integers(0, dense_heads - 1), max_size=dense_heads))
    return BlockShape(tuple(sorted(heads)), draw(st.sampled_from([0, 1, dense_hidden // 2, dense_hidden])))


@st.composite
def architectures(draw, max_side: int = 12) -> Architecture:
    """Valid architectures: odd resolutions, windows that do not divide them, removed sublayers, any metadata."""
    patch = draw(st.sampled_from([2, 4]))
    low = -(-8 // patch)
    image_size = patch * draw(st.integers(low, max(low, max_side)))
    count, width = draw(st.integers(1, 3)), draw(st.sampled_from([4, 6]))
    stages = []
    for i in range(count):
        heads, hidden = draw(st.integers(1, 4)), draw(st.sampled_from([2, 8, 12]))
        blocks = draw(st.lists(block_shapes(heads, hidden), min_size=1, max_size=3))
        head_dim, window = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        stages.append(StageShape(width * 2**i, head_dim, heads, hidden, window, tuple(blocks)))
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
        image_size=image_size,
        patch_size=patch,
        stages=tuple(stages),
        classes=tuple(draw(st.lists(NAMES, min_size=2, max_size=5, unique=True))),
        vocabularies=tuple((name, tuple(values)) for name, values in vocabularies),
        weights=tuple(weights),
        removed=draw(st.sampled_from(REMOVED_MODES)),
        stem=draw(st.sampled_from(STEMS if patch == 4 else STEMS[:1])),
    )
