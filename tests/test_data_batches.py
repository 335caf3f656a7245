"""Batches: shapes, order, repeatability, and that augmentation changes what it should and nothing else."""

import time

import numpy as np
import pytest
import torch

from fedskew.data.batches import Augmentation, ImageBatches, normalise
from fedskew.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, cache_size
from fedskew.data.samples import DataError

SIZE = 16
CACHED = cache_size(SIZE)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, CACHED, CACHED, 3), dtype=np.uint8)
METADATA = RNG.integers(0, 3, (50, 3))
LABELS = np.arange(50)  # so that a label names its image
INDICES = np.array([3, 1, 4, 15, 9, 2, 6, 5, 35, 8])
OFF = Augmentation(flips=False, quarter_turns=False, colour=0.0, crop=False)


def batches(**changes):
    arguments = {"batch_size": 4, "image_size": SIZE, "seed": None, "augmentation": None}
    return ImageBatches(IMAGES, INDICES, METADATA, LABELS, **(arguments | changes))


def pixels(images):
    """Back from the normalised to bytes: [B, S, S, 3]."""
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return ((images * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def centre(row):
    margin = (CACHED - SIZE) // 2
    return IMAGES[row, margin : margin + SIZE, margin : margin + SIZE]


def equal(one, two):
    return all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("size", "expected"), [(64, 72), (224, 252), (32, 36)])
def test_the_margin_is_an_eighth(size, expected):
    assert cache_size(size) == expected


def test_evaluation_is_in_order_and_central():
    got = list(batches())
    assert [len(b.labels) for b in got] == [4, 4, 2]
    assert torch.cat([b.labels for b in got]).tolist() == INDICES.tolist()
    assert torch.cat([b.metadata for b in got]).numpy().tolist() == METADATA[INDICES].tolist()
    assert got[0].images.shape == (4, 3, SIZE, SIZE)
    assert (got[0].images.dtype, got[0].metadata.dtype, got[0].labels.dtype) == (
        torch.float32, torch.int64, torch.int64)  # fmt: skip
    shown = np.concatenate([pixels(b.images) for b in got])
    assert np.array_equal(shown, np.stack([centre(row) for row in INDICES]))
    assert equal(got, list(batches()))


@pytest.mark.parametrize(("drop_last", "count"), [(False, 3), (True, 2)])
def test_length(drop_last, count):
    assert len(batches(drop_last=drop_last)) == len(list(batches(drop_last=drop_last))) == count


def test_no_indices_give_no_batches():
    assert list(ImageBatches(IMAGES, np.array([], int), METADATA, LABELS, batch_size=4, image_size=SIZE)) == []


def test_an_epoch_is_repeatable_and_differs_from_others():
    train = batches(seed=1, augmentation=Augmentation())
    first, second = list(train), list(train)
    assert not equal(first, second)
    again = batches(seed=1, augmentation=Augmentation())
    again.set_epoch(1)
    assert equal(list(again), second)
    again.set_epoch(0)
    assert equal(list(again), first)
    assert not equal(list(batches(seed=2, augmentation=Augmentation())), first)


def test_two_iterations_at_a_time_do_not_disturb_each_other():
    train = batches(seed=1, augmentation=Augmentation())
    first, second = zip(*zip(iter(train), iter(train), strict=True), strict=True)
    again = batches(seed=1, augmentation=Augmentation())
    assert equal(first, list(again))
    assert equal(second, list(again))


def test_training_shows_every_image_once():
    labels = torch.cat([b.labels for b in batches(seed=1, augmentation=Augmentation())])
    assert sorted(labels.tolist()) == sorted(INDICES.tolist())
    assert labels.tolist() != INDICES.tolist()


def test_a_seed_alone_only_shuffles():
    for batch in batches(seed=1, augmentation=OFF):
        for image, label in zip(pixels(batch.images), batch.labels, strict=True):
            assert np.array_equal(image, centre(label))


def test_turns_and_flips_give_the_eight_symmetries_equally_often():
    rows = np.tile([7], 4000)
    turning = Augmentation(flips=True, quarter_turns=True, colour=0, crop=False)
    shown = ImageBatches(IMAGES, rows, METADATA, LABELS, batch_size=500, image_size=SIZE, seed=0, augmentation=turning)
    forms = [np.rot90(m, k).tobytes() for k in range(4) for m in (centre(7), centre(7)[:, ::-1])]
    counts = np.zeros(8, int)
    for batch in shown:
        for image in pixels(batch.images):
            counts[forms.index(image.tobytes())] += 1
    assert counts.min() > 400


@pytest.mark.parametrize("on_a_device", [False, True], ids=["memory", "device"])
def test_turns_alone_are_turns_and_flips_alone_mirror_images(on_a_device):
    """Turns were the two diagonal mirror images where flips were off."""
    rows = np.tile([7], 2000)
    turned = [np.rot90(centre(7), k).tobytes() for k in range(4)]
    mirrored = [centre(7)[::down, ::right].tobytes() for down in (1, -1) for right in (1, -1)]
    for settings, forms in (({"quarter_turns": True}, turned), ({"flips": True}, mirrored)):
        only = Augmentation(**({"flips": False, "quarter_turns": False, "colour": 0, "crop": False} | settings))
        shown = ImageBatches(IMAGES, rows, METADATA, LABELS, batch_size=500, image_size=SIZE, seed=0, augmentation=only,
                             resident=torch.from_numpy(IMAGES) if on_a_device else None)  # fmt: skip
        counts = np.zeros(4, int)
        for batch in shown:
            for image in pixels(batch.images):
                counts[forms.index(image.tobytes())] += 1
        assert counts.min() > 400


def test_crops_reach_every_place():
    rows = np.tile([7], 500)
    cropping = Augmentation(flips=False, quarter_turns=False, colour=0, crop=True)
    shown = ImageBatches(IMAGES, rows, METADATA, LABELS, batch_size=50, image_size=SIZE, seed=0, augmentation=cropping)
    margin = CACHED - SIZE + 1
    places = {IMAGES[7, y : y + SIZE, x : x + SIZE].tobytes() for y in range(margin) for x in range(margin)}
    seen = {image.tobytes() for batch in shown for image in pixels(batch.images)}
    assert seen == places


def test_colour_jitter_is_brightness_saturation_and_contrast():
    grey = torch.full((200, 4, 4, 3), 128, dtype=torch.uint8)
    changed = normalise(grey, 0.3, np.random.default_rng(0))
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    shown = (changed * std + mean) * 255 / 128  # a uniform grey only knows brightness
    assert torch.allclose(shown, shown[:, :1, :1, :1].expand_as(shown), atol=1e-4)
    assert 0.7 <= shown.min() < 0.75
    assert 1.25 < shown.max() <= 1.3
    coloured = torch.from_numpy(IMAGES[:20])
    assert not torch.allclose(normalise(coloured, 0.3, np.random.default_rng(0)), normalise(coloured), atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": CACHED + 1}, "must lie in 1..18"),
        ({"batch_size": 0}, "at least 1"),
        ({"augmentation": Augmentation()}, "needs a seed"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(DataError, match=message):
        batches(**changes)


def test_arrays_that_do_not_fit():
    with pytest.raises(DataError, match=r"uint8 \[N, C, C, 3\]"):
        ImageBatches(IMAGES[..., 0], INDICES, METADATA, LABELS, batch_size=4, image_size=SIZE)
    with pytest.raises(DataError, match=r"metadata \[50, V\] .* got \[4, 3\]"):
        ImageBatches(IMAGES, INDICES, METADATA[:4], LABELS, batch_size=4, image_size=SIZE)
    with pytest.raises(DataError, match=r"0\.\.49"):
        ImageBatches(IMAGES, np.array([50]), METADATA, LABELS, batch_size=4, image_size=SIZE)
    with pytest.raises(DataError, match="colour jitter 1"):
        Augmentation(colour=1)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_batches_cost_little_beside_a_training_step():
    images = RNG.integers(0, 256, (1000, 72, 72, 3), dtype=np.uint8)
    train = ImageBatches(images, np.arange(1000), np.zeros((1000, 3), int), np.zeros(1000, int),
                         batch_size=32, image_size=64, seed=0, augmentation=Augmentation())  # fmt: skip
    costs = []
    for _ in range(3):
        start = time.thread_time()  # whatever else the machine does meanwhile does not count
        assert sum(1 for _ in train) == len(train)
        costs.append(time.thread_time() - start)
    assert 1000 / min(costs) > 3000  # a training step manages about 300 images a second on two cores


@pytest.mark.parametrize("augmentation", [None, OFF, Augmentation(), Augmentation(zoom=0.2, rand_augment="rand-m5-n2")])
def test_batches_made_where_the_images_lie_are_the_same(augmentation):
    """What an accelerator computes from a resident data set, computed here."""
    seed = None if augmentation is None else 3
    usual, resident = (batches(seed=seed, augmentation=augmentation, resident=images)
                       for images in (None, torch.from_numpy(IMAGES)))  # fmt: skip
    for _ in range(3):
        assert equal(list(usual), list(resident))
