"""Which rounds are evaluated, what a round is judged by, and which is the best. Never by the test set.

A round is judged by `run.best-metric` on images that neither trained the model nor test it: the nodes' validation
images if they evaluate (`federation.evaluate-clients`), else the open images held back by the server
(`data.held-back`). The source is named like the key of the record that holds its metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedskew.config.schema import Config

VALIDATION, HELD_BACK = "validation", "held_back"
SOURCES = {VALIDATION: "the nodes' validation images", HELD_BACK: "held-back open images"}


def is_evaluated(config: Config, number: int) -> bool:
    """Whether the model is evaluated after this round: every `run.evaluate-every`-th, the first and the last."""
    return number % config.run.evaluate_every == 0 or number >= config.federation.rounds


def source_of(config: Config) -> str:
    """Whose images judge the rounds of a run."""
    return VALIDATION if config.federation.evaluate_clients else HELD_BACK


def judge(config: Config, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the record says a round was judged by.

    Args:
        metrics: on the images of `source_of`; None if there are none of this round.

    Returns:
        `source`, `metric` and `value`; the value is None where the round cannot be judged.
    """
    metric = config.run.best_metric
    return {"source": source_of(config), "metric": metric, "value": (metrics or {}).get(metric)}


def improves(
    best: Mapping[str, Any] | None, judgement: Mapping[str, Any], number: int, *, kept_model: bool = False
) -> bool:
    """Whether a round is better than the best so far. Round 0 never is: no node has taken part; nor is one that kept
    the model of the round before (`kept_model`): it made none.

    A round that is judged by something else than the best so far (earlier versions let a resumed run change that)
    replaces it: the values cannot be compared, and what is asked for now counts.
    """
    if number == 0 or kept_model or judgement["value"] is None:
        return False
    if best is None or any(best[key] != judgement[key] for key in ("source", "metric")):
        return True
    return bool(judgement["value"] > best["value"])


def best_record(records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The line of the best round: the last that was the best so far. None if no round was judged."""
    best = None
    for record in records:
        if (record.get("selection") or {}).get("best"):
            best = record
    return best


def evaluated(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of rounds in which the model was evaluated."""
    return [record for record in records if record["accuracy"] is not None]


def in_words(judgement: Mapping[str, Any]) -> str:
    """A judgement for a person: `balanced accuracy on held-back open images`."""
    return f"{str(judgement['metric']).replace('_', ' ')} on {SOURCES[judgement['source']]}"
