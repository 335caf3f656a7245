"""Settings that are each valid, and together contradict each other or are without effect.

They are looked at when a run is to start, not when its configuration is read: run folders of earlier versions can
still be compared and evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedskew.config.schema import Config, ConfigError, DataConfig, PruneConfig
from fedskew.pruning.schedule import steps_until

NEVER_NEGATIVE = ("l1-norm", "random")  # criteria whose scores are never <= 0


def check_combination(config: Config) -> None:
    """Refuse settings with which a run would not do what it says.

    Raises:
        ConfigError: a pruning rule that removes nothing with its criterion, or a schedule that ends before it begins.
    """
    prune = config.prune
    check_rule(prune)
    if prune.method != "none" and 0 < prune.last_round < prune.first_round:
        raise ConfigError(
            f"prune.first-round is {prune.first_round} and prune.last-round {prune.last_round}: no round is left for a "
            "pruning step. Set prune.last-round=0 (no limit) or later, or prune.method=none"
        )


def check_rule(prune: PruneConfig) -> None:
    """Refuse the sign rule for scores without a sign.

    Raises:
        ConfigError: nothing would ever be removed.
    """
    if prune.method in NEVER_NEGATIVE and prune.rule == "sign":
        raise ConfigError(
            f"prune.method={prune.method} with prune.rule=sign removes nothing: the rule removes scores <= 0, and this "
            "criterion's are never that. Set prune.rule=match (as many units as the sign of the skewness would "
            "remove) or prune.rule=share (prune.share of them)"
        )


def idle_settings(config: Config) -> Iterator[str]:
    """One line for each setting that was changed and has no effect in this run.

    What a preset or a person set to its default cannot be told from what nobody set: it is passed over.
    """
    data, prune, rounds = config.data, config.prune, config.federation.rounds
    if data.clients == "partition" and data.partition != "dirichlet" and data.alpha != type(data).alpha:
        yield f"data.alpha={data.alpha:g} has no effect: data.partition is {data.partition}, not dirichlet"
    if prune.method == "none":
        return
    if prune.rule != "share" and prune.share != type(prune).share:
        yield f"prune.share={prune.share:g} has no effect: prune.rule is {prune.rule}, not share"
    if not steps_until(prune, rounds):
        yield f"nothing will be pruned: prune.first-round is {prune.first_round}, federation.rounds {rounds}"
    elif prune.last_round > rounds:
        yield f"prune.last-round={prune.last_round} has no effect: federation.rounds is {rounds}"


def check_data_given(data: DataConfig) -> None:
    """Refuse a run without a data set before anything is fetched or started for it.

    Raises:
        ConfigError: no data set is named.
    """
    if data.source == "folder" and not data.dir:
        raise ConfigError(
            'no data set given: give --data-dir DIR (data.dir in a file, data-dir="/absolute/path" with flwr run), or '
            "set data.source=generated"
        )
