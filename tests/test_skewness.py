"""Scores: skewness as in SciPy for every reading, of the norms that the paper's equations speak of."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedskew.model.groups import ATTENTION, SublayerKey
from fedskew.pruning.criteria import READINGS, make_criterion
from fedskew.pruning.criteria import skewness as summarise
from fedskew.pruning.decide import unwanted
from fedskew.pruning.moments import sample_shape
from fedskew.pruning.observe import Observation

KEY = SublayerKey(0, 0, ATTENTION)
SHIFTED = (0, 1)


def skewness(seen, *, reading):
    return summarise(seen, reading=reading).scores()


def oracle(norms, valid, reading):
    """Skewness of each unit by the words of the method's table, one unit at a time, with SciPy."""
    images, windows, positions, units = norms.shape
    scores = []
    for unit in range(units):
        values = norms[..., unit].astype(np.float64)
        if reading == "mean":
            sample = [
                np.mean([values[b, w, p] for b in range(images) for w in range(windows) if valid[w, p]])
                for p in range(positions)
                if valid[:, p].any()
            ]
        elif reading == "pool":
            sample = values[:, valid].ravel()
        elif reading == "first":
            sample = values[0, 0][valid[0]]
        else:
            each = [stats.skew(values[b, w][valid[w]]) for b in range(images) for w in range(windows)]
            scores.append(np.nanmean(each) if not np.isnan(each).all() else np.nan)
            continue
        scores.append(stats.skew(np.asarray(sample)))
    return np.array(scores)


@st.composite
def observations(draw):
    """Norms of any scale and shape, with windows that reach past the picture."""
    shape = [draw(st.integers(*bounds)) for bounds in ((1, 3), (1, 4), (2, 9), (1, 4))]
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind, scale = draw(st.sampled_from(["normal", "heavy", "few"])), draw(st.sampled_from([1e-3, 1.0, 1e4]))
    if kind == "few":
        norms = generator.integers(0, 3, shape).astype(np.float64)
    else:
        norms = np.abs(generator.normal(3, 1, shape)) if kind == "normal" else generator.exponential(1, shape) ** 3
    valid = generator.random(shape[1:3]) < draw(st.sampled_from([1.0, 0.7]))
    valid[:, :2] = True  # as in a picture, no window is empty
    return (norms * scale).astype(np.float32), valid


@pytest.mark.filterwarnings("ignore:Precision loss")
@pytest.mark.parametrize("reading", READINGS)
@settings(max_examples=60)
@given(observations())
def test_every_reading_equals_scipy(reading, seen):
    norms, valid = seen
    observation = Observation(KEY, torch.from_numpy(norms), torch.from_numpy(valid), ())
    found, expected = skewness(observation, reading=reading).numpy(), oracle(norms, valid, reading)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("reading", READINGS)
def test_many_images_and_units_equal_scipy_too(reading):
    """More than are worked on at once."""
    generator = np.random.default_rng(3)
    norms = generator.exponential(1, (9, 4, 16, 37)).astype(np.float32)
    valid = generator.random((4, 16)) < 0.8
    found = skewness(Observation(KEY, torch.from_numpy(norms), torch.from_numpy(valid), ()), reading=reading)
    np.testing.assert_allclose(found.numpy(), oracle(norms, valid, reading), atol=1e-5)


def test_what_lies_past_the_picture_does_not_count():
    norms, valid = torch.rand(2, 4, 9, 3), torch.rand(4, 9) > 0.4
    valid[:, 0] = True
    other = torch.where(valid[..., None], norms, torch.full_like(norms, 1e4))
    for reading in READINGS:
        first, second = (skewness(Observation(KEY, n, valid, ()), reading=reading) for n in (norms, other))
        torch.testing.assert_close(first, second, msg=f"reading {reading}")


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-30, 3e7])
def test_constant_norms_carry_no_information_and_their_unit_goes(reading, value):
    norms = torch.rand(2, 4, 9, 2)
    norms[..., 1] = value
    scores = skewness(Observation(KEY, norms, torch.ones(4, 9, dtype=torch.bool), ()), reading=reading)
    assert scores[0].isfinite()
    assert scores[1].isnan()
    assert unwanted(scores, "sign") >= 1


@pytest.mark.parametrize("reading", READINGS)
def test_norms_that_differ_by_float32_rounding_alone_are_constant(reading):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-1, 2, (4, 4, 16, 40), generator=generator) * torch.finfo(torch.float32).eps
    scores = skewness(Observation(KEY, 1 + noise, torch.ones(4, 16, dtype=torch.bool), ()), reading=reading)
    assert scores.isnan().all(), "the sign of rounding noise must not keep a unit"


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_norms_that_are_not_finite_carry_no_information(reading, value):
    norms = torch.rand(2, 4, 9, 2)
    norms[:, :, 0, 1] = value
    scores = skewness(Observation(KEY, norms, torch.ones(4, 9, dtype=torch.bool), ()), reading=reading)
    assert scores[0].isfinite()
    assert scores[1].isnan()
    assert unwanted(scores[1:], "sign") == 1


def test_small_and_large_samples_follow_the_formula():
    values = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    deviation = values - 3
    expected = (deviation**3).mean() / (deviation**2).mean() ** 1.5
    assert sample_shape(values).item() == pytest.approx(expected.item())
    symmetric = sample_shape(torch.tensor([[1.0], [2.0], [3.0]]))
    assert symmetric.item() == 0
    assert unwanted(symmetric, "sign") == 1, "keep if and only if above 0"


def test_an_unknown_reading_or_criterion_names_the_known_ones():
    seen = Observation(KEY, torch.rand(1, 1, 4, 2), torch.ones(1, 4, dtype=torch.bool), ())
    with pytest.raises(ValueError, match="per-window"):
        skewness(seen, reading="median")
    with pytest.raises(ValueError, match="l1-norm"):
        make_criterion("fisher", reading="mean", seed=0)
