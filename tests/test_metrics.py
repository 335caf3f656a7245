"""Metrics against their definitions, written out naively."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedskew.metrics import classification_metrics

CLASSES = ("a", "b", "c")


@st.composite
def predictions(draw):
    """Labels and probabilities with ties, absent classes and classes never predicted."""
    count, classes = draw(st.integers(1, 12)), draw(st.integers(2, 4))
    labels = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    rows = st.lists(st.integers(1, 4), min_size=classes, max_size=classes)
    raw = np.array(draw(st.lists(rows, min_size=count, max_size=count)), dtype=np.float64)
    return labels, raw / raw.sum(1, keepdims=True)


def naive(labels, probabilities):
    count, classes = probabilities.shape
    predicted = [int(np.argmax(row)) for row in probabilities]
    recalls, f1s, areas = {}, [], []
    for c in range(classes):
        hits = sum(1 for i in range(count) if labels[i] == c and predicted[i] == c)
        actual, called = sum(labels == c), predicted.count(c)
        if actual:
            recalls[c] = hits / actual
        if actual + called:
            precision = hits / called if called else 0.0
            recall = hits / actual if actual else 0.0
            f1s.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        pairs = [(probabilities[i, c], probabilities[j, c]) for i in range(count) if labels[i] == c
                 for j in range(count) if labels[j] != c]  # fmt: skip
        if pairs:
            areas.append(sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs))
    return {
        "accuracy": sum(predicted[i] == labels[i] for i in range(count)) / count,
        "balanced_accuracy": sum(recalls.values()) / len(recalls),
        "f1_macro": sum(f1s) / len(f1s),
        "auroc_macro": sum(areas) / len(areas) if areas else None,
        "loss": -sum(math.log(probabilities[i, labels[i]]) for i in range(count)) / count,
        "recall": [recalls.get(c) for c in range(classes)],
    }


@settings(max_examples=200)
@given(predictions())
def test_every_metric_is_its_definition(case):
    labels, probabilities = case
    names = tuple("abcd"[: probabilities.shape[1]])
    found, expected = classification_metrics(labels, probabilities, names), naive(labels, probabilities)
    assert list(found["recall"]) == list(names)
    assert list(found["recall"].values()) == pytest.approx(expected.pop("recall"))
    assert found["examples"] == len(labels)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_a_class_without_examples_is_left_out_and_its_recall_is_none():
    found = classification_metrics(np.array([0, 0, 1]), np.eye(3)[[0, 1, 1]], CLASSES)
    assert found["recall"] == {"a": 0.5, "b": 1.0, "c": None}
    assert found["balanced_accuracy"] == 0.75
    assert found["f1_macro"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_a_class_that_is_only_predicted_counts_in_macro_f1():
    found = classification_metrics(np.array([0, 0]), np.eye(3)[[0, 2]], CLASSES)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["balanced_accuracy"] == 0.5


def test_ties_count_half_in_the_area_under_the_curve():
    same = np.full((4, 2), 0.5)
    assert classification_metrics(np.array([0, 1, 0, 1]), same, CLASSES[:2])["auroc_macro"] == 0.5


def test_one_class_alone_has_no_area_under_the_curve():
    assert classification_metrics(np.array([1, 1]), np.full((2, 3), 1 / 3), CLASSES)["auroc_macro"] is None


def test_certain_and_wrong_is_a_large_loss_not_an_infinite_one():
    found = classification_metrics(np.array([1]), np.array([[1.0, 0.0, 0.0]]), CLASSES)
    assert 20 < found["loss"] < 50


def test_no_examples_give_zeros_not_an_error():
    found = classification_metrics(np.zeros(0, dtype=np.int64), np.zeros((0, 3)), CLASSES)
    assert (found["accuracy"], found["examples"], found["auroc_macro"]) == (0.0, 0, None)
    assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())
