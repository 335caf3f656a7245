"""A bad reply is refused with its reason, before it costs memory and before anything of it is averaged."""

import io
import math
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedskew.federation.checks import CHUNK, MAX_EXAMPLES, BadReply, check_answer, check_reply, one_line, update_norm
from fedskew.federation.weights import TensorSpec, vector_layout
from fedskew.learning.optimiser import STEPS

WANTED = {"w": TensorSpec((4, 8), "float32"), "b": TensorSpec((), "float32"), "n": TensorSpec((3,), "int64")}
FLOATS, INTS = vector_layout(WANTED)  # b and w end to end in one vector of 33 values, n in another
REFERENCE = {
    "w": np.zeros((4, 8), np.float32),
    "b": np.zeros((), np.float32),
    "n": np.zeros(3, np.int64),
    "frozen": np.ones(5, np.float32),
}
METRICS = {"num-examples": 7, "loss": 0.5}


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=values.dtype.hasobject)
    return buffer.getvalue()


def array(values, **labels):
    """A Flower array; labels may say something else than its content."""
    values = np.asarray(values)
    labels = {"dtype": str(values.dtype), "shape": values.shape, "data": npy(values)} | labels
    return Array(stype="numpy.ndarray", **labels)


def floats(w=3.0, b=4.0):
    """The vector of floating-point values with w [32] and b [1] as given."""
    return np.append(np.float32(b), np.broadcast_to(np.asarray(w, np.float32), 32))


def good_arrays():
    return {FLOATS: array(floats()), INTS: array(np.arange(3))}


def reply(arrays=None, metrics=METRICS, records=None):
    content = {
        "arrays": ArrayRecord(good_arrays() if arrays is None else arrays),
        "metrics": MetricRecord(dict(metrics)),
        "report": ConfigRecord({"node": "site-a", "notes": ["skipped x.jpg: truncated"]}),
    }
    content = {name: record for name, record in (content | (records or {})).items() if record is not None}
    return Message(RecordDict(content), dst_node_id=1, message_type="train")


def refused(message, *words):
    with pytest.raises(BadReply) as error:
        check_reply(message, WANTED, REFERENCE)
    text = str(error.value)
    assert all(word in text for word in words), text
    assert len(text) < 500, "a reason for a log line"
    return text


def test_a_good_reply_is_accepted_as_it_is():
    update = check_reply(reply(), WANTED, REFERENCE)
    assert (update.examples, update.node, update.notes) == (7, "site-a", ("skipped x.jpg: truncated",))
    assert update.metrics == METRICS
    assert {name: value.tolist() for name, value in update.arrays.items()} == {
        "w": [[3.0] * 8] * 4,
        "b": 4.0,
        "n": [0, 1, 2],
    }
    assert update.norm == pytest.approx((32 * 9 + 16 + 0 + 1 + 4) ** 0.5), "the norm of the difference"


def test_each_value_comes_to_its_place():
    arrays = good_arrays() | {FLOATS: array(floats(np.arange(32)))}
    update = check_reply(reply(arrays), WANTED, REFERENCE)
    assert update.arrays["w"][1, 2] == 10
    assert update.arrays["b"] == 4


def test_a_reply_without_report_is_anonymous_but_good():
    update = check_reply(reply(records={"report": None}), WANTED, REFERENCE)
    assert (update.node, update.notes) == ("", ())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (floats(np.nan), ("tensor w", "not finite")),
        (floats(np.where(np.eye(4, 8) > 0, np.inf, 0).ravel()), ("tensor w", "not finite")),
        (floats(b=-np.inf), ("tensor b", "not finite")),
        (np.zeros((1,), np.float32), ("(1,)", "(33,)")),
        (np.zeros((32,), np.float32), ("(32,)", "(33,)")),
        (np.zeros((), np.float32), ("()", "(33,)")),
        (np.zeros((33, 1), np.float32), ("(33, 1)", "(33,)")),
        (np.zeros((1, 33), np.float32), ("(1, 33)", "(33,)")),
        (np.zeros(33, np.float64), ("float64", "float32")),
        (np.zeros(33, np.float16), ("float16", "float32")),
        (np.zeros(33, np.int32), ("int32", "float32")),
        (np.zeros(33, ">f4"), (">f4",)),
        (np.zeros(33, "S4"), ("S4",)),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else None,
)
def test_wrong_values_shapes_and_types_are_refused(value, words):
    refused(reply(good_arrays() | {FLOATS: array(value)}), *words)


