"""Every value that a person can set, with its default, its bounds and one line that says why it is there.

The YAML files in `conf/` and the `set="section.key=value"` overrides use the field names with `-` for `_`.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from typing import Any, get_args

from fedskew.data.choices import Fit, PartitionKind, Unit
from fedskew.data.samples import HAM10000_CLASSES, METADATA_FIELDS, UNKNOWN, DataError, bin_vocabulary, lower_ends
from fedskew.errors import FedskewError


class ConfigError(FedskewError, ValueError):
    """A configuration that cannot be used; the message names the key, the file and the remedy."""


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple[str | int, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    extensible: bool = False,
) -> Any:
    """A dataclass field with its documentation and bounds (inclusive) in the metadata.

    Args:
        extensible: plugins can add choices (`registry`): a name is looked up when a configuration is read or used.
    """
    about = {"doc": doc, "choices": choices, "low": low, "high": high, "extensible": extensible}
    return field(default=default, metadata=about)


def check_value(value: Any, spec: Field[Any], key: str) -> None:
    """Raise `ConfigError` if a value lies outside the choices or bounds of its field."""
    choices, low, high = (spec.metadata.get(name) for name in ("choices", "low", "high"))
    if choices and value not in choices and not spec.metadata.get("extensible"):
        raise ConfigError(f"{key} is {value!r}, expected one of {', '.join(map(str, choices))}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if low is not None and not value >= low:  # `not >=` also refuses NaN
            raise ConfigError(f"{key} is {value}, expected at least {low}")
        if high is not None and not value <= high:
            raise ConfigError(f"{key} is {value}, expected at most {high}")
        if value == math.inf:
            raise ConfigError(f"{key} is {value}, expected a finite number")


@dataclass(frozen=True)
class Section:
    """Base of the sections: bounds are checked however the section was built."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            check_value(getattr(self, spec.name), spec, f"{self._name}.{spec.name.replace('_', '-')}")

    _name = ""


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images, how they are split, and how they are kept on disk."""

    source: str = option(
        "folder", "`folder` reads data.dir, `generated` makes HAM10000-shaped images", choices=("folder", "generated")
    )
    dir: str = option("", "folder or archive of the data set; absolute. A node's own `data-dir` comes before it")
    manifest: str = option(
        "",
        "YAML file that maps the columns and labels of an own CSV (docs/data.md); empty: detected. A site has its own",
    )
    generated_images: int = option(1600, "images to generate when source is `generated`", low=50, high=200_000)
    clients: str = option(
        "partition",
        "`partition`: nodes share this data set; `own`: each has its own, the server splits its own in test and open",
        choices=("partition", "own"),
    )
    fit: Fit = option("squash", "how a 4:3 picture becomes square", choices=get_args(Fit))
    cache_dir: str = option("", "where decoded images are kept; empty: $FEDSKEW_HOME/cache. A site has its own")
    test: float = option(0.2, "share of the data that the server keeps for testing", low=0.01, high=0.98)
    open: float = option(0.1, "share that is open data, for warm start, scoring and judging", low=0.01, high=0.98)
    held_back: float = option(
        0.25,
        "share of the open data that nothing is trained or scored on: rollback and best/ judge by it",
        low=0.0,
        high=0.9,
    )
    validation: float = option(0.2, "share of each node's own data that is held out for validation", low=0.0, high=0.9)
    split_by: Unit = option(
        "lesion", "`image` leaks lesions into the test set: for comparison only", choices=get_args(Unit)
    )
    split_seed: int = option(0, "seed of the split, apart from run.seed so that seeds share a test set", low=0)
    partition: PartitionKind = option(
        "iid", "how simulated nodes share the clients' part", choices=get_args(PartitionKind)
    )
    alpha: float = option(0.5, "Dirichlet concentration; smaller is more skewed", low=0.01, high=1000.0)

    _name = "data"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clients == "partition" and self.test + self.open > 0.99:
            raise ConfigError(f"data.test + data.open is {self.test + self.open:.2f}: nothing is left for the clients")


@dataclass(frozen=True)
class MetadataColumn:
    """A piece of metadata that the model sees beside the image: an entry of `model.metadata`.

    HAM10000's `sex`, `age` and `localization` need neither values nor bins; every other needs one of the two.

    Attributes:
        name: as nodes' manifests call it.
        weight: of its embedding in the fusion.
        values: what it can be; anything else counts as unknown. Capitals do not matter.
        bins: of a number: the lower end of each bin, ascending; the last is open. What is smaller counts as unknown.
    """

    name: str
    weight: float = 0.05
    values: tuple[str, ...] = ()
    bins: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        where = f"model.metadata: {self.name!r}"
        if not 0 <= self.weight <= 1:  # also refuses NaN
            raise ConfigError(f"{where}: weight is {self.weight}, expected 0 to 1")
        known = self.name in METADATA_FIELDS
        if bool(self.values) + bool(self.bins) != 1 and not (known and not self.values and not self.bins):
            raise ConfigError(f"{where} needs either values or bins, e.g. values: [low, high] or bins: [0, 2, 4]")
        if self.name == "age" and self.values:
            raise ConfigError(f"{where} is a number of years: give bins, as bins: [0, 30, 60]")
        if self.bins:
            self._check_bins(where)
        folded = [value.casefold() for value in self.values]
        if len(set(folded)) != len(folded) or UNKNOWN in folded or not all(folded):
            raise ConfigError(f"{where}: values must be different texts, and {UNKNOWN!r} is always one of its own")
        if self.values and lower_ends((UNKNOWN, *self.values)) is not None:
            raise ConfigError(f"{where}: values {list(self.values)} read as bins of a number; rename the last one")

    def _check_bins(self, where: str) -> None:
        try:
            bin_vocabulary(self.bins)
        except DataError as error:
            raise ConfigError(f"{where}: {error}") from None


@dataclass(frozen=True)
class ModelConfig(Section):
    """The dense multimodal Swin that a run starts from (paper, section 4)."""

    name: str = option(
        "swin_tiny_patch4_window7_224", "a timm Swin v1, ViT or DeiT name, or one of fedskew's small ones"
    )
    image_size: int = option(0, "pixels a side; 0: the size of the named model", low=0, high=1024)
    image_weight: float = option(0.85, "weight of the pooled image feature (paper: 85 %)", low=0.0, high=1.0)
    sex_weight: float = option(0.05, "weight of the sex embedding", low=0.0, high=1.0)
    age_weight: float = option(0.05, "weight of the age embedding", low=0.0, high=1.0)
    localization_weight: float = option(0.05, "weight of the lesion site embedding", low=0.0, high=1.0)
    metadata: tuple[MetadataColumn, ...] = option(
        (),
        "own columns, {name: {weight: 0.05, values: [a, b]}} or {name: {bins: [0, 2, 5]}}; empty: HAM10000's three, "
        "with the weights above; list sex, age and localization too if they are to stay",
    )
    image_only: bool = option(False, "leave the metadata out")
    classes: tuple[str, ...] = option(HAM10000_CLASSES, "class names in the order of the classifier's outputs")
    pretrained: str = option("", "a timm tag, the path of a .safetensors/.pth file, or empty for random weights")
    pretrained_sha256: str = option("", "expected hash of the local file; required for .pth")
    drop_path: float = option(0.1, "stochastic depth in training", low=0.0, high=0.9)
    stem: str = option(
        "patch",
        "`patch`: one convolution a patch, as in timm; `conv`: two overlapping 3 x 3 convolutions (patch size 4 only)",
        choices=("patch", "conv"),
    )
    embedding_std: float = option(
        1.0, "deviation of the metadata embeddings at the start; timm's 0.02 leaves them without effect", low=0.0
    )

    _name = "model"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.classes)) != len(self.classes) or not 2 <= len(self.classes) <= 1000:
            raise ConfigError("model.classes needs 2 to 1000 different names")
        names = [column.name for column in self.metadata]
        if len(set(names)) != len(names):
            raise ConfigError(f"model.metadata names a column twice: {', '.join(names)}")
        for name in METADATA_FIELDS if self.metadata else ():
            key = f"{name}_weight"
            if getattr(self, key) != type(self).__dataclass_fields__[key].default:
                raise ConfigError(
                    f"model.metadata is given, so model.{name}-weight has no effect: set the weight there, as "
                    f"{name}: {{weight: {getattr(self, key):g}}}"
                )


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
    precision: str = option(
        "auto", "`auto`: bfloat16 autocast on CUDA, float32 elsewhere", choices=("auto", "float32", "bfloat16")
    )
    device: str = option("auto", "`auto`: CUDA if there is one", choices=("auto", "cpu", "cuda"))
    threads: int = option(
        0, "CPU threads of one training node; 0: torch's choice. Part of repeatability", low=0, high=1024
    )

    _name = "train"


@dataclass(frozen=True)
class PruneConfig(Section):
    """What is scored, what is removed, and when (docs/method.md)."""

    criterion: str = option(
        "skewness",
        "the criterion, or a plugin's (docs/plugins.md); `none` is plain FedAvg",
        choices=("none", "skewness", "skewness-reversed", "random", "l1-norm"),
        extensible=True,
    )
    rule: str = option(
        "sign",
        "`sign`: remove scores <= 0; `match`: as many as skewness' sign rule would; `share`: a fixed share",
        choices=("sign", "match", "share"),
    )
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
    steps_per_stage: int = option(1, "pruning steps after which the next stage unlocks (Algorithm 1)", low=1)
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

    _name = "run"

    def __post_init__(self) -> None:
        super().__post_init__()
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
