"""Metrics against their definitions, written out naively."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedskew.metrics import classification_metrics
from fedskew.metrics.calibration import expected_calibration_error
from fedskew.metrics.classification import BY_CLASS, NUMBERS, not_evaluated
from fedskew.metrics.clinical import degradation, specificity_at_sensitivity

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
    recalls, f1s, areas = {}, [], {}
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
            areas[c] = sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)
    return {
        "accuracy": sum(predicted[i] == labels[i] for i in range(count)) / count,
        "balanced_accuracy": sum(recalls.values()) / len(recalls),
        "f1_macro": sum(f1s) / len(f1s),
        "auroc_macro": sum(areas.values()) / len(areas) if areas else None,
        "auroc": [areas.get(c) for c in range(classes)],
        "support": [sum(int(label) == c for label in labels) for c in range(classes)],
        "expected_calibration_error": naive_calibration_error(labels, probabilities, predicted),
        "loss": -sum(math.log(probabilities[i, labels[i]]) for i in range(count)) / count,
        "recall": [recalls.get(c) for c in range(classes)],
    }


def naive_calibration_error(labels, probabilities, predicted):
    total = 0.0
    for b in range(15):
        inside = [i for i in range(len(labels)) if b / 15 < max(probabilities[i]) <= (b + 1) / 15]
        sure = sum(max(probabilities[i]) for i in inside)
        total += abs(sum(predicted[i] == labels[i] for i in inside) - sure)
    return total / len(labels)


def naive_specificity(positive, scores, sensitivity):
    """Over every threshold that a score offers: the best specificity that finds enough positives."""
    best = None
    for threshold in scores:
        called = scores >= threshold
        if (called & positive).sum() >= sensitivity * positive.sum() - 1e-9:
            specificity = (~called & ~positive).sum() / (~positive).sum()
            best = specificity if best is None else max(best, specificity)
    return best


@settings(max_examples=200)
@given(predictions())
def test_every_metric_is_its_definition(case):
    labels, probabilities = case
    names = tuple("abcd"[: probabilities.shape[1]])
    found, expected = classification_metrics(labels, probabilities, names), naive(labels, probabilities)
    for key in BY_CLASS:
        assert list(found[key]) == list(names)
        assert list(found[key].values()) == pytest.approx(expected.pop(key)), key
    assert set(found) == {*NUMBERS, *BY_CLASS} == set(not_evaluated())
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
    assert found["expected_calibration_error"] is None
    assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())


def test_the_calibration_error_is_the_mean_distance_in_bins_of_the_top_probability():
    # 2/3 sure twice, once right; 0.95 sure twice, both right: (|1 - 4/3| + |2 - 1.9|) / 4
    rows = np.array([[2 / 3, 1 / 3], [1 / 3, 2 / 3], [0.95, 0.05], [0.05, 0.95]])
    assert expected_calibration_error(np.array([0, 0, 0, 1]), rows) == pytest.approx((1 / 3 + 0.1) / 4)


def test_too_sure_and_not_sure_enough_in_one_bin_cancel_but_not_in_two():
    rows, labels = np.array([[0.7, 0.3], [0.72, 0.28]]), np.array([0, 1])  # both between 10/15 and 11/15
    assert expected_calibration_error(labels, rows) == pytest.approx(abs(1 - 1.42) / 2)
    assert expected_calibration_error(labels, rows, bins=100) == pytest.approx((0.3 + 0.72) / 2)


def test_a_sure_model_that_is_right_is_calibrated_and_one_that_is_wrong_is_not():
    assert expected_calibration_error(np.array([0, 1]), np.eye(2)) == 0.0
    assert expected_calibration_error(np.array([1, 0]), np.eye(2)) == 1.0


SCORED = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=30)


@settings(max_examples=200)
@given(SCORED, st.sampled_from([0.5, 0.9, 1.0]))
def test_the_specificity_is_the_best_that_finds_enough_positives(cases, sensitivity):
    positive, scores = np.array([case[0] for case in cases]), np.array([case[1] / 6 for case in cases])
    found = specificity_at_sensitivity(positive, scores, sensitivity)
    if positive.all() or not positive.any():
        assert found is None
    else:
        assert found == pytest.approx(naive_specificity(positive, scores, sensitivity))


def test_nine_of_ten_melanomas_are_ninety_percent():
    scores = np.array([0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.5, 0.1, 0.6, 0.4, 0.3, 0.2])
    positive = np.arange(14) < 10
    assert specificity_at_sensitivity(positive, scores, 0.9) == 0.75, "at 0.5: one of the four others is above"
    assert specificity_at_sensitivity(positive, scores, 1.0) == 0.0, "at 0.1: all are"


def test_the_melanoma_specificity_is_that_of_the_class_named_mel():
    labels = np.array([1, 1, 0, 0, 0, 2])
    mel = np.array([0.6, 0.4, 0.5, 0.3, 0.2, 0.1])
    rows = np.stack([(1 - mel) / 2, mel, (1 - mel) / 2], 1)
    assert classification_metrics(labels, rows, ("nv", "mel", "df"))["melanoma_specificity"] == 0.75
    assert classification_metrics(labels, rows, ("mel", "nv", "df"))["melanoma_specificity"] != 0.75
    assert classification_metrics(labels, rows, CLASSES)["melanoma_specificity"] is None
    assert classification_metrics(labels[2:], rows[2:], ("nv", "mel", "df"))["melanoma_specificity"] is None


SEVEN = {"akiec": 0.5, "bcc": 0.6, "bkl": 0.7, "df": 0.4, "mel": 0.8, "nv": 0.9, "vasc": 0.3}


def test_the_dangerous_classes_lose_more_than_the_harmless():
    lost = degradation(SEVEN, SEVEN | {"mel": 0.5, "akiec": 0.2, "bkl": 0.6, "nv": 0.8})
    assert lost.dangerous == pytest.approx((0.3 + 0.3 + 0.0) / 3)
    assert lost.harmless == pytest.approx((0.1 + 0.1 + 0 + 0) / 4)
    assert lost.ratio == pytest.approx(4.0)


def test_a_gain_of_the_dangerous_is_a_negative_ratio():
    assert degradation(SEVEN, SEVEN | {"mel": 0.9, "nv": 0.7}).ratio == pytest.approx((-0.1 / 3) / (0.2 / 4))


@pytest.mark.parametrize("nv", [0.9, 1.0], ids=["the same", "better"])
def test_without_a_loss_of_the_harmless_there_is_no_ratio_but_both_means(nv):
    lost = degradation(SEVEN, SEVEN | {"mel": 0.5, "nv": nv})
    assert lost.ratio is None
    assert (lost.dangerous, lost.harmless) == (pytest.approx(0.1), pytest.approx((0.9 - nv) / 4))


def test_classes_without_images_are_left_out_of_the_degradation():
    lost = degradation(SEVEN | {"df": None}, SEVEN | {"df": None, "nv": 0.6})
    assert lost.harmless == pytest.approx(0.3 / 3)
    assert degradation(SEVEN | {"mel": None, "bcc": None, "akiec": None}, SEVEN) is None
    assert degradation({"a": 1.0}, {"a": 0.5}) is None
