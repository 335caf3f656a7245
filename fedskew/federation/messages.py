"""What travels between server and nodes, and nothing else: names of the records and their fields.

A task to train or evaluate is (arrays, config); a reply is (arrays, metrics, report); for the arrays see `weights`. The
architecture, what is to be trained and what of it is to be sent back are part of the task, so a node needs to know
nothing beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedskew import __version__
from fedskew.config.load import from_mapping, to_mapping
from fedskew.config.schema import Config
from fedskew.errors import FedskewError
from fedskew.federation.weights import to_record
from fedskew.methods import METHODS
from fedskew.methods.average import AVERAGE
from fedskew.methods.base import EXTRAS, Work
from fedskew.model.architecture import Architecture
from fedskew.model.codec import architecture_from_json
from fedskew.model.layout import Layout, Part, layout

ARRAYS, CONFIG, METRICS, REPORT = "arrays", "config", "metrics", "report"
EXAMPLES = "num-examples"
VALIDATION_METRICS = ("accuracy", "auroc_macro", "balanced_accuracy", "f1_macro", "loss")  # a node's answer
TRAINING_METRICS = ("loss", "first-loss", "steps", "seconds", "seconds-train")  # a node's answer
CLASSES, CLASS_COUNTS = "classes", "class-counts"  # in the report, if the site's policy tells them
SUPPRESSED, SUPPRESSED_CLASSES = "suppressed", "suppressed-classes"  # in the report: names of cells too small to tell
AUDIT_ENTRIES, AUDIT_SHA256 = "audit-entries", "audit-sha256"  # in the report: where the site's audit log stands

MAX_NAMES, MAX_NAME = 1000, 1000  # in a list of a task's work; characters of each

PLAIN = Work(AVERAGE)


class MessageError(FedskewError, ValueError):
    """A message that does not hold what it must; says which field."""


@dataclass(frozen=True)
class Task:
    """What the server asks of a node."""

    round_number: int
    rounds: int
    architecture: Architecture
    config: Config
    work: Work = PLAIN
    split_hash: str = ""
    class_counts: tuple[int, ...] = ()  # images of each class at all nodes that tell; empty: unknown

    def uploaded(self) -> Layout:
        """The tensors of the answer."""
        return self.work.up.of(layout(self.architecture)) | self.work.beside(self.architecture)

    def downloaded(self) -> Layout:
        """The tensors of the task."""
        return dict(layout(self.architecture)) | self.work.beside(self.architecture)


def pack_task(task: Task, arrays: ArrayRecord) -> RecordDict:
    """The content of a task's message."""
    config = ConfigRecord(
        {
            "fedskew": __version__,
            "server-round": task.round_number,
            "rounds": task.rounds,
            "architecture": task.architecture.to_json(),
            "run-config": json.dumps(to_mapping(task.config)),
            "work": json.dumps(asdict(task.work)),
            "split-hash": task.split_hash,
            "class-counts": list(task.class_counts),
        }
    )
    return RecordDict({ARRAYS: arrays, CONFIG: config})


def unpack_task(message: Message) -> tuple[Task, ArrayRecord]:
    """Read and validate a task.

    Raises:
        MessageError: a record or field is missing or of the wrong type, or another fedskew version sent it.
        ArchitectureError, ConfigError: its architecture or configuration is invalid.
    """
    arrays, config = message.content.array_records.get(ARRAYS), message.content.config_records.get(CONFIG)
    if arrays is None or config is None:
        raise MessageError(f"the task lacks its {ARRAYS!r} or {CONFIG!r} record")
    if (version := _field(config, "fedskew", str)) != __version__:
        raise MessageError(f"the server runs fedskew {version}, this node {__version__}; use the same version on both")
    try:
        run_config = json.loads(_field(config, "run-config", str))
    except (ValueError, RecursionError) as error:
        raise MessageError(f"run-config is not JSON: {error}") from None
    if not isinstance(run_config, dict):
        raise MessageError("run-config is not a mapping")
    task = Task(
        round_number=_field(config, "server-round", int),
        rounds=_field(config, "rounds", int),
        architecture=architecture_from_json(_field(config, "architecture", str)),
        config=from_mapping(run_config, "the server's configuration"),
        work=_work(_field(config, "work", str)),
        split_hash=_field(config, "split-hash", str),
        class_counts=_items(config, "class-counts", int),
    )
    _check_counts(task)
    return task, arrays


def _work(text: str) -> Work:
    """Read what a task asks for; nothing of it is taken on trust."""
    try:
        told = json.loads(text)
        parts = {name: Part(*(_names(told[name][key]) for key in ("prefixes", "without"))) for name in ("train", "up")}
        work = Work(str(told["method"]), **parts, extras=_names(told["extras"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MessageError(f"field 'work' of the task cannot be read ({type(error).__name__}): {text!r:.80}") from None
    if work.method not in METHODS:
        raise MessageError(f"the task is of the method {work.method!r:.40}; this version knows {', '.join(METHODS)}")
    if unknown := set(work.extras) - set(EXTRAS):
        raise MessageError(f"the task asks for extras that this version does not know: {sorted(unknown)!r:.80}")
    if len(set(work.extras)) != len(work.extras):
        raise MessageError(f"the task asks for extras twice: {work.extras!r:.80}")
    return work


def _names(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("names are a list of texts")
    if len(values) > MAX_NAMES or any(len(value) > MAX_NAME for value in values):  # each is held against each tensor
        raise ValueError("too many names, or too long ones")
    return tuple(values)


def _check_counts(task: Task) -> None:
    classes = len(task.architecture.classes)
    if task.class_counts and (
        len(task.class_counts) != classes or min(task.class_counts) < 0 or not any(task.class_counts)
    ):
        raise MessageError(f"field 'class-counts' of the task is {list(task.class_counts)!r:.80}, "
                           f"expected {classes} numbers of images")  # fmt: skip


def _field(config: ConfigRecord, name: str, kind: type) -> Any:
    value = config.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise MessageError(f"field {name!r} of the task is {value!r:.80}, expected {kind.__name__}")
    return value


def _items(config: ConfigRecord, name: str, kind: type) -> tuple[Any, ...]:
    values = _field(config, name, list)
    if any(type(value) is not kind for value in values):
        raise MessageError(f"field {name!r} of the task is {values!r:.80}, expected a list of {kind.__name__}")
    return tuple(values)


def pack_reply(
    task_message: Message,
    arrays: Mapping[str, torch.Tensor] | None,
    metrics: Mapping[str, float | int],
    report: Mapping[str, str | list[str]],
) -> Message:
    """A node's answer; `arrays` is None for an evaluation."""
    content = RecordDict({METRICS: MetricRecord(dict(metrics)), REPORT: ConfigRecord(dict(report))})
    if arrays is not None:
        content[ARRAYS] = to_record(arrays)
    return Message(content, reply_to=task_message)


def payload_bytes(content: RecordDict) -> int:
    """Bytes of the arrays and settings in a message's content: what has to cross the network, without framing."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    settings = sum(_size(value) for record in content.config_records.values() for value in record.values())
    return arrays + settings + sum(8 * len(record) for record in content.metric_records.values())


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return sum(_size(item) for item in value) if isinstance(value, list) else 8
