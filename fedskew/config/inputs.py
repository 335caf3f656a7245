"""What a model is given, and what it is: the sections `data` and `model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from fedskew.config.option import ConfigError, Section, option
from fedskew.data.choices import Fit, PartitionKind, Unit
from fedskew.data.samples import HAM10000_CLASSES, METADATA_FIELDS, UNKNOWN, DataError, bin_vocabulary, lower_ends


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
        "iid",
        "how simulated nodes share the clients' part; `pooled`: one node has it all, and the open images too",
        choices=get_args(PartitionKind),
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
    head: str = option(
        "new",
        "the classifier of pretrained weights: a `new` one, or `keep` it (its outputs are model.classes in that order)",
        choices=("new", "keep"),
    )
    from_run: str = option(
        "", "a run folder or model file: its model is the one that the run starts from, dense or not"
    )
    architecture_from: str = option(
        "", "a run folder or model file: start with random weights in the shape that its model has been pruned to"
    )
    width: float = option(
        1.0, "share of the named model's heads and channels in every stage: a smaller dense model of the same depth",
        low=0.01, high=4.0,
    )  # fmt: skip
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
        starts = [f"model.{key}" for key in ("pretrained", "from-run", "architecture-from")
                  if getattr(self, key.replace("-", "_"))]  # fmt: skip
        if len(starts) > 1:
            raise ConfigError(f"{' and '.join(starts)} are given, and a run starts from one thing: leave out the rest")
        if self.head == "keep" and not (self.pretrained and self.image_only):
            raise ConfigError(
                "model.head=keep keeps the classifier of model.pretrained, which knows images alone: give both "
                "model.pretrained and model.image-only=true, or leave model.head out"
            )
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
