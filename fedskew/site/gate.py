"""Where a site's policy and audit log meet the client: before a task, before its answer leaves, after a refusal.

Without `policy` and `audit-log` in the node configuration a gate only sees to it that a task keeps within the default
limits and sets nothing but what a site takes from it; at simulated nodes it does nothing.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord

import fedskew
from fedskew.architecture import ArchitectureError
from fedskew.config.schema import ConfigError
from fedskew.data.prepare import NodeData
from fedskew.data.samples import DataError
from fedskew.data.units import class_counts
from fedskew.federation.messages import (
    ARRAYS,
    CLASS_COUNTS,
    CLASSES,
    EXAMPLES,
    METRICS,
    REPORT,
    MessageError,
    Task,
    payload_bytes,
)
from fedskew.federation.weights import Layout, from_record, to_record
from fedskew.model.cost import parameters
from fedskew.site.audit import (
    ANSWERED,
    FAILED,
    REFUSED,
    AuditError,
    Entry,
    answers,
    append_entry,
    audit_path,
    read_entries,
    site_name,
)
from fedskew.site.limits import exceeded, is_simulated, site_settings
from fedskew.site.policy import Policy, PolicyError, PolicyRefusal, check_task, installed_app_hash, load_policy
from fedskew.site.privacy import PrivacyError, protect
from fedskew.training import TrainingError

log = logging.getLogger("flwr.fedskew.site")

SITE_ERRORS = (PolicyError, PolicyRefusal, PrivacyError, AuditError)
_ABOUT_THE_TASK = (MessageError, ArchitectureError, ConfigError, TrainingError, PolicyRefusal, PrivacyError)
_TIMES = ("steps", "seconds", "seconds-train")


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
        self._policy = Policy(report_notes=True)  # until a file is read: only the log is wanted
        self._about: dict[str, Any] = {}
        self._task: Task  # once it is admitted

    def admit(self, task: Task) -> Task:
        """Check a task before any data is touched; returns it with those of its settings that a site takes.

        Raises:
            PolicyRefusal: the policy forbids the run, the app, or another round, or the task exceeds a limit.
            PolicyError, AuditError: policy or audit log cannot be read, so nothing is allowed.
        """
        if self._simulated:
            return task
        if self.active:
            self._admit(task)
        arch = task.architecture
        if excess := exceeded(task.config, arch.image_size, parameters(arch), self._policy.limits):
            raise PolicyRefusal(f"site policy forbids: {excess}")
        return replace(task, config=site_settings(task.config, partitioned=self._partitioned))

    def _admit(self, task: Task) -> None:
        self._task = task
        self._about = {"round": task.round_number, "architecture": task.architecture.digest}
        if self._policy_file:
            self._policy = load_policy(self._policy_file)
        if self._policy.noise and task.extras:
            raise PolicyRefusal(
                f"site policy forbids: its noise would drown the {', '.join(task.extras)} that the task asks for; "
                "the coordinator should set train.moments=fresh"
            )
        self._check(read_entries(self._log) if self._counts else ())
        if self._kind == "evaluate" and not self._policy.report_metrics:
            raise PolicyRefusal("site policy forbids: an evaluation tells metrics, and its report-metrics is false")

    def check_data(self, data: NodeData) -> None:
        """Refuse a task for which there are too few images before hours go into it."""
        if self.active:
            self._check((), len(data.train if self._kind == "train" else data.validation))

    def release(self, reply: Message, data: NodeData) -> Message:
        """The reply as it may leave: filtered, clipped, noised, and recorded.

        Raises:
            PolicyRefusal: too few examples, or the last allowed answer was given meanwhile.
            PrivacyError: the update cannot be clipped.
            AuditError: it cannot be recorded, so it must not leave.
        """
        if not self.active:
            return reply
        self._filter(reply)
        if self._policy.report_class_counts and self._kind == "train":
            counts = class_counts(data.data.samples, data.train)
            told = dict(reply.content.config_records[REPORT])
            reply.content[REPORT] = ConfigRecord(told | {CLASSES: list(counts), CLASS_COUNTS: list(counts.values())})
        content = reply.content
        examples = int(content.metric_records[METRICS][EXAMPLES])
        self._check((), examples)  # before the work of clipping; the check that counts is the one under the lock
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
        check = self._check if self._counts else None
        append_entry(self._log, self._entry(sent | protection), check)
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
            append_entry(self._log, self._entry({"outcome": outcome, "reason": reason}))
        except AuditError as trouble:
            log.error("%s", trouble)  # nothing of the data leaves with a refusal: it is sent all the same
        if self._may_tell(error):
            return str(error)
        return f"{type(error).__name__}; the site's policy keeps the details in its own log"

    def _may_tell(self, error: Exception) -> bool:
        """Errors of data, disk and policy name files and images; others speak of what the server sent."""
        if not self._policy_file or isinstance(error, _ABOUT_THE_TASK):
            return True
        return isinstance(error, DataError) and self._policy.report_notes

    @property
    def _counts(self) -> bool:
        """Whether earlier answers matter."""
        return bool(self._policy.max_rounds or self._policy.max_rounds_total)

    def _check(self, entries: Sequence[Entry], examples: int | None = None) -> None:
        given, total = (answers(entries, run, self._kind) for run in (self._run, None))
        app_hash = installed_app_hash(fedskew.__file__) if self._policy.app_hashes is not None else ""
        check_task(self._policy, self._run, answered=given, answered_total=total, examples=examples, app_hash=app_hash)

    def _filter(self, reply: Message) -> None:
        """Take out what the policy keeps at the site."""
        report = dict(reply.content.config_records.get(REPORT, {}))
        for key in (CLASSES, CLASS_COUNTS):  # added again, by the site's own labels, where the policy tells them
            report.pop(key, None)
        if not self._policy.report_notes and report.get("notes"):
            report["notes"] = [f"{len(report['notes'])} notes on the data; the site's policy keeps them"]
        reply.content[REPORT] = ConfigRecord(report)
        if not self._policy.report_metrics:
            kept = reply.content.metric_records[METRICS].items()
            reply.content[METRICS] = MetricRecord({k: v for k, v in kept if k == EXAMPLES or k in _TIMES})

    def _protect(self, reply: Message) -> dict[str, float]:
        """Clip and noise an update; returns what the audit log says of it."""
        clipping, noise = self._policy.clipping_norm, self._policy.noise
        if clipping is None or not reply.content.array_records:
            return {}
        part = self._task.uploaded()
        received = _tensors(self._message, self._task.downloaded())
        # tensor by tensor: a norm over all values at once, in float32 as Flower takes it, comes out too small
        reply.content[ARRAYS] = _tensors(reply, part)
        protect(self._message, reply, ARRAYS, ArrayRecord({name: received[name] for name in part}), clipping, noise)
        protected = reply.content.array_records[ARRAYS]
        reply.content[ARRAYS] = to_record({name: torch.from_numpy(protected[name].numpy()) for name in part})
        return {"clipping-norm": clipping} | ({"noise-deviation": noise.deviation} if noise else {})

    def _entry(self, more: Mapping[str, Any]) -> dict[str, Any]:
        about = {"node": self._node, "run": self._run, "kind": self._kind}
        app_hash = installed_app_hash(fedskew.__file__)
        return about | ({"app": app_hash} if app_hash else {}) | self._about | dict(more)


def _tensors(message: Message, wanted: Layout) -> ArrayRecord:
    """The weights of a message as one array a tensor."""
    arrays = from_record(message.content.array_records[ARRAYS], wanted)
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def arrays_sha256(arrays: ArrayRecord | Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the arrays as they are sent, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}\0{array.dtype}\0{tuple(array.shape)}\0{len(array.data)}\0".encode())
        digest.update(array.data)
    return digest.hexdigest()
