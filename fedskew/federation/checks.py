"""Judge a reply before anything of it is averaged: a bad one is set aside by name, the round goes on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message

from fedskew.errors import FedskewError
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
    TRAINING_METRICS,
    VALIDATION_METRICS,
)
from fedskew.federation.weights import check_vectors, to_arrays, vector_layout
from fedskew.learning.optimiser import STEPS, impossible_moments
from fedskew.model.layout import Layout, TensorSpec
from fedskew.text import printable

MAX_EXAMPLES = 2**28  # keeps weighted float32 values exact in float64 (see aggregate.RunningMean)
TOLD = frozenset({EXAMPLES, *TRAINING_METRICS, *VALIDATION_METRICS})  # the metrics that a reply may hold
SHARES = frozenset(VALIDATION_METRICS) - {"loss"}  # of these metrics a perfect model has 1
MOST = 1e12  # of any other: weighted by MAX_EXAMPLES their sums stay finite
ROUNDING = 1e-9  # by which a mean of ones may come out above 1
CHUNK = 8192  # values compared at a time
HEADER_BYTES = 4096  # what the serialised form of an array may add to its values
SHA256_HEX = re.compile(r"[0-9a-f]{64}")
MAGIC = b"\x93NUMPY\x01\x00"
HEADER = re.compile(
    rb"\{'descr': '([<>|=]?\w{1,9})', 'fortran_order': (?:True|False), 'shape': \((\d{1,19}),\), \} *\n"
)


class BadReply(FedskewError, ValueError):
    """A reply that must not be averaged; the message is the reason for log and record, one line whatever the reply."""

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason, 400))


@dataclass(frozen=True)
class Report:
    """What a node says in words."""

    node: str  # its own name for itself, empty if it gave none
    notes: tuple[str, ...]  # what it had to say (skipped images, unknown values)
    class_counts: dict[str, int]  # training images of each class; empty unless the site's policy tells them
    suppressed: tuple[str, ...] = field(default=(), kw_only=True)  # metrics that its policy hides: made from too few
    suppressed_classes: tuple[str, ...] = field(default=(), kw_only=True)  # the same of class counts
    audit: tuple[int, str] | None = field(default=None, kw_only=True)  # length and last hash of its audit log


@dataclass(frozen=True)
class Answer(Report):
    """What every good reply tells."""

    metrics: dict[str, float]
    examples: int


@dataclass(frozen=True)
class Update(Answer):
    """A training reply that passed every check."""

    arrays: dict[str, np.ndarray]
    norm: float  # 2-norm of its difference to what the node started from, see `update_norm`


def check_reply(
    message: Message, expected: Layout, reference: Mapping[str, np.ndarray], *, clip_norm: float = 0.0
) -> Update:
    """The update in a training reply.

    Sizes are compared before any array is decoded, so that garbage costs no memory.

    Args:
        expected: exactly the tensors asked for.
        reference: the global model that the node started from.
        clip_norm: of the gradients that its moments, if it sends any, are means of; 0: they were not clipped.

    Raises:
        BadReply: error reply; a record or metric is missing or too many; other tensors than those asked for; values
            that are not finite; moments that no gradients have; no examples.
    """
    answer = check_answer(message)
    record = message.content.array_records.get(ARRAYS)
    if record is None or len(message.content.array_records) != 1:
        raise BadReply(f"expected exactly one record of arrays named {ARRAYS!r}")
    arrays = _decode(record, expected)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadReply(f"tensor {name} holds values that are not finite")
    norm = update_norm(arrays, reference)
    if not math.isfinite(norm):
        raise BadReply("its update is too large to be a number")
    if reason := impossible_moments(arrays, clip_norm):
        raise BadReply(reason)
    return Update(**vars(answer), arrays=arrays, norm=norm)


def update_norm(arrays: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> float:
    """2-norm of what a node changed. The number of steps, which may travel with moments, is no change of a model."""
    return math.sqrt(sum(_squared_distance(array, reference[name]) for name, array in arrays.items() if name != STEPS))


def _squared_distance(array: np.ndarray, other: np.ndarray) -> float:
    """Squared 2-norm of a difference. In parts so small that BLAS starts no threads: they would cost far more here."""
    ours, theirs = np.ascontiguousarray(array).reshape(-1), np.ascontiguousarray(other).reshape(-1)
    total = 0.0
    for start in range(0, ours.size, CHUNK):
        part = ours[start : start + CHUNK].astype(np.float64)
        part -= theirs[start : start + CHUNK]
        total += float(np.vdot(part, part))
    return total


def check_answer(message: Message, *, least: int = 1) -> Answer:
    """Metrics, node name and notes of any reply.

    Raises:
        BadReply: it is an error, its numbers are unusable, or it has fewer than `least` examples.
    """
    if message.has_error():
        raise BadReply(message.error.reason or f"error code {message.error.code}")
    records = message.content.metric_records
    if METRICS not in records or len(records) != 1:
        raise BadReply(f"expected exactly one record of metrics named {METRICS!r}")
    if unknown := [name for name in records[METRICS] if name not in TOLD]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise BadReply(f"its metrics hold {unknown[0]!r:.40}{more}; a node tells {', '.join(sorted(TOLD))} only")
    metrics = {}
    for name, value in records[METRICS].items():
        if isinstance(value, list) or (isinstance(value, float) and not math.isfinite(value)):
            raise BadReply(f"metric {name!r} is {value!r:.40}, expected one finite number")
        most = 1 if name in SHARES else MOST
        if name != EXAMPLES and not 0 <= value <= most * (1 + ROUNDING):
            raise BadReply(f"metric {name!r} is {value!r:.40}, expected a number from 0 to {most:g}")
        metrics[name] = value
    examples = metrics.get(EXAMPLES)
    if not isinstance(examples, int) or not least <= examples <= MAX_EXAMPLES:
        raise BadReply(
            f"metric {EXAMPLES!r} is {examples!r:.40}, expected a whole number from {least} to {MAX_EXAMPLES}"
        )
    return Answer(**vars(check_report(message)), metrics=metrics, examples=examples)


def check_report(message: Message) -> Report:
    """What any reply says in words; raises `BadReply` if it is an error or its report is not in order."""
    if message.has_error():
        raise BadReply(message.error.reason or f"error code {message.error.code}")
    report = message.content.config_records.get(REPORT, ConfigRecord())
    node, notes = report.get("node", ""), report.get("notes", [])
    if not isinstance(node, str) or not isinstance(notes, list):
        raise BadReply("its report holds no node name and notes as text")
    classes, counts = report.get(CLASSES, []), report.get(CLASS_COUNTS, [])
    if not isinstance(classes, list) or not isinstance(counts, list) or len(classes) != len(counts):
        raise BadReply("its report does not hold as many class counts as classes")
    if not all(type(count) is int and 0 <= count <= MAX_EXAMPLES for count in counts):
        raise BadReply("its report holds a class count that is no number of images")
    entries, sha256 = report.get(AUDIT_ENTRIES), report.get(AUDIT_SHA256)
    audit = None
    if type(entries) is int and 0 < entries < 2**63 and isinstance(sha256, str) and SHA256_HEX.fullmatch(sha256):
        audit = entries, sha256
    elif (entries, sha256) != (None, None):
        raise BadReply("its report does not hold the length and last hash of its audit log")
    hidden, small = report.get(SUPPRESSED, []), report.get(SUPPRESSED_CLASSES, [])
    if not isinstance(hidden, list) or not set(hidden) <= TOLD - {EXAMPLES}:
        raise BadReply("its report names as suppressed what is no metric")
    if not isinstance(small, list):
        raise BadReply("its report does not hold its suppressed classes as a list")
    numbers = cast(list[int], counts)
    told = {one_line(name, 100): count for name, count in zip(classes[:1000], numbers, strict=False)}
    return Report(
        one_line(node, 100),
        tuple(one_line(note, 500) for note in notes[:50]),
        told,
        suppressed=tuple(sorted(map(str, hidden))),
        suppressed_classes=tuple(one_line(name, 100) for name in small[:1000]),
        audit=audit,
    )


def one_line(text: object, most: int) -> str:
    """Text of a node as it may stand in log, record and terminal: no lines that look like ours, no megabytes, and
    nothing that steers a terminal (see `printable`).
    """
    return printable(" ".join(str(text)[: 4 * most].split()))[:most]


def _decode(record: ArrayRecord, expected: Layout) -> dict[str, np.ndarray]:
    """The tensors of a record, as views of its bytes."""
    try:
        check_vectors({name: TensorSpec(tuple(array.shape), array.dtype) for name, array in record.items()}, expected)
    except ValueError as error:
        raise BadReply(str(error)) from None
    vectors = {}
    for name, want in vector_layout(expected).items():
        data, size = record[name].data, want.size * np.dtype(want.dtype).itemsize
        if not size <= len(data) <= size + HEADER_BYTES:
            raise BadReply(f"its weights come in {len(data)} bytes, expected about {size}")
        vectors[name] = _values(data, want)
    return to_arrays(vectors, expected)


def _values(data: bytes, want: TensorSpec) -> np.ndarray:
    """Read-only view of a serialised vector.

    Its header is matched, never evaluated: NumPy's own reader parses it as Python, which a hostile header makes fail
    in many ways, and allocates what it claims.
    """
    start = 10 + int.from_bytes(data[8:10], "little")
    header = HEADER.fullmatch(data[10:start])
    if data[:8] != MAGIC or header is None:
        raise BadReply("its weights cannot be decoded: their bytes are no vector in NumPy's format 1.0")
    kind, values = (part.decode() for part in header.groups())
    if kind != np.dtype(want.dtype).str or values != str(want.size):  # the label may lie about the content
        raise BadReply(f"its weights hold {values:.40} values of {kind}, expected {want.size} of {want.dtype}")
    if len(data) - start != want.size * np.dtype(want.dtype).itemsize:
        raise BadReply(f"its weights cannot be decoded: {len(data) - start} bytes for {want.size} {want.dtype} values")
    return np.frombuffer(data, dtype=kind, offset=start)