@pytest.mark.parametrize(
    "content",
    [
        npy(np.zeros((1,), np.float32)),
        npy(np.zeros(33, np.float64)),
        npy(np.zeros(34, np.float32)),
        npy(np.zeros((33, 1), np.float32)),
        npy(np.zeros(33, np.int32)),
        npy(np.zeros(33, np.float32))[:-4],
    ],
    ids=["broadcastable", "float64", "longer", "column", "int32", "cut"],
)
def test_a_label_that_lies_about_the_content_is_refused(content):
    lying = array(floats(), data=content)
    refused(reply(good_arrays() | {FLOATS: lying}), "weights")


def test_a_label_that_lies_about_good_content_is_refused_too():
    for label in ({"shape": (1, 33)}, {"shape": (32,)}, {"dtype": "float64"}, {"dtype": "<f4"}):
        refused(reply(good_arrays() | {FLOATS: array(floats(), **label)}), "weights", "expected")


def test_tensors_of_other_names_or_shapes_are_refused_though_they_are_as_many_values():
    other = vector_layout(WANTED | {"w": TensorSpec((8, 4), "float32")})
    arrays = dict(zip(other, good_arrays().values(), strict=True))
    refused(reply(arrays), "other names or shapes", "versions")


def header(text, version=(1, 0), size=128):
    body = text.encode()
    return b"\x93NUMPY" + bytes(version) + len(body).to_bytes(2, "little") + body + b"\0" * size


@pytest.mark.parametrize(
    "content",
    [
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }\n"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8), }\n"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 99999999999999999999999), }\n"),
        header("{'descr': '<V1000000000', 'fortran_order': False, 'shape': (33,), }\n"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (33,), }\n"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (16,), }\n"),
        header("{'descr': [('a', '<f4', (2000000000,))], 'fortran_order': False, 'shape': (33,), }\n"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 32), }\n"),
        header("{'descr': '<f4'}"),
        header("[]"),
        header("{("),
        header("{'descr': '<f4"),
        header("(" * 4000),
        header("-" * 4000 + "1"),
        header("[" * 90 + "]" * 90),
        header("\t 1\n 2\n\t3"),
        header("__import__('os').system('true')"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (33,), }\n", version=(2, 0)),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (33,), }\n", version=(9, 9)),
        header("{'descr': '', 'fortran_order': False, 'shape': (33,), }\n"),
        header("{'descr': {}, 'fortran_order': False, 'shape': (33,), }\n"),
        b"\x93NUMPY\x01\x00\xff\xff" + b"\0" * 200,
        b"\x93NUMPY" + b"\0" * 200,
        b"\0" * 256,
        pickle.dumps(floats()) + b"\0" * 100,
    ],
    ids=lambda content: repr(content[10:44]),
)
def test_a_lying_or_broken_header_is_refused_and_allocates_nothing(content):
    lying = array(floats(), data=content)
    message = reply(good_arrays() | {FLOATS: lying})
    tracemalloc.start()
    try:
        refused(message, "weights")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000, "it must not allocate what the header claims"
    finally:
        tracemalloc.stop()


@settings(max_examples=120)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x93NUMPY\x01\x00\x40\x00", npy(floats())[:100]]),
)
def test_garbage_is_refused_and_never_anything_else(garbage, prefix):
    content = (prefix + garbage).ljust(140, b"\0")
    refused(reply(good_arrays() | {FLOATS: array(floats(), data=content)}), "weights")


