"""fedskew in Python: use the model of a run, make a model smaller, run a federation. See docs/api.md for examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from fedskew import apps
from fedskew.config import Config, ConfigError, load_config
from fedskew.config.load import from_mapping, with_preset
from fedskew.config.schema import PruneConfig
from fedskew.data.samples import DataError
from fedskew.model.fusion import build
from fedskew.pruning.annotations import annotations_of
from fedskew.pruning.budget import check_budget, only_step
from fedskew.pruning.decide import Plan
from fedskew.pruning.slicing import slice_model
from fedskew.pruning.step import propose
from fedskew.runs.folder import RunFolder
from fedskew.runs.resume import DEFAULT_NODES
from fedskew.runs.start_checks import check_enough_nodes, check_rule
from fedskew.tools.load import load
from fedskew.tools.predict import Prediction
from fedskew.tools.torch_model import FedskewModel

__all__ = ["FedskewModel", "Prediction", "load", "prune", "simulate"]

# Settings of `prune.*` that say when a run prunes and what it does with labels: a single step has neither.
OF_RUNS = ("first-round", "last-round", "interval", "steps-per-stage", "max-stage", "calibrate", "freeze", "thaw",
           "rollback", "batch-size", "removed")  # fmt: skip


def prune(
    model: FedskewModel,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    metadata: Tensor | None = None,
    masks: Tensor | None = None,
    stages: Sequence[int] | None = None,
    seed: int = 0,
    **settings: Any,
) -> tuple[FedskewModel, Plan]:
    """A smaller model: one pruning step, as after a round of a run, without rollback.

    Args:
        model: is not changed.
        images: [B, 3, S, S] to score by, as `preprocess` makes them; a few hundred for a skewness that is no chance.
        labels: int64 [B], indices into `classes`; `criterion="taylor"` needs them.
        metadata: int64 [B, V] as the module takes them, for the loss of `taylor`; None: all unknown.
        masks: [B, S, S], 1 inside the lesion; `criterion="lesion-attention"` needs them.
        stages: numbers of the stages that are pruned; None: all.
        seed: of the criterion `random`.
        settings: keys of `prune.*` with `_` for `-`: `criterion`, `rule`, `share`, `reading`, `min_macs`, …
            (`fedskew options prune`). Those that say when a run prunes are refused.

    Returns:
        The smaller model, and what was removed by which scores. The plan numbers the units as in `model`.

    Raises:
        ConfigError: settings that do not exist, cannot be, or would remove nothing; a budget out of reach; a criterion
            that needs labels or masks, without them.
        DataError: images, labels, metadata or masks of another shape.
    """
    config, arch = _prune_config(settings), model.architecture
    size = arch.image_size
    if images.ndim != 4 or images.shape[1:] != (3, size, size) or not len(images):
        raise DataError(f"images must be [B, 3, {size}, {size}] with B >= 1, got {list(images.shape)}")
    chosen = tuple(range(arch.stages)) if stages is None else tuple(stages)
    if strange := [stage for stage in chosen if stage not in range(arch.stages)]:
        raise ConfigError(f"stages {strange} are none of this model's, 0 to {arch.stages - 1}")
    device = next(model.module.parameters()).device
    known = annotations_of(arch, len(images), labels=labels, metadata=metadata, masks=masks).to(device)
    check_budget(arch, config, only_step(chosen))
    plan = propose(model.module, images.to(device), config, chosen, seed, known=known).plan
    state, smaller = slice_model(model.module.state_dict(), arch, plan)
    return replace(model, module=build(smaller, state).to(device).eval()), plan


def simulate(config: Config | str | Mapping[str, Any], nodes: int | None = None) -> RunFolder:
    """Run a federation of simulated hospitals in this process, from its start to its end.

    Args:
        config: a `Config`; the name of a preset or path of a YAML file, as `--preset` takes it; or sections as in such
            a file, with the preset that they change: `{"preset": "demo", "federation": {"rounds": 2}}`.
        nodes: how many hospitals; None: 4.

    Returns:
        The run folder: `path`, `records()` (a mapping a round), and what docs/runs.md says. Without `run.output-dir`
        it lies in `$FEDSKEW_HOME/runs`.

    Raises:
        ConfigError, DataError, RunFolderError, TrainingError: what cannot be, and the remedy.
    """
    count = DEFAULT_NODES if nodes is None else nodes
    if count < 1:
        raise ConfigError(f"nodes is {nodes}, expected at least 1")
    configured = _configuration(config)
    check_enough_nodes(configured, count)
    return apps.simulate_config(configured, count)


def _configuration(config: Config | str | Mapping[str, Any]) -> Config:
    if isinstance(config, Config):
        return config
    return load_config(config) if isinstance(config, str) else with_preset(config, "the configuration")


def _prune_config(settings: Mapping[str, Any]) -> PruneConfig:
    given = {name.replace("_", "-"): value for name, value in settings.items()}
    known = {spec.name.replace("_", "-") for spec in fields(PruneConfig)}
    if idle := [name for name in given if name in OF_RUNS and name in known]:
        raise ConfigError(
            f"prune.{idle[0]} has no effect on a single step; it is of runs: fedskew.simulate, or `stages` for a choice"
        )
    config = from_mapping({"prune": given}, "fedskew.prune").prune
    if config.criterion == "none":
        raise ConfigError("prune.criterion is none, which removes nothing; leave it out for skewness")
    check_rule(config)
    return config
