"""What a person may have meant by a setting that there is not: a typo, another section, or another project's word."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fedskew.text import nearest

OPTION_NODES = "the option --nodes"

# What other projects call it → what it is called here. Names are compared with `-` for `_` and for a space.
SYNONYMS: Mapping[str, str] = {
    name: key
    for key, names in {
        "train.lr": ("learning-rate", "learningrate", "lrate", "base-lr", "initial-lr"),
        "train.local-epochs": ("epochs", "epoch", "num-epochs", "n-epochs", "client-epochs"),
        "train.batch-size": ("batchsize", "bs", "train-batch-size"),
        "train.weight-decay": ("wd", "l2"),
        "train.proximal": ("mu", "proximal-mu", "fedprox", "prox"),
        "train.device": ("gpu", "cuda", "accelerator"),
        "train.precision": ("amp", "mixed-precision", "fp16", "bf16", "dtype"),
        "train.clip-norm": ("grad-clip", "clip-grad", "gradient-clipping", "max-grad-norm"),
        "train.threads": ("num-threads", "num-workers", "workers", "cpus"),
        "train.warm-start-epochs": ("pretrain-epochs", "warmup-epochs"),
        "federation.rounds": ("num-rounds", "n-rounds", "num-server-rounds", "server-rounds", "communication-rounds"),
        "federation.fraction": ("fraction-fit", "fraction-train", "client-fraction", "participation"),
        "federation.min-nodes": ("min-clients", "min-available-clients", "min-fit-clients", "min-train-nodes"),
        "federation.aggregation": ("strategy", "aggregator"),
        "federation.server-optimiser": ("server-optimizer", "optimizer", "optimiser", "fedadam", "fedyogi", "fedavgm"),
        "federation.round-deadline": ("timeout", "round-timeout"),
        "prune.share": ("sparsity", "pruning-ratio", "prune-ratio", "pruning-rate", "amount"),
        "prune.criterion": ("importance", "pruning-method", "pruning"),
        "prune.rollback": ("tolerance", "guard"),
        "prune.rule": ("threshold",),
        "model.name": ("architecture", "arch", "backbone", "model-name", "model"),
        "model.image-size": ("img-size", "input-size", "resolution", "image-resolution"),
        "model.pretrained": ("weights", "checkpoint", "pretrained-weights"),
        "model.classes": ("labels", "num-classes", "class-names"),
        "model.drop-path": ("dropout", "drop-rate", "drop-path-rate"),
        "data.dir": ("dataset", "data-dir", "data-path", "data-root", "root"),
        "data.test": ("test-size", "test-split", "test-fraction"),
        "data.validation": ("val", "val-size", "val-split", "validation-split"),
        "data.partition": ("non-iid", "iid", "partitioner", "partitioning"),
        "data.alpha": ("dirichlet-alpha", "concentration"),
        "run.seed": ("random-seed", "random-state", "manual-seed"),
        "run.output-dir": ("output", "out-dir", "save-dir", "log-dir", "results-dir"),
        OPTION_NODES: ("nodes", "num-nodes", "clients", "num-clients", "n-clients", "num-supernodes", "num-partitions"),
    }.items()
    for name in names
}


def suggestion(name: str, section: str, keys: Mapping[str, Collection[str]]) -> str:
    """`; did you mean train.lr?`, or nothing if nothing is near.

    Args:
        name: the unknown key, without its section.
        section: that it was given in; empty if none was.
        keys: names of the keys by section.
    """
    name = name.lower().replace("_", "-").replace(" ", "-")
    own = _in(section, nearest(name, keys.get(section, ()), 0.8))
    known = [SYNONYMS[name]] if name in SYNONYMS else []
    elsewhere = [f"{other}.{name}" for other, names in keys.items() if name in names]
    similar = _in(section, nearest(name, keys.get(section, ()), 0.4))
    anywhere = "" if section else nearest(name, [key for names in keys.values() for key in names], 0.6)
    similar += [f"{other}.{anywhere}" for other, names in keys.items() if anywhere in names]
    meant = next(iter([*own, *known, *elsewhere, *similar]), "")
    return f"; did you mean {meant}?" if meant else ""


def section_suggestion(section: str, content: object, keys: Mapping[str, Collection[str]]) -> str:
    """The same for an unknown section: a key that was given without its section, or a section misspelt."""
    if near := nearest(section, keys, 0.6):
        return f"; did you mean {near}?"
    inside = [str(key) for key in content] if isinstance(content, Mapping) else []
    for name in (*inside, section):
        if found := suggestion(name, "", keys):
            return found
    return f"; sections: {', '.join(keys)}"


def _in(section: str, key: str) -> list[str]:
    return [f"{section}.{key}"] if key else []
