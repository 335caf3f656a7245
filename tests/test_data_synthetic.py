"""The synthetic data: in HAM10000's shape, repeatable, and with nothing to learn from the background."""

import csv
import itertools
import multiprocessing
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fedskew.data.samples import HAM10000_CLASSES, DataError, encode_labels, unknown_values
from fedskew.data.sources import open_source
from fedskew.demo.generator import COLUMNS, MASKS, generate

IMAGES = 260


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("synthetic") / "set", images=IMAGES, seed=1, size=(60, 45))


@pytest.fixture(scope="module")
def pictures(made):
    """Pictures [N, 45, 60, 3] in [0, 1], masks [N, 45, 60], labels [N]."""
    source = open_source(made)
    images = np.stack([np.asarray(Image.open(made / s.image)) for s in source.samples]) / 255
    masks = np.stack([np.asarray(Image.open(made / MASKS / f"{s.image_id}_segmentation.png")) for s in source.samples])
    return images, masks, encode_labels(source.samples, HAM10000_CLASSES)


def test_it_opens_like_ham10000(made):
    source = open_source(made)
    assert len(source.samples) == IMAGES
    assert source.missing == ()
    assert unknown_values(source.samples) == {}
    with open(made / "HAM10000_metadata.csv", encoding="utf-8") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    assert {s.site for s in source.samples} == {"rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"}
    parts = Counter(s.image.split("/")[0] for s in source.samples)
    assert parts == {"HAM10000_images_part_1": IMAGES // 2, "HAM10000_images_part_2": IMAGES // 2}


def test_values_are_missing_as_in_the_real_table(tmp_path):
    made = open_source(generate(tmp_path / "set", images=250, seed=5, size=(32, 32))).samples
    assert any(s.age is None for s in made)
    assert any(s.sex is None for s in made)
    assert any(s.localization is None for s in made)


def test_classes_are_imbalanced_but_all_present(made):
    counts = Counter(s.label for s in open_source(made).samples)
    assert set(counts) == set(HAM10000_CLASSES)
    assert counts["nv"] > 0.5 * IMAGES
    assert min(counts.values()) >= 0.028 * IMAGES


def test_some_lesions_have_several_images_with_one_patient(made):
    samples = open_source(made).samples
    sizes = Counter(Counter(s.lesion_id for s in samples).values())
    assert 0.64 < sizes[1] / sum(sizes.values()) < 0.84
    assert set(sizes) <= {1, 2, 3, 4}
    assert len(sizes) >= 3
    facts = {(s.lesion_id, s.label, s.age, s.sex, s.localization, s.site) for s in samples}
    assert len(facts) == len({s.lesion_id for s in samples})


def test_ids_tell_nothing_of_the_class(made):
    labels = [s.label for s in open_source(made).samples]
    same = np.mean([a == b for a, b in itertools.pairwise(labels)])
    assert same < sum((c / IMAGES) ** 2 for c in Counter(labels).values()) + 0.1


def test_age_carries_some_signal(made):
    ages = {label: [s.age for s in open_source(made).samples if s.label == label and s.age] for label in ("nv", "bcc")}
    assert np.mean(ages["bcc"]) > np.mean(ages["nv"]) + 8


def test_masks_cover_the_lesion(pictures):
    _, masks, _ = pictures
    assert set(np.unique(masks)) == {0, 255}
    areas = (masks > 0).mean((1, 2))
    assert areas.min() > 0.02
    assert areas.max() < 0.8
    assert ((masks > 0)[:, 22, 30]).mean() > 0.9


def _nearest_mean(features, labels):
    """Balanced accuracy of a nearest-class-mean classifier, trained on even and tested on odd samples."""
    features = (features - features.mean(0)) / features.std(0)
    means = np.stack([features[::2][labels[::2] == c].mean(0) for c in range(7)])
    predicted = ((features[1::2, None] - means) ** 2).sum(-1).argmin(1)
    return np.mean([(predicted[labels[1::2] == c] == c).mean() for c in range(7) if (labels[1::2] == c).any()])


def test_the_background_says_nothing_and_the_lesion_much(pictures):
    images, masks, labels = pictures
    rim = np.ones((45, 60), bool)
    rim[4:-4, 4:-4] = False
    background = np.stack([image[rim & (mask == 0)].mean(0) for image, mask in zip(images, masks, strict=True)])
    inside = np.stack([image[mask > 0].mean(0) for image, mask in zip(images, masks, strict=True)])
    spread = np.stack([image[mask > 0].std(0) for image, mask in zip(images, masks, strict=True)])
    assert _nearest_mean(background, labels) < 1 / 7 + 0.10
    assert _nearest_mean(np.hstack([inside, inside - background, spread]), labels) > 0.40


def files(path):
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    one, two, other = (
        generate(tmp_path / name, images=12, seed=seed, size=(32, 32)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert files(one) == files(two) != files(other)


def test_what_is_there_is_not_made_again(tmp_path):
    path = generate(tmp_path / "set", images=8, seed=1, size=(32, 32))
    before = path.stat().st_mtime_ns
    assert generate(tmp_path / "set", images=8, seed=1, size=(32, 32)) == path
    assert path.stat().st_mtime_ns == before


def test_other_contents_are_never_overwritten(tmp_path):
    generate(tmp_path / "set", images=8, seed=1, size=(32, 32))
    with pytest.raises(DataError, match="holds something other"):
        generate(tmp_path / "set", images=9, seed=1, size=(32, 32))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("")
    with pytest.raises(DataError, match="holds something other"):
        generate(tmp_path / "own", images=8, seed=1)


def test_an_empty_folder_is_filled_and_debris_cleared(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / ".set.tmp-dead").mkdir()
    generate(tmp_path / "set", images=8, seed=1, size=(32, 32))
    assert len(open_source(tmp_path / "set").samples) == 8
    assert not list(tmp_path.glob(".set.tmp-*"))


def _make(path):
    generate(path, images=8, seed=1, size=(32, 32))


def test_two_processes_may_ask_for_the_same_set(tmp_path):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_make, args=(tmp_path / "set",)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert len(open_source(tmp_path / "set").samples) == 8


def test_seven_images_are_the_least(tmp_path):
    assert len(open_source(generate(tmp_path / "seven", images=7, seed=0, size=(32, 32))).samples) == 7
    with pytest.raises(DataError, match="at least 7 images"):
        generate(tmp_path / "six", images=6, seed=0)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        generate(tmp_path / "file" / "set", images=7, seed=0)