@settings(max_examples=120)
@given(st.text(st.sampled_from("{}[](),:'\"<f4descrshape -\n\t#\\x1e9L"), max_size=60))
def test_a_header_of_garbage_is_refused_and_never_anything_else(text):
    content = header(text)
    refused(reply(good_arrays() | {FLOATS: array(floats(), data=content)}), "weights")


class Bomb:
    """Would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_pickle_in_an_array_is_never_opened(tmp_path):
    values = np.empty(33, dtype=object)
    values[:] = Bomb(tmp_path / "executed")
    content = npy(values)
    for labels in ({}, {"dtype": "float32"}):
        refused(reply(good_arrays() | {FLOATS: array(values, **labels)}), "weights")
    bare = array(floats(), data=content.ljust(200, b"\0"))
    refused(reply(good_arrays() | {FLOATS: bare}), "weights")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("size", [0, 10, 127, 4 * 33 + 4097, 10_000_000])
def test_data_of_another_length_than_its_shape_has_is_refused_before_decoding(size):
    refused(reply(good_arrays() | {FLOATS: array(floats(), data=b"\x93" * size)}), f"weights come in {size} bytes")


def test_missing_and_extra_vectors_are_refused():
    arrays = good_arrays()
    del arrays[INTS]
    refused(reply(arrays), "weights are float32 (33,), expected float32 (33,), int64 (3,)")
    refused(reply({}), "weights are missing")
    refused(reply(good_arrays() | {"frozen": array(np.ones(5, np.float32))}), "float32 (5,)")
    refused(reply(good_arrays() | {str(i): array(np.ones(5, np.float32)) for i in range(1000)}), "float32 (5,)")


@pytest.mark.parametrize("records", [{"arrays": None}, {"more": ArrayRecord(good_arrays())}], ids=["none", "two"])
def test_anything_but_one_record_of_arrays_is_refused(records):
    refused(reply(records=records), "arrays")


def test_an_array_record_under_another_name_is_refused():
    refused(reply(records={"arrays": None, "weights": ArrayRecord(good_arrays())}), "arrays")


@pytest.mark.parametrize(
    "examples",
    [0, -1, -(2**40), 1.5, 7.0, float("nan"), MAX_EXAMPLES + 1, 2**70, 10**400, [7], [7, 7], None],
    ids=lambda value: str(value)[:12],
)
def test_an_example_count_that_is_no_count_is_refused(examples):
    metrics = {"loss": 0.5} | ({} if examples is None else {"num-examples": examples})
    refused(reply(metrics=metrics), "num-examples")


def test_a_boolean_example_count_is_refused():
    with pytest.raises((BadReply, TypeError)):  # Flower itself refuses it
        check_reply(reply(metrics={"num-examples": True}), WANTED, REFERENCE)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), [0.5], [1, 2]], ids=str)
def test_a_metric_that_is_not_one_finite_number_is_refused(loss):
    refused(reply(metrics={"num-examples": 7, "loss": loss}), "loss")


@pytest.mark.parametrize(
    "records",
    [{"metrics": None}, {"more": MetricRecord(METRICS)}, {"metrics": None, "other": MetricRecord(METRICS)}],
    ids=["none", "two", "another-name"],
)
def test_anything_but_one_record_of_metrics_is_refused(records):
    refused(reply(records=records), "metrics")


@pytest.mark.parametrize(
    "report",
    [
        {"node": 3},
        {"notes": "one"},
        {"node": ["a"]},
        {"notes": b"x"},
        {"classes": ["nv"]},
        {"class-counts": 3},
        {"classes": ["nv"], "class-counts": [-1]},
        {"classes": ["nv"], "class-counts": [1.5]},
        {"classes": ["nv"], "class-counts": [MAX_EXAMPLES + 1]},
        {"classes": "nv", "class-counts": [1, 2]},
        {"suppressed": ["num-examples"]},
        {"suppressed": ["another"]},
        {"suppressed": "loss"},
        {"suppressed-classes": "nv"},
    ],
    ids=str,
)
def test_a_report_that_is_no_text_is_refused(report):
    refused(reply(records={"report": ConfigRecord(report)}), "report")


def test_a_long_report_is_cut():
    report = ConfigRecord({"node": "n" * 5000, "notes": ["x" * 5000] * 5000})
    update = check_reply(reply(records={"report": report}), WANTED, REFERENCE)
    assert len(update.node) == 100
    assert (len(update.notes), len(update.notes[0])) == (50, 500)


def test_an_error_reply_is_refused_with_the_nodes_own_reason():
    question = reply()
    question.metadata.__dict__["_message_id"] = "1"
    answer = Message(Error(400, "node site-a: no data set there"), reply_to=question)
    refused(answer, "no data set there")
    silent = Message(Error(17), reply_to=question)
    refused(silent, "17")


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": {"float32-0\nround 7: site-b set aside " * 50_000: array(floats()), INTS: array(np.arange(3))}},
        {"arrays": {FLOATS: array(floats(), dtype="float32\nround 7: " * 1000), INTS: array(np.arange(3))}},
        {"metrics": METRICS | {"loss\nround 7: " * 50_000: float("nan")}},
    ],
    ids=["vector name", "dtype", "metric name"],
)
def test_a_reply_writes_neither_lines_nor_megabytes_into_the_log(change):
    assert "\n" not in refused(reply(**change))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[2J\x1b[31mround 9: fine", "\\x1b[2J\\x1b[31mround 9: fine"),
        ("\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x07", "\\x1b]0;title\\x07\\x1b]52;c;ZXZpbA==\\x07"),
        ("a\u202egnp.exe\u2066b\u2069", "a\\u202egnp.exe\\u2066b\\u2069"),
        ("\x9b31m\x00\x08\x7f\u200f\ud800", "\\x9b31m\\x00\\x08\\x7f\\u200f\\ud800"),
        ("Universitätsklinik Zürich 皮膚科 عيادة", "Universitätsklinik Zürich 皮膚科 عيادة"),
    ],
    ids=["colour", "title and clipboard", "bidirectional", "other controls", "letters"],
)
def test_nothing_that_a_node_says_steers_the_coordinators_terminal(text, seen):
    assert one_line(text, 400) == seen
    assert str(BadReply(text)) == seen
    if "\ud800" in text:
        return  # Flower cannot send it
    report = ConfigRecord({"node": text, "notes": [text], "classes": [text], "class-counts": [1]})
    update = check_reply(reply(records={"report": report}), WANTED, REFERENCE)
    assert (update.node, update.notes, update.class_counts) == (seen[:100], (seen,), {seen[:100]: 1})
    question = reply()
    question.metadata.__dict__["_message_id"] = "1"
    assert refused(Message(Error(400, text), reply_to=question), "") == seen


def test_a_cut_of_what_a_node_says_is_no_longer_than_said():
    assert len(one_line("\x1b" * 1000, 100)) == 100


@pytest.mark.parametrize(
    "metrics",
    [
        {"balanced_accuracy": 1e300},  # its mean would be the best that any round ever had
        {"accuracy": 1.01},
        {"auroc_macro": -0.1},
        {"f1_macro": 2},
        {"loss": -1.0},
        {"loss": 1e300},  # times 2^28 examples it is no number any more
        {"first-loss": -0.5},
        {"steps": -1},
        {"seconds": -1e9},
    ],
)
def test_a_metric_out_of_its_bounds_is_refused(metrics):
    ((name, value),) = metrics.items()
    with pytest.raises(BadReply, match="expected a number from 0 to") as error:
        check_answer(reply(metrics=METRICS | metrics))
    assert f"metric '{name}' is {value!r}" in str(error.value)


def test_metrics_at_their_bounds_are_good():
    edge = {"accuracy": 1.0, "auroc_macro": 0.0, "balanced_accuracy": 1.0 + 2e-16, "f1_macro": 0, "loss": 0.0,
            "first-loss": 1e6, "steps": 0, "seconds": 1e6, "seconds-train": 0.0}  # fmt: skip
    assert check_answer(reply(metrics=METRICS | edge)).metrics == METRICS | edge


def test_metrics_are_a_closed_list():
    """200,000 names, a record of 4 MB a round, were taken."""
    refused(reply(metrics=METRICS | {"evil": 1.0}), "its metrics hold 'evil'; a node tells accuracy, auroc_macro, ")
    many = {f"m{i}": 1.0 for i in range(5000)}
    reason = refused(reply(metrics=METRICS | many), "its metrics hold 'm0' and 4999 more")
    assert len(reason) <= 400
    told = dict.fromkeys(("first-loss", "seconds", "seconds-train", "accuracy", "f1_macro", "auroc_macro"), 0.5)
    assert set(check_reply(reply(metrics=METRICS | told), WANTED, REFERENCE).metrics) >= set(told)


@pytest.mark.parametrize("examples", [MAX_EXAMPLES + 1, 0])
def test_an_example_count_out_of_bounds_is_told_both_bounds(examples):
    refused(reply(metrics=METRICS | {"num-examples": examples}), "expected a whole number from 1 to 268435456")


@pytest.mark.parametrize(
    "report",
    [
        {"audit-entries": 3},
        {"audit-sha256": 64 * "a"},
        {"audit-entries": 0, "audit-sha256": 64 * "a"},
        {"audit-entries": "3", "audit-sha256": 64 * "a"},
        {"audit-entries": 3, "audit-sha256": 63 * "a" + "\x1b"},
    ],
    ids=str,
)
def test_an_anchor_of_an_audit_log_is_a_number_and_a_hash(report):
    refused(reply(records={"report": ConfigRecord(report)}), "length and last hash of its audit log")
    good = ConfigRecord({"audit-entries": 3, "audit-sha256": 64 * "a"})
    assert check_reply(reply(records={"report": good}), WANTED, REFERENCE).audit == (3, 64 * "a")


def test_what_a_node_says_is_one_line():
    report = ConfigRecord(
        {"node": "site-b\nround 7: site-a", "notes": ["a\nb"], "classes": ["n\nv"], "class-counts": [1]}
    )
    update = check_reply(reply(records={"report": ConfigRecord(report)}), WANTED, REFERENCE)
    assert (update.node, update.notes, update.class_counts) == ("site-b round 7: site-a", ("a b",), {"n v": 1})


def test_an_evaluation_reply_needs_metrics_only():
    answer = check_answer(reply(records={"arrays": None}))
    assert (answer.examples, answer.metrics["loss"]) == (7, 0.5)


def test_a_difference_too_large_for_a_number_is_refused():
    large = good_arrays() | {FLOATS: array(floats(3e38))}
    assert check_reply(reply(large), WANTED, REFERENCE).norm > 1e38
    wanted, reference = {"w": TensorSpec((2,), "float64")}, {"w": np.zeros(2)}
    (name,) = vector_layout(wanted)
    with pytest.raises(BadReply, match="too large"):
        check_reply(reply({name: array(np.full(2, 1e308))}), wanted, reference)


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_the_norm_of_an_update_is_that_of_every_value(size):
    """Compared in parts; of whole numbers, so that the sum of squares is exact."""
    generator = np.random.default_rng(size)
    sent, own = (generator.integers(-50, 50, (1, size)).astype(np.float32) for _ in range(2))
    step = np.full(1, 9.0, np.float32)
    found = update_norm({"w": own, STEPS: step}, {"w": sent, STEPS: 0 * step})
    assert found == math.sqrt(int(((own - sent).astype(np.int64) ** 2).sum())), "steps are no part of it"
