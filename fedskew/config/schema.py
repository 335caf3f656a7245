"""Every value that a person can set, with its default, its bounds and one line that says why it is there.

The YAML files in `conf/` and the `set="section.key=value"` overrides use the field names with `-` for `_`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedskew.config.inputs import DataConfig, MetadataColumn, ModelConfig
from fedskew.config.option import ConfigError, Section, check_value, option
from fedskew.config.training import TrainConfig

__all__ = [
    "Config", "ConfigError", "DataConfig", "FederationConfig", "MetadataColumn", "ModelConfig", "PruneConfig",
    "RunConfig", "Section", "TrainConfig", "check_value", "option",
]  # fmt: skip

SINKS = ("tensorboard", "mlflow")


@dataclass(frozen=True)
class PruneConfig(Section):
    """What is scored, what is removed, and when (docs/method.md)."""

    criterion: str = option(
        "skewness",
        "the criterion, or a plugin's (docs/plugins.md); `none` is plain FedAvg",
        choices=("none", "skewness", "skewness-reversed", "kurtosis", "activation-norm", "l1-norm", "l2-norm", "taylor",
                 "automatic", "random", "lesion-attention"),
        extensible=True,
    )  # fmt: skip
    rule: str = option(
        "sign",
        "`sign`: remove scores <= 0; `match`: as many as skewness' sign rule would; `share`: a fixed share; `budget`: "
        "alike from every sublayer, so that the last step ends at prune.min-parameters or prune.min-macs",
        choices=("sign", "match", "share", "budget"),
    )
    boundary: float = option(
        2.0, "`automatic` keeps units whose weights' L1 norm is at most so many deviations from the sublayer's mean",
        low=0.01,
    )  # fmt: skip
    share: float = option(
        0.3, "share of a sublayer's units that the rule `share` removes in one step", low=0.0, high=1.0
    )
    reading: str = option(
        "pool",
        "how batch and windows collapse (Eq. 1): all norms, means at positions, mean skewness of windows, one window",
        choices=("mean", "pool", "first", "per-window"),
    )
    mlp_activation: str = option(
        "before-gelu", "which hidden activation is Z (Eq. 4)", choices=("before-gelu", "after-gelu")
    )
    mlp_group: str = option(
        "ratio", "channels in an MLP group: `ratio` (r, so d groups), `width` (d, so r groups) or a number"
    )
    removed: str = option(
        "norm", "an emptied sublayer computes x + LN(x) (`norm`, Eq. 11) or x (`skip`)", choices=("norm", "skip")
    )
    heads: bool = option(True, "prune attention heads")
    mlp: bool = option(True, "prune MLP groups")
    first_round: int = option(1, "first round with a pruning step; 0: the initial model, after its warm start", low=0)
    last_round: int = option(0, "last round with a pruning step; 0: no limit", low=0)
    interval: int = option(1, "a pruning step every so many rounds", low=1)
    steps_per_stage: int = option(
        1,
        "pruning steps after which the next stage unlocks (Algorithm 1); 0: all are from the first on",
        low=0,
    )
    max_stage: int = option(3, "last stage that unlocks, counted from 0", low=0, high=15)
    calibrate: bool = option(True, "score earlier stages again, not only the newest one")
    freeze: bool = option(False, "a stage that the steps have passed is neither trained nor uploaded any more")
    thaw: bool = option(False, "train and prune frozen stages again once the last stage's fine-tuning is over")
    max_share: float = option(1.0, "at most this share of a sublayer's units goes in one step", low=0.0, high=1.0)
    min_heads: int = option(1, "heads that every attention keeps; 0 allows removing it", low=0)
    min_width: int = option(0, "hidden channels that every MLP keeps; 0 allows removing it", low=0)
    align: int = option(1, "keep hidden widths at multiples of this (8 suits real hardware)", low=1, high=1024)
    min_parameters: float = option(0.0, "never go below this share of the dense parameters", low=0.0, high=1.0)
    min_macs: float = option(0.0, "never go below this share of the dense MACs", low=0.0, high=1.0)
    rollback: float = option(
        -1.0,
        "give units back while balanced accuracy on open data falls by more than this; < 0: off",
        low=-1.0,
        high=1.0,
    )
    batch_size: int = option(256, "open images to score by (paper: one batch)", low=1, high=65_536)
    views: int = option(
        1, "turned and mirrored views of each scoring image that are scored together with it", choices=(1, 2, 4, 8)
    )
    order: str = option(
        "step",
        "`step`: score all, then cut; `block`: score each sublayer after the cut before it (Algorithm 1)",
        choices=("step", "block"),
    )

    _name = "prune"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mlp_group not in ("ratio", "width") and not (self.mlp_group.isdecimal() and int(self.mlp_group) > 0):
            raise ConfigError(f"prune.mlp-group is {self.mlp_group!r}, expected ratio, width or a positive number")


@dataclass(frozen=True)
class FederationConfig(Section):
    """Rounds, who takes part, and how long the server waits."""

    method: str = option(
        "auto",
        "what nodes train and what becomes of the mean, or a plugin's; `auto`: `average` if nothing prunes",
        choices=("auto", "average", "skewness"),
        extensible=True,
    )
    rounds: int = option(20, "rounds of a run; one that is resumed may get more", low=1, high=100_000)
    fraction: float = option(1.0, "share of the connected nodes that trains in a round", low=0.0, high=1.0)
    only_node: str = option(
        "", "the only node that is asked, by its name (partition-2): what it reaches alone; empty: all take part"
    )
    min_nodes: int = option(1, "nodes that should be connected before a round starts", low=1)
    join_deadline: float = option(
        300.0, "seconds to wait for them; then the round goes on with those that are there", low=0.0
    )
    quorum: int = option(1, "good replies that a round needs; below it the global model stays as it was", low=1)
    round_deadline: float = option(3600.0, "seconds to wait for the replies of a phase", low=1.0)
    grace: float = option(
        0.0, "once the quorum has replied, wait this many seconds for the rest; 0: until the deadline", low=0.0
    )
    max_missed_rounds: int = option(
        3, "stop after so many rounds below quorum in a row, keeping everything; 0: never", low=0
    )
    evaluate_clients: bool = option(False, "a second phase in every round: nodes evaluate on their validation images")
    aggregation: str = option(
        "mean",
        "`mean` is FedAvg; the others are Flower's robust ones",
        choices=("mean", "median", "trimmed-mean", "krum"),
    )
    weighting: str = option(
        "examples", "weights of the mean: a node's `examples`, or `equal` ones", choices=("examples", "equal")
    )
    server_optimiser: str = option(
        "none",
        "what the server does with the mean update: take it, or Flower's `avgm` (momentum), `adam`, `yogi`",
        choices=("none", "avgm", "adam", "yogi"),
    )
    server_lr: float = option(1.0, "learning rate of the server optimiser", low=0.0, high=100.0)
    server_momentum: float = option(0.9, "momentum of `avgm`, first beta of `adam` and `yogi`", low=0.0, high=0.999)
    server_tau: float = option(
        1e-3, "what `adam` and `yogi` add to the root of the second moment: larger is less adaptive", low=1e-12
    )
    trim: float = option(0.2, "share that `trimmed-mean` cuts off at both ends", low=0.0, high=0.49)
    malicious_nodes: int = option(0, "bad nodes that `krum` is to withstand", low=0)
    norm_bound: float = option(
        0.0,
        "set aside an update larger than this times the median of the other nodes'; 0: off (docs/security.md)",
        low=0.0,
    )
    max_weight_ratio: float = option(
        5.0, "no node weighs more in the mean than this times the median of the round's examples; 0: no limit", low=0.0
    )
    rollback: float = option(
        2.0,
        "undo a round whose loss on held-back open data is more than this above the best so far (docs/security.md)",
        low=0.0,
    )
    require_signatures: bool = option(
        False, "set aside answers that the node has not signed with the key it was registered with (docs/security.md)"
    )
    upload: str = option(
        "trained",
        "what a node sends back: `all` tensors, or `trained` ones (not the frozen)",
        choices=("all", "trained"),
    )

    _name = "federation"


@dataclass(frozen=True)
class RunConfig(Section):
    """Seed, place and bookkeeping of a run."""

    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=2**31 - 1)
    output_dir: str = option("", "run folders are made in here; empty: $FEDSKEW_HOME/runs")
    name: str = option("", "name of the run folder, which must be free; empty: date, preset, method and seed")
    best_metric: str = option(
        "balanced_accuracy",
        "names the best round, on nodes' validation images (federation.evaluate-clients) or held-back open images",
        choices=("accuracy", "balanced_accuracy", "f1_macro", "auroc_macro"),
    )
    threads: int = option(0, "CPU threads of the server; 0: torch's choice", low=0, high=1024)
    eval_batch_size: int = option(256, "images in an evaluation batch", low=1, high=65_536)
    evaluate_every: int = option(
        1, "the model is evaluated after every so many rounds, and always after the last", low=1, high=100_000
    )
    keep_checkpoints: int = option(2, "finished rounds whose checkpoints are kept", low=2, high=100_000)
    report: float = option(
        0.05, "share of a run's time that rewriting report.html may take; at the end it always is; 0: no report",
        low=0.0, high=1.0,
    )  # fmt: skip
    sinks: str = option("", "who else is told of every round: `tensorboard`, `mlflow`, or both by a comma")

    _name = "run"

    @property
    def sink_names(self) -> tuple[str, ...]:
        """The names in `sinks`, each once."""
        return tuple(dict.fromkeys(name for name in (part.strip() for part in self.sinks.split(",")) if name))

    def __post_init__(self) -> None:
        super().__post_init__()
        if strange := [name for name in self.sink_names if name not in SINKS]:
            raise ConfigError(f"run.sinks names {strange[0]!r}, expected some of {', '.join(SINKS)}, by commas")
        if self.name in (".", "..") or set(self.name) & set("/\\\0\n"):
            raise ConfigError(
                f"run.name is {self.name!r}, expected the name of a folder without its path; that is run.output-dir"
            )


@dataclass(frozen=True)
class Config:
    """All sections of one run. Immutable: the same value describes the run everywhere."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    preset: str = "defaults"
