"""What a site lets out, decided by the site alone. The file that says it is `policy_file`'s."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from fedskew.errors import FedskewError
from fedskew.site.limits import Limits

SHORT_HASH = 8  # hexadecimal digits of a bundle's hash that Flower puts into the name of the installed app


class PolicyError(FedskewError, ValueError):
    """A policy file that cannot be used; names the file, the key and the remedy. It forbids everything."""


class PolicyRefusal(FedskewError, ValueError):
    """A task that the policy forbids. Its text goes to the coordinator, so it tells nothing of the data."""


@dataclass(frozen=True)
class Noise:
    """Parameters of the Gaussian mechanism, for one answer."""

    sensitivity: float
    epsilon: float
    delta: float

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on every value of an update, as Flower's LocalDpMod computes it."""
        return self.sensitivity * math.sqrt(2 * math.log(1.25 / self.delta)) / self.epsilon


@dataclass(frozen=True)
class Budget:
    """The most that all noised updates of a site, over all runs, may cost together."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Policy:
    """A site's policy. None: no limit."""

    allowed_runs: frozenset[int] | None = None
    app_hashes: frozenset[str] | None = None
    min_examples: int = 1
    max_rounds: int | None = None
    max_rounds_total: int | None = None
    max_task_minutes: int | None = None  # of training or evaluation, from the moment that a task is admitted
    limits: Limits = field(default_factory=Limits)
    clipping_norm: float | None = None
    noise: Noise | None = None
    privacy_budget: Budget | None = None
    min_count: int = 1
    report_metrics: bool = True
    metrics: frozenset[str] | None = None  # those that are reported; None: all
    report_class_counts: bool = False
    report_notes: bool = False


def check_task(
    policy: Policy,
    run_id: int,
    *,
    answered: int = 0,
    answered_total: int = 0,
    examples: int | None = None,
    app_hash: str = "",
) -> None:
    """Raise unless the policy allows to answer this task.

    Args:
        answered: answers of this kind that the run has had. They are counted, not taken from the task: a
            coordinator could call every round the first.
        answered_total: answers of this kind that all runs have had.
        examples: images that the answer is made from; None before that is known.
        app_hash: SHA-256 of the running app bundle, or its first digits; empty if it is unknown.

    Raises:
        PolicyRefusal: with the key that forbids it.
    """
    if policy.allowed_runs is not None and run_id not in policy.allowed_runs:
        raise _forbidden(f"run {run_id} is not among its allowed-runs")
    if policy.app_hashes is not None and not _pinned(app_hash, policy.app_hashes):
        running = f"the running app ({app_hash}…)" if app_hash else "an app that does not run from a Flower bundle"
        raise _forbidden(f"{running} is not among its app-hashes")
    if policy.max_rounds is not None and answered >= policy.max_rounds:
        raise _forbidden(f"run {run_id} has had its max-rounds of {policy.max_rounds}; the site has to raise it")
    if policy.max_rounds_total is not None and answered_total >= policy.max_rounds_total:
        raise _forbidden(
            f"all runs together have had its max-rounds-total of {policy.max_rounds_total}; the site has to raise it"
        )
    if examples is not None and examples < policy.min_examples:
        raise _forbidden(f"the answer would be made from fewer images than its min-examples of {policy.min_examples}")


def took_too_long(policy: Policy) -> PolicyRefusal:
    """The refusal of a task whose time is over."""
    return _forbidden(
        f"the task took longer than its max-task-minutes of {policy.max_task_minutes}; the coordinator should ask for "
        "fewer epochs or a smaller model, or the site has to raise it"
    )


def installed_app_hash(module_file: str) -> str:
    """First digits of the hash of the bundle that a module was loaded from; empty if it came from elsewhere.

    Flower installs a bundle as `apps/<publisher>.<name>.<version>.<first 8 digits>`. The code that asks is part of the
    bundle: this notices a wrong app, it does not stop a hostile one. For that, the SuperNode must check the bundle.
    """
    for folder in Path(module_file).resolve().parents:
        match = re.fullmatch(rf"[^.]+\.[^.]+\..+\.([0-9a-f]{{{SHORT_HASH}}})", folder.name)
        if match and folder.parent.name == "apps":
            return match.group(1)
    return ""


def _forbidden(reason: str) -> PolicyRefusal:
    return PolicyRefusal(f"site policy forbids: {reason}")


def _pinned(app_hash: str, pins: frozenset[str]) -> bool:
    return len(app_hash) >= SHORT_HASH and any(pin.startswith(app_hash.lower()) for pin in pins)
