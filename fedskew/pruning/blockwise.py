"""Algorithm 1 literally: stage by stage and block by block, first heads, then MLP groups of the block without them.

Every sublayer is scored after the cut before it. The scoring images are carried through the network one half block
at a time, so that nothing but a half block that lost units runs twice. Where a criterion looks at gradients, all that
follows a sublayer runs for it, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fedskew.config.schema import PruneConfig
from fedskew.console import counted
from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel
from fedskew.model.groups import Segment, SublayerKey
from fedskew.model.uninitialised import WithoutInitialisation
from fedskew.pruning.annotations import NOTHING, Annotations
from fedskew.pruning.decide import Plan, decide, limits_of
from fedskew.pruning.gradients import unit_gradients
from fedskew.pruning.observe import evaluating, observed
from fedskew.pruning.score import Chunk, Scoring, SublayerScores, scoring_chunks
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.units import Bundles, Table

Chunks = list[Chunk]
Quota = Mapping[SublayerKey, int]


@torch.no_grad()
def plan_blockwise(
    model: MultimodalModel,
    images: Tensor,
    config: PruneConfig,
    table: Table,
    seed: int,
    *,
    quota: Quota | None = None,
    known: Annotations = NOTHING,
) -> tuple[dict[SublayerKey, SublayerScores], Plan]:
    """Scores of every unit in a table, and what the rule removes one sublayer after the other.

    The model stays as it is. Units are numbered as in it: a sublayer is scored before it is cut itself.
    Tokens of all images and views are in memory at a time: [B · views, H, W, C] of one stage.

    Args:
        quota: see `decide`.
        known: of the images.

    Raises:
        ConfigError: as `score_units`.
    """
    walk, last = _Walk(model, config, Scoring(config, seed, known), quota), max(table, default=None)
    chunks = list(scoring_chunks(images, config.views, known)) if table else []
    with evaluating(model):
        segments = list(model.architecture.spec.segments(model.encoder)) if table else []
        for i, segment in counted(enumerate(segments), len(segments), "parts of the model scored"):
            units = table.get(segment.key) if segment.key else None
            chunks = walk.take(segments[i:], units, chunks) if units else _run(segment, chunks)
            if segment.key == last:
                break
    plan = Plan(walk.remove, {key: found.scores for key, found in walk.scored.items()},
                {key: table[key].size for key in walk.scored})  # fmt: skip
    return walk.scored, plan


class _Walk:
    """The state of one walk through a model: what was scored and cut so far."""

    def __init__(self, model: MultimodalModel, config: PruneConfig, scoring: Scoring, quota: Quota | None) -> None:
        self._model, self._config, self._scoring, self._quota = model, config, scoring, quota
        self.scored: dict[SublayerKey, SublayerScores] = {}
        self.remove: dict[SublayerKey, tuple[int, ...]] = {}

    def take(self, segments: Sequence[Segment], units: Bundles, chunks: Chunks) -> Chunks:
        """Run one sublayer, the first segment, score it, cut it and run what is left; returns the tokens behind it."""
        key, passed = units.group.key, self._observe(segments, units, chunks)
        self.scored[key] = found = self._scoring.scores(key)
        like = {key: found.reference} if found.reference is not None else None
        plan = decide({key: found.scores}, {key: units}, limits_of(self._config), rule=self._config.rule,
                      share=self._config.share, like=like, quota=self._quota)  # fmt: skip
        self.remove[key] = plan.remove[key]
        return _run(cut_half(self._model, key, plan), chunks) if plan.units else passed

    def _observe(self, segments: Sequence[Segment], units: Bundles, chunks: Chunks) -> Chunks:
        passed: Chunks = []
        for chunk in chunks:
            look, gradients = partial(self._scoring.look, half=chunk.half), None
            if self._scoring.gradients:
                table = {units.group.key: units}
                gradients = unit_gradients(self._model, segments, chunk.tokens, chunk.known, table)[units.group.key]
            with observed(self._model.encoder, units, look, self._config.mlp_activation,
                          masks=chunk.known.masks, gradients=gradients):  # fmt: skip
                passed += _run(segments[0], [chunk])
        return passed


def _run(segment: Segment, chunks: Chunks) -> Chunks:
    return [chunk._replace(tokens=segment.run(chunk.tokens)) for chunk in chunks]


def cut_half(model: MultimodalModel, key: SublayerKey, plan: Plan) -> Segment:
    """A sublayer of a model without the units that a plan takes from it, for evaluation."""
    arch: Architecture = model.architecture
    state, smaller = slice_model(model.encoder.state_dict(), arch, plan, prefix="")
    with WithoutInitialisation():
        prefix, block, segment = smaller.spec.half(key, smaller.units, smaller.removed)
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    block.load_state_dict(own, strict=True)
    block.eval().to(next(model.encoder.parameters()).device)
    return segment
