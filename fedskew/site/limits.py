"""What a coordinator may set at a site: a closed list of settings, and how much of each.

Everything else in a task's configuration, every path above all, is replaced by its default before anything reads it:
where data, table and decoded images lie is the site's own business (`data-dir`, `manifest` and `cache-dir` of its node
configuration).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from fedskew.config.schema import Config

FROM_TASK: Mapping[str, tuple[str, ...]] = {
    "data": ("fit", "validation", "split_by", "split_seed"),
    "model": ("drop_path",),  # the rest of the model is the task's architecture
    "train": (
        "local_epochs", "batch_size", "lr", "lr_floor", "warmup", "round_warmup", "moments", "weight_decay",
        "clip_norm", "proximal", "class_weights", "logit_adjustment", "sampling", "class_counts", "label_smoothing",
        "flips", "quarter_turns", "colour", "crop", "zoom", "rand_augment", "mixup", "cutmix", "precision", "device",
        "threads",
    ),
    "run": ("seed", "eval_batch_size"),
}  # fmt: skip
FOR_PARTITIONS = ("clients", "test", "open", "partition", "alpha")  # of `data`, where sites share one data set
SITE_KEYS = (  # of a node configuration: simulated nodes have none of them
    "data-dir", "manifest", "cache-dir", "policy", "audit-log", "ledger",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """The most that a task may ask of a site; a policy's `limits` replaces single ones.

    Attributes:
        local_epochs: passes over the training images in one task (`train.local-epochs`).
        batch_size, eval_batch_size: images at a time (`train.batch-size`, `run.eval-batch-size`).
        threads: CPU threads (`train.threads`); 0: as many as the machine has CPUs.
        image_size: pixels a side of the task's model.
        parameters: weights of the task's model.
        macs: multiply-accumulates of the task's model for one image: few weights can cost as much as one likes, where
            patches are of one pixel. Swin-T needs 4.5e9, Swin-L at 384 pixels 1.04e11.
    """

    local_epochs: int = 50
    batch_size: int = 1024
    eval_batch_size: int = 4096
    threads: int = 0
    image_size: int = 512
    parameters: int = 200_000_000
    macs: int = 200_000_000_000


LIMIT_KEYS = tuple(field.name.replace("_", "-") for field in fields(Limits))


def is_simulated(node_config: Mapping[str, Any]) -> bool:
    """Whether a node is one of a simulation on the coordinator's machine, and shares its data and its paths."""
    return "partition-id" in node_config and not any(node_config.get(key) for key in SITE_KEYS)


def site_settings(config: Config, *, partitioned: bool = False) -> Config:
    """The settings that a site takes from a task; all others have their defaults.

    Args:
        partitioned: sites share one data set, so the coordinator says how it is divided.
    """
    taken = dict(FROM_TASK)
    if partitioned:
        taken["data"] = (*taken["data"], *FOR_PARTITIONS)
    default = Config()
    sections = {
        section: replace(getattr(default, section), **{name: getattr(getattr(config, section), name) for name in names})
        for section, names in taken.items()
    }
    return replace(default, **sections)


def exceeded(config: Config, image_size: int, parameters: int, macs: int, limits: Limits) -> str:
    """Which limit a task exceeds: the setting, the bound and the remedy; empty if it keeps within all of them.

    Args:
        image_size: pixels a side, of the task's architecture.
        parameters, macs: of the task's architecture.
    """
    asked = {
        "local-epochs": ("train.local-epochs", config.train.local_epochs),
        "batch-size": ("train.batch-size", config.train.batch_size),
        "eval-batch-size": ("run.eval-batch-size", config.run.eval_batch_size),
        "threads": ("train.threads", config.train.threads),
        "image-size": ("the model's image size", image_size),
        "parameters": ("the model's number of parameters", parameters),
        "macs": ("the model's number of multiply-accumulates for one image", macs),
    }
    for key, (name, value) in asked.items():
        bound = getattr(limits, key.replace("-", "_")) or (os.cpu_count() or 1)
        if value > bound:
            return (
                f"{name} is {value}, and this site's limit is {bound}; the coordinator has to lower it, or the site to "
                f"raise the limit in its policy, as limits: {{{key}: {value}}}"
            )
    return ""
