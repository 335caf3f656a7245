"""No lesion is ever on two sides, every set is what was asked for, every process computes the same."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedskew.data.partitions import sites_of
from fedskew.data.samples import DataError, Sample
from fedskew.data.splits import (
    check_disjoint,
    partition,
    split_manifest,
    split_samples,
    train_validation,
)


def make(lesions: list[tuple[str, int, str | None]]) -> tuple[Sample, ...]:
    """Samples from (label, number of images, site) of each lesion."""
    return tuple(
        Sample(f"i{number}-{image}", f"l{number}", label, None, None, None, site, "x.jpg")
        for number, (label, images, site) in enumerate(lesions)
        for image in range(images)
    )


def typical(count: int = 400) -> tuple[Sample, ...]:
    """Imbalanced classes, several images of some lesions, four unequal sites."""
    rng = np.random.default_rng(0)
    labels = rng.choice(["nv", "mel", "bkl", "df"], count, p=[0.67, 0.15, 0.13, 0.05])
    sites = rng.choice(["a", "b", "c", "d"], count, p=[0.4, 0.3, 0.25, 0.05])
    return make([(str(x), int(n), str(s)) for x, n, s in zip(labels, rng.integers(1, 4, count), sites, strict=True)])


SAMPLES = typical()
EVERYTHING = np.arange(len(SAMPLES))
TABLES = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.sampled_from("xyz")), min_size=1, max_size=40
).map(make)
UNITS = st.sampled_from(["lesion", "image"])
SEEDS = st.integers(0, 2**32)


def assert_divides(samples, indices, parts, unit):
    """The parts are disjoint, sorted, complete, and no unit is in two of them."""
    together = np.concatenate(parts) if parts else np.array([], int)
    assert sorted(together.tolist()) == sorted(np.asarray(indices).tolist())
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)
    check_disjoint(samples, *parts, unit=unit)


# Test, open and clients


@given(TABLES, st.floats(0, 1), st.floats(0, 1), UNITS, SEEDS)
def test_no_unit_is_in_two_sets(samples, test, rest, unit, seed):
    split = split_samples(samples, test=test, open=(1 - test) * rest, unit=unit, seed=seed)
    assert_divides(samples, range(len(samples)), [split.test, split.open, split.clients], unit)


def test_fractions_hold_for_each_class():
    split = split_samples(SAMPLES, test=0.15, open=0.1, unit="lesion", seed=1)

    def lesions(indices):
        return Counter(label for _, label in {(SAMPLES[i].lesion_id, SAMPLES[i].label) for i in indices})

    everything = lesions(EVERYTHING)
    for indices, fraction in ((split.test, 0.15), (split.open, 0.1), (split.clients, 0.75)):
        for label, count in lesions(indices).items():
            assert abs(count - fraction * everything[label]) <= 1, label


def test_clients_may_be_left_with_nothing():
    split = split_samples(SAMPLES, test=0.7, open=0.3, unit="lesion", seed=1)
    assert len(split.clients) == 0
    assert len(split.test) > len(split.open) > 0


def test_sets_that_are_not_asked_for_are_empty():
    split = split_samples(SAMPLES, test=0, open=0, unit="lesion", seed=1)
    assert (len(split.test), len(split.open), len(split.clients)) == (0, 0, len(SAMPLES))


@pytest.mark.parametrize(("lesions", "expected"), [(1, [0, 0, 1]), (2, [1, 0, 1]), (3, [1, 1, 1]), (4, [1, 1, 2])])
def test_a_rare_class_goes_to_clients_then_test_then_open(lesions, expected):
    samples = make([("rare", 1, None)] * lesions)
    split = split_samples(samples, test=0.1, open=0.1, unit="lesion", seed=0)
    assert [len(split.test), len(split.open), len(split.clients)] == expected


def test_another_seed_gives_another_split_and_more_samples_do_not_reshuffle():
    one, two = (split_samples(SAMPLES, test=0.2, open=0, unit="lesion", seed=seed) for seed in (1, 2))
    assert one.test.tolist() != two.test.tolist()
    more = split_samples(typical(401), test=0.2, open=0, unit="lesion", seed=1)
    kept = {SAMPLES[i].image_id for i in one.test} & {typical(401)[i].image_id for i in more.test}
    assert len(kept) > 0.3 * len(one.test)


@pytest.mark.parametrize(("test", "open_"), [(-0.1, 0), (0.6, 0.5), (float("nan"), 0), (1.1, 0)])
def test_impossible_fractions(test, open_):
    with pytest.raises(DataError, match="fractions"):
        split_samples(SAMPLES, test=test, open=open_, unit="lesion", seed=0)


def test_no_samples_or_unknown_unit():
    with pytest.raises(DataError, match="no samples"):
        split_samples((), test=0.1, open=0.1, unit="lesion", seed=0)
    with pytest.raises(DataError, match=r"'patient' is unknown; expected 'lesion' or 'image'"):
        split_samples(SAMPLES, test=0.1, open=0.1, unit="patient", seed=0)


# Parts of the clients


@given(TABLES, st.sampled_from(["iid", "dirichlet", "site"]), st.floats(0.01, 100), UNITS, SEEDS, st.data())
def test_parts_are_disjoint_complete_and_not_empty(samples, kind, alpha, unit, seed, data):
    chosen = split_samples(samples, test=0.2, open=0, unit=unit, seed=seed).clients
    units = len({samples[i].lesion_id if unit == "lesion" else i for i in chosen})
    nodes = data.draw(st.integers(1, units))
    parts = partition(samples, chosen, nodes=nodes, kind=kind, alpha=alpha, unit=unit, seed=seed)
    assert len(parts) == nodes
    assert all(len(part) for part in parts)
    assert_divides(samples, chosen, parts, unit)


def shares(parts):
    """Share of each class in each part: [parts, classes]."""
    labels = sorted({sample.label for sample in SAMPLES})
    counts = np.array([[sum(SAMPLES[i].label == label for i in part) for label in labels] for part in parts])
    return counts / counts.sum(1, keepdims=True)


def divide(kind, nodes=4, alpha=0.5, seed=0, samples=SAMPLES):
    return partition(samples, range(len(samples)), nodes=nodes, kind=kind, alpha=alpha, unit="lesion", seed=seed)


def test_iid_parts_are_alike():
    parts = divide("iid")
    assert np.ptp([len({SAMPLES[i].lesion_id for i in part}) for part in parts]) <= 1
    assert np.ptp(shares(parts), axis=0).max() < 0.1


def test_a_smaller_alpha_is_more_skewed():
    def skew(alpha):
        return np.mean([np.ptp(shares(divide("dirichlet", 4, alpha, seed)), axis=0).mean() for seed in range(8)])

    assert skew(0.1) > 3 * skew(100)


def test_parts_by_site():
    parts = divide("site", 4)
    assert [{SAMPLES[i].site for i in part} for part in parts] == [{"a"}, {"b"}, {"c"}, {"d"}]


def test_the_sites_of_every_part_are_known():
    assert sites_of(SAMPLES, divide("site", 4), "lesion") == [["a"], ["b"], ["c"], ["d"]]
    assert sorted(sites_of(SAMPLES, divide("site", 3), "lesion")) == [["a"], ["b"], ["c", "d"]]
    samples = list(make([("nv", 3, "a"), ("nv", 1, "b"), ("mel", 1, "b")]))
    samples[0] = Sample(**{**samples[0].__dict__, "site": "b"})
    assert sites_of(samples, [np.arange(3), np.arange(3, 5)], "lesion") == [["a"], ["b"]]
    assert sites_of(samples, [np.arange(3), np.arange(3, 5)], "image") == [["a", "b"], ["b"]]


def test_fewer_clients_than_sites_merge_the_smallest():
    sites = [frozenset(SAMPLES[i].site for i in part) for part in divide("site", 3)]
    assert set(sites) == {frozenset("a"), frozenset("b"), frozenset("cd")}


def test_more_clients_than_sites_divide_the_largest():
    parts = divide("site", 6)
    sites = ["".join(sorted({SAMPLES[i].site for i in part})) for part in parts]
    assert Counter(sites) == {"a": 2, "b": 2, "c": 1, "d": 1}
    assert_divides(SAMPLES, EVERYTHING, parts, "lesion")


def test_a_lesion_of_two_sites_goes_to_that_with_more_of_its_images():
    samples = list(make([("nv", 3, "b"), ("nv", 1, "a")]))
    samples[0] = Sample(**{**samples[0].__dict__, "site": "a"})
    parts = divide("site", 2, samples=samples)
    assert [part.tolist() for part in parts] == [[3], [0, 1, 2]]


def test_sites_that_are_not_known():
    with pytest.raises(DataError, match=r"2 images have no site \(e\.g\. i1-0\).*'iid' or 'dirichlet'"):
        divide("site", 1, samples=make([("nv", 1, "a"), ("nv", 2, None)]))


def test_more_clients_than_lesions_names_both_numbers():
    with pytest.raises(DataError, match=r"3 clients, but only 2 lesions.*at most 2"):
        divide("iid", 3, samples=make([("nv", 5, "a"), ("mel", 1, "a")]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": 0}, "at least 1"),
        ({"kind": "even"}, "'even' is unknown"),
        ({"kind": "dirichlet", "alpha": 0.0}, "alpha 0.0 must be a positive number"),
        ({"kind": "dirichlet", "alpha": float("nan")}, "alpha nan"),
        ({"indices": [0, 0]}, "given twice"),
        ({"indices": [0, 99999]}, "99999 is outside"),
        ({"indices": [-1, 3]}, "-1 is outside"),
    ],
)
def test_impossible_partitions(change, message):
    arguments = {"indices": EVERYTHING, "nodes": 1, "kind": "iid", "alpha": 1.0, "unit": "lesion", "seed": 0}
    with pytest.raises(DataError, match=message):
        partition(SAMPLES, **(arguments | change))


# Validation


@given(TABLES, st.floats(0, 0.99), UNITS, SEEDS)
def test_training_is_never_empty(samples, validation, unit, seed):
    train, held_out = train_validation(samples, range(len(samples)), validation=validation, unit=unit, seed=seed)
    assert len(train)
    assert_divides(samples, range(len(samples)), [train, held_out], unit)


def test_validation_is_stratified():
    train, held_out = train_validation(SAMPLES, EVERYTHING, validation=0.2, unit="lesion", seed=0)
    assert abs(len(held_out) / len(SAMPLES) - 0.2) < 0.03
    assert np.abs(shares([train]) - shares([held_out])).max() < 0.06


def test_a_single_image_is_for_training():
    train, held_out = train_validation(make([("nv", 1, None)]), [0], validation=0.9, unit="lesion", seed=0)
    assert (train.tolist(), held_out.tolist()) == ([0], [])


def test_validation_of_nothing_or_of_everything():
    with pytest.raises(DataError, match="no samples"):
        train_validation(SAMPLES, [], validation=0.1, unit="lesion", seed=0)
    with pytest.raises(DataError, match=r"must lie in \[0, 1\)"):
        train_validation(SAMPLES, EVERYTHING, validation=1, unit="lesion", seed=0)


# Records


def record(seed=3):
    split = split_samples(SAMPLES, test=0.15, open=0.1, unit="lesion", seed=seed)
    parts = partition(SAMPLES, split.clients, nodes=3, kind="dirichlet", alpha=0.3, unit="lesion", seed=seed)
    return split_manifest(SAMPLES, split, parts)


def test_the_record_of_a_split_is_complete():
    manifest = record()
    assert json.loads(json.dumps(manifest)) == manifest
    assert (manifest["unit"], manifest["seed"]) == ("lesion", 3)
    ids = [*manifest["ids"]["test"], *manifest["ids"]["open"], *itertools.chain(*manifest["ids"]["parts"])]
    assert sorted(ids) == sorted(sample.image_id for sample in SAMPLES)
    assert sum(manifest["counts"]["test"].values()) == len(manifest["ids"]["test"])
    assert [sum(c.values()) for c in manifest["counts"]["parts"]] == [len(p) for p in manifest["ids"]["parts"]]
    assert record() == manifest != record(4)


def test_another_process_computes_the_same_split():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_data_splits as t; print(t.json.dumps(t.record()))"
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(output.stdout) == record()


def test_a_lesion_on_two_sides_is_named():
    samples = make([("nv", 2, None), ("mel", 1, None)])
    check_disjoint(samples, [0], [1], [2], unit="image")
    with pytest.raises(DataError, match=r"lesion l0 is both in set 0 and in set 1 \(image i0-1\)"):
        check_disjoint(samples, [0], [1], [2], unit="lesion")
