"""An independent account of pruning: the dense model stays whole, its removed units are multiplied by zero."""

from __future__ import annotations

import torch
from builders import block_of

from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel
from fedskew.model.groups import ATTENTION
from fedskew.pruning.decide import Plan


class MaskedReference:
    """Follows plans on the dense model by hooks: it knows nothing of slicing.

    Per sublayer it keeps the dense numbers of the channels that are left, so that plans on an already pruned model
    (calibration), whose units are numbered anew, can be followed as well.
    """

    def __init__(self, model: MultimodalModel) -> None:
        self.model, self.arch = model, model.architecture
        self.left = {}
        for i, j in self.arch.blocks:
            self.left[i, j, "heads"] = list(range(block_of(model, i, j).attn.num_heads))
            self.left[i, j, "hidden"] = list(range(block_of(model, i, j).mlp.fc1.out_features))

    def follow(self, plan: Plan, group: str) -> None:
        """Mask what a plan removes; MLP channels are grouped as `prune.mlp-group` says."""
        for key, units in plan.remove.items():
            place = (key.stage, key.block, "heads" if key.kind == ATTENTION else "hidden")
            size = 1 if key.kind == ATTENTION else self._channels(key, group)
            gone = {unit * size + offset for unit in units for offset in range(size)}
            self.left[place] = [number for position, number in enumerate(self.left[place]) if position not in gone]

    def _channels(self, key, group: str) -> int:
        mlp = block_of(self.model, key.stage, key.block).mlp
        ratio = mlp.fc1.out_features // mlp.fc1.in_features
        return {"ratio": ratio, "width": mlp.fc1.in_features}.get(group) or int(group)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
        """Logits of the masked dense model."""
        handles = [handle for place in self.arch.blocks for handle in self._hooks(*place)]
        try:
            return self.model(images, metadata)
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, stage: int, index: int):
        block = block_of(self.model, stage, index)
        heads, hidden = self.left[stage, index, "heads"], self.left[stage, index, "hidden"]
        head_mask = torch.zeros(block.attn.num_heads, block.attn.proj.in_features // block.attn.num_heads)
        head_mask[heads] = 1
        hidden_mask = torch.zeros(block.mlp.fc1.out_features)
        hidden_mask[hidden] = 1
        # an empty attention is replaced inside its windows: partition, roll and their inverse leave LN(x)
        yield _masked_input(block.attn.proj, head_mask.flatten()) if heads else self._replaced(block.attn)
        yield _masked_input(block.mlp.fc2, hidden_mask) if hidden else self._replaced(block.mlp)

    def _replaced(self, sublayer):
        factor = 1.0 if self.arch.removed == "norm" else 0.0  # its input is LN(x) already
        return sublayer.register_forward_hook(lambda _, args, output: args[0] * factor)


def _masked_input(module, mask):
    return module.register_forward_pre_hook(lambda _, args: (args[0] * mask,))


def kept_parameters(arch: Architecture) -> int:
    """How many heads and hidden channels an architecture has in all."""
    return sum(arch.units.values())
