"""Paired differences with intervals over lesions, against resamples written out and known standard errors."""

import numpy as np
import pytest

from fedskew.metrics import PairingError, Predictions, classification_metrics, paired_differences, paired_over_seeds
from fedskew.metrics.resampling import lesion_draws, weighted_metrics

CLASSES = ("nv", "mel", "df")


def predictions(labels, probabilities, lesions=None, classes=CLASSES):
    count = len(labels)
    lesions = range(count) if lesions is None else lesions
    return Predictions(
        images=np.array([f"image{i}" for i in range(count)]),
        lesions=np.array([f"lesion{i}" for i in lesions]),
        labels=np.array(labels),
        classes=classes,
        probabilities=np.array(probabilities, dtype=np.float32),
    )


def drawn(count=60, lesions=25, seed=0, skill=1.0, ties=False, classes=CLASSES):
    """Labels that depend on the lesion, probabilities of a model of some skill."""
    fixed = np.random.default_rng(5)
    lesion = np.concatenate([np.arange(lesions), fixed.integers(0, lesions, count - lesions)])
    label = fixed.choice(3, lesions, p=[0.6, 0.25, 0.15])
    label[:3] = (0, 1, 2)
    labels = label[lesion]
    logits = np.random.default_rng(seed).normal(size=(count, len(classes)))
    logits[np.arange(count), labels] += skill
    raw = np.exp(np.round(logits) if ties else logits)
    return predictions(labels, raw / raw.sum(1, keepdims=True), lesion, classes)


@pytest.mark.parametrize("ties", [False, True])
def test_every_draw_is_the_metric_of_the_images_written_out(ties):
    given = drawn(ties=ties, classes=(*CLASSES, "vasc"))  # nobody shows vasc, some images are taken for it
    weights = lesion_draws(given.lesions, given.labels, draws=40, seed=3)
    found = weighted_metrics(given.labels, given.probabilities, given.classes, weights)
    assert set(found) == {"accuracy", "balanced_accuracy", "f1_macro", "auroc_macro"} | {
        f"{kind}.{name}" for kind in ("recall", "auroc") for name in CLASSES
    }
    for draw in range(41):
        rows = np.repeat(np.arange(60), weights[:, draw].astype(int))
        expected = classification_metrics(given.labels[rows], given.probabilities[rows], given.classes)
        for name in ("accuracy", "balanced_accuracy", "f1_macro", "auroc_macro"):
            assert found[name][draw] == pytest.approx(expected[name]), (name, draw)
        for name in CLASSES:
            assert found[f"recall.{name}"][draw] == pytest.approx(expected["recall"][name])


def test_only_what_is_asked_for_is_computed_and_it_is_the_same():
    given = drawn()
    weights = lesion_draws(given.lesions, given.labels, draws=300)
    whole = weighted_metrics(given.labels, given.probabilities, CLASSES, weights)
    some = weighted_metrics(given.labels, given.probabilities, CLASSES, weights, ["auroc.mel", "recall.df"])
    assert sorted(some) == ["auroc.mel", "recall.df"]
    assert all(np.array_equal(values, whole[name]) for name, values in some.items())
    assert whole["accuracy"].shape == (301,)


def test_lesions_are_drawn_whole_and_no_class_is_ever_lost():
    given = drawn()
    weights = lesion_draws(given.lesions, given.labels, draws=500)
    assert np.array_equal(weights[:, 0], np.ones(60)), "the first column is the test set as it is"
    for lesion in np.unique(given.lesions):
        rows = weights[given.lesions == lesion]
        assert (rows == rows[0]).all()
    firsts = np.unique(given.lesions, return_index=True)[1]
    for label in range(3):
        of_class = firsts[given.labels[firsts] == label]
        totals = weights[of_class].sum(0)
        assert (totals == len(of_class)).all(), "as many lesions of each class as the split gave"
    spread = weights[firsts, 1:].var(1)
    count = (given.labels[firsts] == 0).sum()
    assert spread[given.labels[firsts] == 0].mean() == pytest.approx(1 - 1 / count, rel=0.1), "drawn with replacement"
    assert np.array_equal(weights, lesion_draws(given.lesions, given.labels, draws=500)), "a fixed seed"


def test_a_class_that_only_lesions_with_two_labels_show_is_never_lost():
    lesions, labels = np.array(["a", "b", "c", "d", "d"]), np.array([0, 0, 0, 0, 1])
    weights = lesion_draws(lesions, labels, draws=200)
    assert (weights[4] == 1).all(), "the only lesion of its kind is in every draw"
    assert (weights[:3].sum(0) == 3).all()


