"""How a model is trained, on a node and on the server: the section `train`."""

from __future__ import annotations

from dataclasses import dataclass

from fedskew.config.option import Section, option


@dataclass(frozen=True)
class TrainConfig(Section):
    """Local training on a node, and the warm start on the server."""

    local_epochs: int = option(1, "passes over a node's training images in one round", low=1, high=1000)
    batch_size: int = option(64, "images a step", low=1, high=4096)
    lr: float = option(3e-4, "peak learning rate of AdamW", low=0.0, high=1.0)
    lr_floor: float = option(0.02, "share of the peak that the cosine ends at", low=0.0, high=1.0)
    warmup: float = option(0.05, "share of all rounds spent warming up", low=0.0, high=0.9)
    round_warmup: int = option(
        0, "steps at the start of every round in which the learning rate climbs: a fresh AdamW's first steps are wild",
        low=0, high=100_000,
    )  # fmt: skip
    warm_start_epochs: int = option(
        0, "epochs on the server's open data before round 1, whatever the method; held-back images are left out",
        low=0, high=1000,
    )  # fmt: skip
    warm_start_lr: float = option(0.0, "peak learning rate of the warm start; 0: train.lr", low=0.0, high=1.0)
    moments: str = option(
        "fresh",
        "AdamW's moments in a round: `fresh`, or `averaged` over nodes and cut with the model (3 times the bytes)",
        choices=("fresh", "averaged"),
    )
    weight_decay: float = option(0.05, "AdamW weight decay (not on biases, norms and bias tables)", low=0.0, high=1.0)
    clip_norm: float = option(1.0, "gradient norm limit; 0: none", low=0.0)
    proximal: float = option(
        0.0, "FedProx: pull towards the global model with half this times the squared distance; 0: off", low=0.0
    )
    class_weights: str = option("none", "loss weights from class counts", choices=("none", "sqrt", "inverse"))
    logit_adjustment: float = option(
        0.0, "add this times the log of the class shares to the logits in training; 1: a balanced classifier",
        low=0.0, high=4.0,
    )  # fmt: skip
    sampling: str = option(
        "natural",
        "how an epoch draws images: `natural` (each once), or by class so that rare ones come more often",
        choices=("natural", "sqrt", "balanced"),
    )
    class_counts: str = option(
        "local",
        "counts behind weights and adjustment: the node's own, or `global` ones of the nodes whose policy tells them",
        choices=("local", "global"),
    )
    label_smoothing: float = option(0.0, "of the cross entropy", low=0.0, high=0.9)
    flips: bool = option(True, "random mirror images")
    quarter_turns: bool = option(True, "random turns by 90 degrees: a lesion has no upright")
    colour: float = option(0.1, "strength of brightness, contrast and saturation changes; 0: none", low=0.0, high=0.99)
    crop: bool = option(True, "random crops out of a slightly larger picture")
    zoom: float = option(
        0.0, "turn by any angle and scale by up to e^±zoom, beyond turns and crops; 0: off", low=0.0, high=1.0
    )
    rand_augment: str = option("", "timm's RandAugment, as rand-m5-n2-mstd0.5; empty: off")
    mixup: float = option(0.0, "alpha of timm's mixup; 0: off", low=0.0, high=10.0)
    cutmix: float = option(0.0, "alpha of timm's cutmix, half of the batches if mixup is on too; 0: off",
                           low=0.0, high=10.0)  # fmt: skip
    distil_epochs: int = option(
        0, "passes over the open data in which, after a round, a dense model teaches the global one; 0: off",
        low=0, high=1000,
    )  # fmt: skip
    distil_rounds: int = option(0, "how many of the last rounds end so; 0: none", low=0)
    distil_teacher: str = option(
        "",
        "run folder or model file of the teacher; empty: the run's own best global model before it was pruned",
    )
    distil_share: float = option(0.5, "weight of the teacher's answers in the loss", low=0.0, high=1.0)
    distil_temperature: float = option(2.0, "by which the logits of both are divided", low=0.1, high=100.0)
    precision: str = option(
        "auto",
        "`auto`: bfloat16 autocast on CUDA, else float32; `fast`: bfloat16 where the machine has instructions for it",
        choices=("auto", "fast", "float32", "bfloat16"),
    )
    device: str = option("auto", "`auto`: CUDA if there is one", choices=("auto", "cpu", "cuda"))
    threads: int = option(
        0, "CPU threads of one training node; 0: torch's choice. Part of repeatability", low=0, high=1024
    )

    _name = "train"
