"""The running mean is the exact weighted mean, whatever the order in which the updates arrive."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedskew.federation.aggregate import CHUNK, RunningMean
from fedskew.federation.checks import MAX_EXAMPLES

SAFE = 2.0**25  # magnitudes from 2⁻²⁵ to 2²⁵: the sum is exact, so every order gives the same bits


def mean_of(updates):
    mean = RunningMean()
    for arrays, weight in updates:
        mean.add(arrays, weight)
    return mean.result()


def exact(updates, name, index):
    """The weighted mean in rational arithmetic."""
    total = sum(Fraction(float(arrays[name][index])) * weight for arrays, weight in updates)
    return total / sum(weight for _, weight in updates)


@st.composite
def updates_of(draw, magnitude):
    """Two to six clients with three values each, of very different sizes and signs, some of which cancel."""
    value = st.floats(-magnitude, magnitude, width=32).filter(lambda x: x == 0 or abs(x) >= 1 / magnitude)
    clients = []
    for _ in range(draw(st.integers(1, 6))):
        values = np.array(draw(st.lists(value, min_size=3, max_size=3)), dtype=np.float32)
        weight = draw(st.one_of(st.integers(1, 10), st.integers(1, MAX_EXAMPLES)))
        if clients and draw(st.booleans()):  # the opposite of one before: only what is small is left
            opposite, weight = draw(st.sampled_from(clients))
            values = -opposite["w"]
        clients.append(({"w": values}, weight))
    return clients


@settings(max_examples=300)
@given(updates_of(SAFE))
def test_it_is_the_exact_weighted_mean_rounded_to_float32(clients):
    found = mean_of(clients)["w"]
    for index in range(3):
        true = exact(clients, "w", index)
        spacing = Fraction(float(np.spacing(np.float32(abs(float(true))))))
        assert abs(Fraction(float(found[index])) - true) <= spacing * Fraction(501, 1000)


@settings(max_examples=200)
@given(updates_of(SAFE), st.randoms(use_true_random=False))
def test_every_order_of_arrival_gives_the_same_bits(clients, random):
    expected = mean_of(clients)["w"].tobytes()
    shuffled = list(clients)
    for _ in range(5):
        random.shuffle(shuffled)
        assert mean_of(shuffled)["w"].tobytes() == expected


def test_order_does_not_matter_where_plain_sums_would_differ():
    """Two large updates cancel; a plain sum in float64 loses the small ones if they come between them."""
    values = [2.0**25, -(2.0**25), 1.5 * 2.0**-24, 1 / 3, 1e-3]
    clients = [({"w": np.full((2, 2), value, np.float32)}, weight)
               for value, weight in zip(values, (MAX_EXAMPLES, MAX_EXAMPLES, 3, 1, 1), strict=True)]  # fmt: skip
    results = {mean_of(order)["w"].tobytes() for order in itertools.permutations(clients)}
    assert len(results) == 1
    plain = {np.float32(sum(float(a["w"][0, 0]) * w for a, w in order)) for order in itertools.permutations(clients)}
    assert len(plain) > 1, "the case is worth testing"


@settings(max_examples=200)
@given(updates_of(2.0**126), st.randoms(use_true_random=False))
def test_for_any_finite_values_the_error_is_tiny_beside_the_largest(clients, random):
    random.shuffle(clients)
    found = mean_of(clients)["w"]
    assert np.isfinite(found).all()
    for index in range(3):
        total = sum(weight for _, weight in clients)
        size = sum(abs(Fraction(float(arrays["w"][index]))) * weight for arrays, weight in clients) / total
        true = exact(clients, "w", index)
        rounding = Fraction(float(np.spacing(np.float32(abs(float(true))))))
        assert abs(Fraction(float(found[index])) - true) <= rounding + size / 2**95


@pytest.mark.parametrize("shape", [(), (1,), (0,), (4, 8), (2, 3, 1, 5)], ids=str)
def test_shape_and_dtype_stay(shape):
    generator = np.random.default_rng(0)
    clients = [({"w": generator.normal(size=shape).astype(np.float32)}, weight) for weight in (2, 5)]
    found = mean_of(clients)["w"]
    assert isinstance(found, np.ndarray)
    assert (found.shape, found.dtype) == (shape, np.float32)


def test_identical_updates_come_out_unchanged():
    values = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    found = mean_of([({"w": values}, weight) for weight in (1, 3, 7, 1234567)])
    assert found["w"].tobytes() == values.tobytes(), "what nobody trained must not drift"


def test_updates_are_not_changed_and_may_be_read_only():
    values = np.ones(3, dtype=np.float32)
    values.setflags(write=False)
    mean = RunningMean()
    for _ in range(2):
        mean.add({"w": values}, 3)
    first = mean.result()["w"]
    mean.add({"w": 4 * values}, 3)
    assert (values == 1).all()
    assert (first == 1).all(), "a result is a copy"
    assert (mean.result()["w"] == 2).all()
    assert mean.updates == 3


def test_without_updates_there_is_no_mean():
    assert RunningMean().result() == {}


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_every_value_of_a_large_tensor_counts(size):
    """Sums are kept in parts: whole numbers, so that the mean is exact."""
    generator = np.random.default_rng(size)
    updates = [generator.integers(-999, 999, size).astype(np.float32) for _ in range(3)]
    mean = RunningMean()
    for update, weight in zip(updates, (1, 2, 5), strict=True):
        mean.add({"w": update.reshape(1, -1)}, weight)
    expected = (updates[0] + 2 * updates[1] + 5 * updates[2]) / 8
    assert np.array_equal(mean.result()["w"], expected.reshape(1, -1))