def paired_case(count, seed):
    """Two models on single-image lesions of two classes; correct or not, image by image."""
    generator = np.random.default_rng(seed)
    right = generator.random((2, count)) < np.array([[0.7], [0.75]])
    labels = np.repeat([0, 1], count // 2)
    sides = []
    for row in right:
        choice = np.where(row, labels, 1 - labels)
        sides.append(np.eye(3)[choice] * 0.8 + 0.1 * (1 - np.eye(3)[choice]))
    return labels, right, sides


def test_the_interval_is_that_of_the_standard_error_of_the_paired_difference():
    labels, right, sides = paired_case(2000, 1)
    found = paired_differences(*([predictions(labels, side)] for side in sides))["accuracy"]
    gap = right[1].astype(float) - right[0]
    assert found.mean == pytest.approx(gap.mean())
    assert (found.first, found.second) == (pytest.approx(right[0].mean()), pytest.approx(right[1].mean()))
    error = np.sqrt(sum(gap[labels == c].var() * (labels == c).sum() for c in (0, 1))) / 2000
    assert found.low == pytest.approx(gap.mean() - 1.96 * error, abs=0.12 * error)
    assert found.high == pytest.approx(gap.mean() + 1.96 * error, abs=0.12 * error)
    assert found.seen
    assert (found.seeds_low, found.per_seed) == (None, (found.mean,))


def test_more_images_of_the_same_lesions_are_no_more_evidence():
    labels, _, sides = paired_case(200, 2)
    once = paired_differences(*([predictions(labels, side)] for side in sides))["balanced_accuracy"]
    lesions = np.tile(np.arange(200), 4)
    four = paired_differences(
        *([predictions(np.tile(labels, 4), np.tile(side, (4, 1)), lesions)] for side in sides)
    )["balanced_accuracy"]  # fmt: skip
    assert (once.high - once.low) > 0.05
    assert (four.high - four.low) == pytest.approx(once.high - once.low, rel=0.05)
    assert four.mean == pytest.approx(once.mean)


def test_a_model_against_itself_has_no_difference_seen():
    given = drawn()
    for found in paired_differences([given], [given]).values():
        assert (found.mean, found.low, found.high, found.seen) == (0.0, 0.0, 0.0, False)


def test_the_sign_is_second_minus_first():
    weak, strong = drawn(skill=0.0, seed=1), drawn(skill=4.0, seed=2)
    up, down = paired_over_seeds([weak], [strong], "f1_macro"), paired_over_seeds([strong], [weak], "f1_macro")
    assert up.low > 0 > down.high
    assert up.mean == -down.mean


def test_the_mean_over_seeds_and_each_seed_are_told():
    first, second = [drawn(seed=i) for i in range(3)], [drawn(seed=10 + i, skill=2.0) for i in range(3)]
    found = paired_over_seeds(first, second, "auroc_macro")
    areas = [
        [classification_metrics(p.labels, p.probabilities, CLASSES)["auroc_macro"] for p in side]
        for side in (first, second)
    ]
    assert found.per_seed == pytest.approx(np.subtract(areas[1], areas[0]))
    assert found.mean == pytest.approx(np.mean(found.per_seed))
    assert (found.first, found.second) == (pytest.approx(np.mean(areas[0])), pytest.approx(np.mean(areas[1])))


def test_all_seeds_share_the_draws_of_lesions():
    """The same pair of models three times says no more than once: the interval over lesions stays."""
    pair = drawn(seed=1), drawn(seed=2, skill=2.0)
    once = paired_over_seeds(pair[:1], pair[1:], "accuracy")
    thrice = paired_over_seeds(pair[:1] * 3, pair[1:] * 3, "accuracy")
    assert (thrice.low, thrice.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert (thrice.seeds_low, thrice.seeds_high) == (pytest.approx(once.low), pytest.approx(once.high))


def test_seeds_that_disagree_widen_the_interval_over_seeds_only():
    """Without luck of the test set (every image of a class is treated alike) only the seeds vary."""
    labels = np.repeat([0, 1], 50)
    right, wrong = np.eye(3)[labels], np.eye(3)[1 - labels]
    half = np.where(np.arange(100)[:, None] < 50, right, wrong)  # class 0 right, class 1 wrong
    first = [predictions(labels, half)] * 2
    second = [predictions(labels, right), predictions(labels, wrong)]  # +0.5 and -0.5
    found = paired_over_seeds(first, second, "accuracy")
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    # two seeds drawn: both +, both -, or mixed; deviations enlarged by √2
    assert (found.seeds_low, found.seeds_high) == (pytest.approx(-0.5 * 2**0.5), pytest.approx(0.5 * 2**0.5))


def test_a_class_without_images_has_no_difference():
    labels, _, sides = paired_case(20, 1)
    first, second = ([predictions(labels, side)] for side in sides)
    assert paired_over_seeds(first, second, "recall.df") is None
    assert "recall.df" not in paired_differences(first, second)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": np.array(["x"] * 60)}, "images"),
        ({"lesions": np.array(["x"] * 60)}, "lesions"),
        ({"labels": np.zeros(60, dtype=int)}, "labels"),
        ({"classes": ("nv", "mel", "bcc")}, "classes differ"),
    ],
)
def test_other_test_sets_are_no_pairs(change, words):
    given = drawn()
    other = Predictions(**{**vars(given), **change})
    with pytest.raises(PairingError, match=words):
        paired_differences([given, given], [given, other])


def test_what_cannot_be_paired_is_told():
    given = drawn()
    with pytest.raises(PairingError, match="1 and 2 predictions"):
        paired_differences([given], [given, given])
    with pytest.raises(PairingError, match="0 and 0"):
        paired_differences([], [])
    with pytest.raises(PairingError, match=r"unknown metric 'recal\.mel'"):
        paired_over_seeds([given], [given], "recal.mel")
    with pytest.raises(PairingError, match="no test images"):
        paired_differences([predictions([], np.zeros((0, 3)))], [predictions([], np.zeros((0, 3)))])


@pytest.mark.parametrize(
    "change",
    [{"lesions": np.array(["x"])}, {"labels": np.full(60, 3)}, {"labels": np.full(60, -1)}, {"classes": ("nv", "mel")}],
    ids=str,
)
def test_predictions_whose_parts_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match=r"fit together|outside of"):
        Predictions(**{**vars(drawn()), **change})
