"""What several test files build: small configurations, architectures, models and inputs."""

from __future__ import annotations

import torch
from flwr.serverapp import Grid
from torch import nn

from fedskew.apps import make_client_app
from fedskew.config.schema import (
    Config,
    DataConfig,
    FederationConfig,
    ModelConfig,
    PruneConfig,
    RunConfig,
    TrainConfig,
)
from fedskew.federation.grids import LocalGrid
from fedskew.federation.server import FederatedRun
from fedskew.model.architecture import Architecture, everything
from fedskew.model.families.swin import SwinSpec, SwinStage
from fedskew.model.families.vit import ViTSpec
from fedskew.model.fusion import MultimodalModel, build
from fedskew.model.groups import ATTENTION, MLP, SublayerKey
from fedskew.pruning.decide import Plan
from fedskew.pruning.units import bundle_size
from fedskew.runs.folder import RunFolder

MICRO = "swin_micro_patch4_window4_32"
IMAGES = 160  # of the generated data set that all tests share
VOCABULARIES = (("sex", ("unknown", "female", "male")), ("age", ("unknown", "0", "50+")))

SECTIONS = {
    "data": (DataConfig, {"source": "generated", "generated_images": IMAGES, "open": 0.2}),
    "model": (ModelConfig, {"name": MICRO}),
    "train": (TrainConfig, {"batch_size": 16, "lr": 1e-3, "threads": 1, "device": "cpu"}),
    "prune": (PruneConfig, {"batch_size": 16}),
    "federation": (FederationConfig, {"rounds": 2}),
    "run": (RunConfig, {"threads": 1}),
}


def tiny_config(**overrides):
    """A run of seconds. `tiny_config(prune={"criterion": "none"}, run={"seed": 3})` changes single values."""
    unknown = set(overrides) - set(SECTIONS)
    assert not unknown, f"no such sections: {unknown}"
    sections = {name: kind(**(values | overrides.get(name, {}))) for name, (kind, values) in SECTIONS.items()}
    return Config(**sections, preset="tiny")


def architecture(
    image_size=64, stages=4, width=8, head_dim=4, window=4, depth=2, *, multimodal=True, removed="norm", classes=5
):
    """A dense architecture of a few thousand parameters; stage i has width·2^i channels, its MLPs four times that."""
    shapes = []
    for stage in range(stages):
        channels = width * 2**stage
        shapes.append(SwinStage(channels, head_dim, channels // head_dim, 4 * channels, window, depth))
    return with_metadata(SwinSpec(image_size, 4, tuple(shapes)), multimodal, removed, classes)


def vit(*, image_size=32, depth=3, class_token=True, multimodal=True, removed="norm", classes=5):
    """The same of a Vision Transformer: 12 channels, 3 heads of 5, MLPs of 20."""
    spec = ViTSpec(image_size, 8, 12, 5, 3, 24, depth, class_token)
    return with_metadata(spec, multimodal, removed, classes)


def with_metadata(spec, multimodal=True, removed="norm", classes=5):
    """A dense architecture around an encoder."""
    vocabularies = VOCABULARIES if multimodal else ()
    return Architecture(
        name="test",
        spec=spec,
        kept=everything(spec),
        classes=tuple(f"class-{i}" for i in range(classes)),
        vocabularies=vocabularies,
        weights=(0.9, *(0.03 + 0.04 * i for i in range(len(vocabularies)))) if vocabularies else (1.0,),
        removed=removed,
    )


def left(arch, stage, block, *, heads=None, hidden=None):
    """The architecture with other heads or another hidden width in one block."""
    given = {ATTENTION: heads, MLP: hidden}
    return arch.with_left({SublayerKey(stage, block, kind): kept for kind, kept in given.items() if kept is not None})


def heads_of(arch, stage, block):
    """The heads that a block has left."""
    return arch.left[SublayerKey(stage, block, ATTENTION)]


def hidden_of(arch, stage, block):
    """The hidden width that a block has left."""
    return arch.left[SublayerKey(stage, block, MLP)]


def block_of(model, stage, block):
    """A block of a model."""
    encoder = model.encoder
    return encoder.layers[stage].blocks[block] if hasattr(encoder, "layers") else encoder.blocks[block]


def plan_of(arch, remove, group="ratio", scores=None):
    """A plan in units of a reading of `prune.mlp-group`."""
    return Plan(remove, scores or {}, {key: bundle_size(group, arch.groups[key]) for key in remove})


def lively_model(arch: Architecture, seed: int = 0, *, drop_path: float = 0.0) -> MultimodalModel:
    """A model whose every tensor matters: fresh ones have zero biases, unit norms and tiny bias tables."""
    torch.manual_seed(seed)
    model = build(arch, drop_path=drop_path).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif any(part in name for part in ("bias", "pos_embed", "cls_token")):
                parameter.copy_(0.5 * torch.randn_like(parameter))
            else:
                nn.init.normal_(parameter, std=1.2 / max(1, parameter[0].numel()) ** 0.5)
    return model


def inputs(arch: Architecture, count: int = 2, seed: int = 1):
    """Images [B, 3, S, S] and metadata [B, V]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, arch.image_size, arch.image_size, generator=generator)
    columns = [torch.randint(0, len(values), (count,), generator=generator) for _, values in arch.vocabularies]
    return images, torch.stack(columns, 1) if columns else torch.zeros(count, 0, dtype=torch.long)


def run_here(config: Config, nodes: int = 3, *, grid: Grid | None = None) -> RunFolder:
    """A whole run in this process; `grid` replaces the in-process grid of `nodes` nodes."""
    return FederatedRun(grid or LocalGrid(make_client_app(), nodes), config).run()
