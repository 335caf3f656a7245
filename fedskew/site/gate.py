"""Where a site's policy and audit log meet the client: before a task, before its answer leaves, after a refusal.

Without `policy` and `audit-log` in the node configuration a gate only sees to it that a task keeps within the default
limits and sets nothing but what a site takes from it; at simulated nodes it does nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord

import fedskew
from fedskew.config.schema import ConfigError
from fedskew.data.samples import DataError
from fedskew.data.units import class_counts
from fedskew.federation.messages import (
    ARRAYS,
    AUDIT_ENTRIES,
    AUDIT_SHA256,
    CLASS_COUNTS,
    CLASSES,
    EXAMPLES,
    METRICS,
    REPORT,
    SUPPRESSED,
    SUPPRESSED_CLASSES,
    MessageError,
    Task,
    payload_bytes,
)
from fedskew.federation.weights import arrays_sha256, from_record, to_record
from fedskew.learning.datasets import NodeData
from fedskew.learning.deadline import TimeIsUp, time_limit
from fedskew.learning.train import TrainingError
from fedskew.model.bounds import ArchitectureError
from fedskew.model.cost import macs, parameters
from fedskew.model.layout import Layout
from fedskew.site.accounting import AccountingError, check_accountant, noise_in_words, noise_multiplier
from fedskew.site.audit import (
    ANSWERED,
    FAILED,
    REFUSED,
    AuditError,
    append_entry,
    audit_path,
    site_name,
)
from fedskew.site.egress import split_metrics, suppress_counts
from fedskew.site.ledger import Books, cost_in_words, cost_of, is_spent, ledger_path, read_books, record_answer
from fedskew.site.limits import exceeded, is_simulated, site_settings
from fedskew.site.policy import Policy, PolicyError, PolicyRefusal, check_task, installed_app_hash, took_too_long
from fedskew.site.policy_file import load_policy
from fedskew.site.privacy import PrivacyError, protect

log = logging.getLogger("flwr.fedskew.site")

SITE_ERRORS = (PolicyError, PolicyRefusal, PrivacyError, AuditError, AccountingError)
_ABOUT_THE_TASK = (MessageError, ArchitectureError, ConfigError, TrainingError, PolicyRefusal, PrivacyError)


class Gate:
    """Policy and audit log around one task. Open it first: it refuses nothing and reads nothing until `admit`."""

    def __init__(self, message: Message, context: Context) -> None:
        self._message, self._run = message, context.run_id
        self._kind = message.metadata.message_type.partition(".")[0]
        self._policy_file = str(context.node_config.get("policy", ""))
        self.active = bool(self._policy_file or context.node_config.get("audit-log"))
        self._simulated = is_simulated(context.node_config)
        self._partitioned = "partition-id" in context.node_config
        self._node, self._log = site_name(context.node_config), audit_path(context.node_config)
        self._ledger = ledger_path(context.node_config)
        self._policy = Policy(report_notes=True)  # until a file is read: only the log is wanted
        self._about: dict[str, Any] = {}
        self._task: Task  # once it is admitted
        self._begun = False  # the task is worked on, and no answer is recorded yet

    def admit(self, task: Task) -> Task:
        """Check a task before any data is touched; returns it with those of its settings that a site takes.

        Raises:
            PolicyRefusal: the policy forbids the run, the app, or another round, or the task exceeds a limit.
            PolicyError, AuditError: policy or audit log cannot be read, so nothing is allowed.
            AccountingError: the policy adds noise, and what it is worth cannot be computed.
        """
        if self._simulated:
            return task
        if self.active:
            self._admit(task)
        arch = task.architecture
        size, weights, work = arch.image_size, parameters(arch), macs(arch).total
        if excess := exceeded(task.config, size, weights, work, self._policy.limits):
            raise PolicyRefusal(f"site policy forbids: {excess}")
        return replace(task, config=site_settings(task.config, partitioned=self._partitioned))

    def _admit(self, task: Task) -> None:
        self._task = task
        self._about = {"round": task.round_number, "architecture": task.architecture.digest}
        if self._policy_file:
            self._policy = load_policy(self._policy_file)
        if self._policy.noise and task.work.extras:
            raise PolicyRefusal(
                f"site policy forbids: its noise would drown the {', '.join(task.work.extras)} that the task asks for; "
                "the coordinator should set train.moments=fresh"
            )
        if self._multiplier:
            check_accountant()
        self._check(read_books(self._log, self._ledger))
        if self._kind == "evaluate" and not self._policy.report_metrics:
            raise PolicyRefusal("site policy forbids: an evaluation tells metrics, and its report-metrics is false")

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """The work on an admitted task: raises `PolicyRefusal` when it takes longer than the policy allows."""
        minutes = self._policy.max_task_minutes
        try:
            with time_limit(60.0 * minutes if minutes else math.inf):
                yield
        except TimeIsUp:
            raise took_too_long(self._policy) from None

    def check_data(self, data: NodeData) -> None:
        """Refuse a task for which there are too few images before hours go into it."""
        if self.active:
            self._check(examples=len(data.train if self._kind == "train" else data.validation))
            self._begun = True

    def release(self, reply: Message, data: NodeData) -> Message:
        """The reply as it may leave: filtered, clipped, noised, and recorded.

        Raises:
            PolicyRefusal: too few examples, or the last allowed answer was given meanwhile.
            PrivacyError: the update cannot be clipped.
            AuditError: it cannot be recorded, so it must not leave.
        """
        if not self.active:
            return reply
        self._filter(reply, data)
        content = reply.content
        examples = cast(int, content.metric_records[METRICS][EXAMPLES])
        self._check(examples=examples)  # before the work of clipping; the check that counts is the one under the lock
        protection = self._protect(reply)
        sent = {
            "outcome": ANSWERED,
            "examples": examples,
            "metrics": sorted(content.metric_records[METRICS]),
            "report": sorted(content.config_records.get(REPORT, {})),
            "values": sum(math.prod(array.shape) for r in content.array_records.values() for array in r.values()),
            "bytes": payload_bytes(content),
            "sha256": arrays_sha256(content.array_records.get(ARRAYS, {})),
        }
        anchor = record_answer(self._log, self._ledger, self._entry(sent | protection), self._cost, self._check_again)
        self._begun = False
        told = dict(content.config_records[REPORT])
        content[REPORT] = ConfigRecord(told | {AUDIT_ENTRIES: anchor.entries, AUDIT_SHA256: anchor.sha256})
        return reply

    def refuse(self, error: Exception, known: bool = True) -> str:
        """Record that a task was not done; returns what the coordinator may be told.

        Args:
            known: it is an error with a clear message, not an accident.
        """
        if not self.active:
            return str(error)
        outcome = REFUSED if known else FAILED
        try:
            reason = f"{type(error).__name__}: {error}"[:1000]
            self._note(self._entry({"outcome": outcome, "reason": reason}), error)
        except AuditError as trouble:
            log.error("%s", trouble)  # nothing of the data leaves with a refusal: it is sent all the same
        if self._may_tell(error):
            return str(error)
        return f"{type(error).__name__}; the site's policy keeps the details in its own log"

    def _note(self, entry: Mapping[str, Any], error: Exception) -> None:
        """Write a refusal down; one that the images themselves may have caused costs what an answer costs.

        A server could send weights whose loss overflows at images of some kind only, and ask as often as it likes.
        """
        if self._begun and self._multiplier and not isinstance(error, PolicyRefusal | AuditError):
            record_answer(self._log, self._ledger, entry, self._cost, lambda _: None)
        else:
            append_entry(self._log, entry)

    def _may_tell(self, error: Exception) -> bool:
        """Errors of data, disk and policy name files and images; others speak of what the server sent."""
        if not self._policy_file:
            return True
        if isinstance(error, TrainingError) and not self._policy.report_metrics:
            return False  # it tells a loss, and the epoch of it
        if isinstance(error, _ABOUT_THE_TASK):
            return True
        return isinstance(error, DataError) and self._policy.report_notes

    def _check_again(self, books: Books) -> None:
        """While no other answer can be recorded."""
        self._check(books)

    def _check(self, books: Books | None = None, examples: int | None = None) -> None:
        given, total = (books.answers(run, self._kind) if books else 0 for run in (self._run, None))
        app_hash = installed_app_hash(fedskew.__file__) if self._policy.app_hashes is not None else ""
        check_task(self._policy, self._run, answered=given, answered_total=total, examples=examples, app_hash=app_hash)
        if books and self._kind == "train":
            self._check_budget(books)

    def _check_budget(self, books: Books) -> None:
        budget = self._policy.privacy_budget
        if budget and (over := is_spent(books, self._multiplier, budget.epsilon, budget.delta)):
            raise PolicyRefusal(
                f"site policy forbids: its privacy-budget of ε={budget.epsilon:g} at δ={budget.delta:g} over all runs "
                f"is spent: ε is {over[0]:.4g}, with one more answer it would be {over[1]:.4g}; the site has to decide "
                "on a larger one, or to take no part any more"
            )

    @property
    def _multiplier(self) -> float:
        """Noise multiplier of an answer of this kind; 0 for one without noise."""
        noise, norm = self._policy.noise, self._policy.clipping_norm
        return noise_multiplier(noise.deviation, norm) if noise and norm and self._kind == "train" else 0.0

    def _cost(self, books: Books) -> dict[str, Any]:
        told = self._policy.privacy_budget or self._policy.noise
        cost = cost_of(books, self._run, self._multiplier, told.delta if told else 0.0)
        if self._kind == "train":
            log.info("site policy: %s", cost_in_words(cost, self._policy.privacy_budget))
        return cost

    def _filter(self, reply: Message, data: NodeData) -> None:
        """Take out what the policy keeps at the site, and name what it suppresses."""
        policy, content = self._policy, reply.content
        told = class_counts(data.data.samples, data.train if self._kind == "train" else data.validation)
        counts = {name: told.get(name, 0) for name in self._task.architecture.classes} | told
        metrics = dict(content.metric_records[METRICS].items())
        allowed = policy.metrics if policy.report_metrics else frozenset()
        kept, hidden = split_metrics(metrics, counts, policy.min_count, allowed)
        content[METRICS] = MetricRecord({name: value for name, value in metrics.items() if name in kept})
        report = dict(content.config_records.get(REPORT, {}))
        for key in (CLASSES, CLASS_COUNTS):  # added again, by the site's own labels, where the policy tells them
            report.pop(key, None)
        if not policy.report_notes and (notes := cast(list[str], report.get("notes"))):
            report["notes"] = [f"{len(notes)} notes on the data; the site's policy keeps them"]
        if policy.report_class_counts and self._kind == "train":
            shown, small = suppress_counts(counts, policy.min_count)
            report |= {CLASSES: list(shown), CLASS_COUNTS: list(shown.values())}
            report |= {SUPPRESSED_CLASSES: list(small)} if small else {}
        content[REPORT] = ConfigRecord(report | ({SUPPRESSED: list(hidden)} if hidden else {}))

    def _protect(self, reply: Message) -> dict[str, float]:
        """Clip and noise an update; returns what the audit log says of it."""
        clipping, noise = self._policy.clipping_norm, self._policy.noise
        if clipping is None or not reply.content.array_records:
            return {"noise-deviation": 0} if reply.content.array_records else {}
        part = self._task.uploaded()
        received = _tensors(self._message, self._task.downloaded())
        # tensor by tensor: a norm over all values at once, in float32 as Flower takes it, comes out too small
        reply.content[ARRAYS] = _tensors(reply, part)
        protect(self._message, reply, ARRAYS, ArrayRecord({name: received[name] for name in part}), clipping, noise)
        protected = reply.content.array_records[ARRAYS]
        reply.content[ARRAYS] = to_record({name: torch.from_numpy(protected[name].numpy()) for name in part})
        if noise:
            weights = sum(spec.size for spec in part.values())
            log.info("site policy: %s", noise_in_words(noise.deviation, clipping, weights))
        return {"clipping-norm": clipping, "noise-deviation": noise.deviation if noise else 0}

    def _entry(self, more: Mapping[str, Any]) -> dict[str, Any]:
        about = {"node": self._node, "run": self._run, "kind": self._kind}
        app_hash = installed_app_hash(fedskew.__file__)
        return about | ({"app": app_hash} if app_hash else {}) | self._about | dict(more)


def _tensors(message: Message, wanted: Layout) -> ArrayRecord:
    """The weights of a message as one array a tensor."""
    arrays = from_record(message.content.array_records[ARRAYS], wanted)
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})
