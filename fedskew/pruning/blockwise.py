"""Algorithm 1 literally: stage by stage and block by block, first heads, then MLP groups of the block without them.

Every sublayer is scored after the cut before it. The scoring images are carried through the network one half block
at a time, so that nothing but a half block that lost units runs twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedskew.architecture import Architecture
from fedskew.config.schema import PruneConfig
from fedskew.model.swin import MultimodalSwin, PrunedBlock, build_block
from fedskew.pruning.decide import Limits, Plan, decide
from fedskew.pruning.observe import evaluating, observed
from fedskew.pruning.score import Scoring, SublayerScores, scoring_chunks
from fedskew.pruning.slicing import block_prefix, slice_model
from fedskew.pruning.units import ATTENTION, MLP, SublayerKey

Chunks = list[tuple[int, Tensor]]  # (half, tokens [b, H, W, C])


@torch.no_grad()
def plan_blockwise(
    model: MultimodalSwin, images: Tensor, config: PruneConfig, limits: Limits, stages: tuple[int, ...], seed: int
) -> tuple[dict[SublayerKey, SublayerScores], Plan]:
    """Scores of every unit of the given stages, and what the rule removes one sublayer after the other.

    The model stays as it is. Units are numbered as in it: a sublayer is scored before it is cut itself.
    Tokens of all images and views are in memory at a time: [B · views, H, W, C] of one stage.
    """
    walk = _Walk(model, config, limits, seed)
    with evaluating(model):
        chunks = [(half, model.encoder.patch_embed(chunk)) for half, chunk in scoring_chunks(images, config.views)]
        for stage in range(max(stages, default=-1) + 1):
            layer = model.encoder.layers[stage]
            chunks = [(half, layer.downsample(tokens)) for half, tokens in chunks]
            for index, block in enumerate(layer.blocks):
                for kind in (ATTENTION, MLP):
                    key = SublayerKey(stage, index, kind)
                    block, chunks = walk.take(key, block, chunks, prune=stage in stages)
    return walk.scored, Plan(walk.remove, {key: found.scores for key, found in walk.scored.items()})


class _Walk:
    """The state of one walk through a model: what was scored and cut so far."""

    def __init__(self, model: MultimodalSwin, config: PruneConfig, limits: Limits, seed: int) -> None:
        self._config, self._limits = config, limits
        self._scoring, self._arch = Scoring(config, seed), model.architecture
        self.scored: dict[SublayerKey, SublayerScores] = {}
        self.remove: dict[SublayerKey, tuple[int, ...]] = {}

    def take(self, key: SublayerKey, block: PrunedBlock, chunks: Chunks, *, prune: bool) -> tuple[PrunedBlock, Chunks]:
        """Run one half of a block; if it is to be pruned, score it, cut it and run what is left.

        Returns the block as it is then, and the tokens behind its half.
        """
        passed = self._observe(key, block, chunks) if prune and self._scoring.wants(key) else _run(key, block, chunks)
        if key not in self._scoring.seen:
            return block, passed
        self.scored[key] = found = self._scoring.scores(key)
        like = {key: found.reference} if found.reference is not None else None
        plan = decide({key: found.scores}, self._arch, self._limits,
                      rule=self._config.rule, share=self._config.share, like=like)  # fmt: skip
        self.remove[key] = plan.remove[key]
        if not plan.units:
            return block, passed
        block, self._arch = cut_block(block, self._arch, plan, key, self._limits.group)
        return block, _run(key, block, chunks)

    def _observe(self, key: SublayerKey, block: PrunedBlock, chunks: Chunks) -> Chunks:
        passed: Chunks = []
        for half, tokens in chunks:
            with observed(block, key, self._arch, lambda seen, half=half: self._scoring.look(seen, half),
                          self._config.mlp_activation, self._config.mlp_group):  # fmt: skip
                passed += _run(key, block, [(half, tokens)])
        return passed


def _run(key: SublayerKey, block: PrunedBlock, chunks: Chunks) -> Chunks:
    run = block.first_half if key.kind == ATTENTION else block.second_half
    return [(half, run(tokens)) for half, tokens in chunks]


def cut_block(
    block: PrunedBlock, arch: Architecture, plan: Plan, key: SublayerKey, group: str
) -> tuple[PrunedBlock, Architecture]:
    """A block without the units that a plan takes from it, and the architecture of the model that has this block."""
    prefix = block_prefix(key)
    state = {prefix + name: tensor for name, tensor in block.state_dict().items()}
    state, arch = slice_model(state, arch, plan, group)
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    device = next(iter(own.values())).device if own else torch.device("cpu")
    return build_block(arch, key.stage, key.block, own).to(device), arch
