"""Copies by content: counted and named across labels, lesions and parts, in log and record, and nothing stops."""

import json
import logging

import numpy as np
import pytest
from builders import run_here, tiny_config
from PIL import Image

from fedskew.data.duplicates import duplicate_groups, duplicate_lines
from fedskew.data.notes import empty_classes
from fedskew.data.samples import Sample
from fedskew.learning.datasets import node_data, open_data


def sample(name, label="nv", lesion=None, patient=None):
    return Sample(name, lesion or name, label, None, None, None, None, f"{name}.jpg", patient)


def test_groups_of_equal_contents_in_the_order_of_their_first_images():
    contents = np.array([[1, 0], [0, 1], [1, 0], [7, 7], [0, 1], [1, 0], [0, 0], [0, 0]], np.uint8)
    assert duplicate_groups(contents, np.arange(8)) == ((0, 2, 5), (1, 4), (6, 7))
    assert duplicate_groups(contents, np.array([5, 4, 3, 0])) == ((0, 5),), "only of those that are asked for"
    assert duplicate_groups(contents, np.array([0, 1, 3])) == ()


def test_lines_name_what_a_copy_spoils():
    samples = [sample("a", lesion="L"), sample("b", lesion="L"), sample("c", "mel"), sample("d"), sample("e", "mel"),
               sample("f", patient="P"), sample("g", patient="P"), sample("h")]  # fmt: skip
    groups = ((0, 1), (2, 3, 4), (5, 6))
    parts = {"test": [0, 2], "open": [1], "partition-0": [5, 6], "partition-1": [3]}
    assert duplicate_lines(samples, groups, parts) == [
        "duplicates by content: 4 of 8 images are copies of others: a = b; c = d = e; f = g",
        "duplicates across labels: 1 of 3 groups of equal images: c (mel) = d (nv) = e (mel)",
        "duplicates across lesions or patients: 1 of 3 groups of equal images: c (c) = d (d) = e (e)",
        "duplicates across parts of the split: 2 of 3 groups of equal images: a (test) = b (open); "
        "c (test) = d (partition-1) = e (None)",
    ]
    assert len(duplicate_lines(samples, groups, {})) == 3
    assert len(duplicate_lines(samples, ((5, 6),), parts)) == 1, "one patient, one node: only counted"
    assert duplicate_lines(samples, (), parts) == []


def test_long_lists_are_cut_with_their_count():
    samples = [sample(str(i)) for i in range(10)]
    groups = tuple((i, i + 5) for i in range(5))
    assert duplicate_lines(samples, groups, {})[0].endswith("0 = 5; 1 = 6; 2 = 7; and 2 more groups")


def test_empty_classes_are_told_once():
    samples = [sample("a", "nv"), sample("b", "mel"), sample("c", "nv"), sample("d", "df")]
    usable, test = np.array([0, 1, 2]), np.array([0])
    assert empty_classes(samples, usable, test, ("nv", "mel", "df", "vasc")) == [
        "classes of model.classes with no image in the data: df, vasc",
        "classes of model.classes with no image in the test set, so without a recall: mel",
    ]
    assert empty_classes(samples, usable, usable, ("nv", "mel")) == []


# In a run


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """80 pictures in folders by class, the last twenty of `nv` being copies of the first twenty of `mel`."""
    path, random = tmp_path_factory.mktemp("spoilt"), np.random.default_rng(11)
    pictures = [random.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(60)]
    for number in range(80):
        label = "mel" if number < 30 else "nv"
        (path / label).mkdir(exist_ok=True)
        shown = pictures[number] if number < 60 else pictures[number - 60]
        Image.fromarray(shown).save(path / label / f"{number:02d}.png", optimize=number >= 60)
    return path


def test_a_run_goes_on_and_says_it_in_log_and_record(spoilt, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    config = tiny_config(
        data={"source": "folder", "dir": str(spoilt), "cache_dir": str(tmp_path), "test": 0.3},
        model={"classes": ("mel", "nv", "df"), "image_only": True}, prune={"criterion": "none"},
        federation={"rounds": 1}, run={"output_dir": str(tmp_path)},
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "flwr.fedskew.server"):
        folder = run_here(config, 2)
    record = json.loads((folder.path / "split.json").read_text())
    empty, count, labels, lesions, parts = record["warnings"]
    assert empty == "classes of model.classes with no image in the data: df"
    assert count.startswith("duplicates by content: 20 of 80 images are copies of others: mel/00.png = nv/60.png; ")
    assert labels.startswith("duplicates across labels: 20 of 20")
    assert lesions.startswith("duplicates across lesions or patients: 20 of 20")
    places = {name: place for place, names in
              ({"test": record["ids"]["test"], "open": record["ids"]["open"]}
               | {f"partition-{i}": names for i, names in enumerate(record["ids"]["parts"])}).items()
              for name in names}  # fmt: skip
    apart = [n for n in range(20) if places[f"mel/{n:02d}.png"] != places[f"nv/{n + 60}.png"]]
    assert apart, "or this shows nothing"
    assert parts.startswith(f"duplicates across parts of the split: {len(apart)} of 20")
    first = f"mel/{apart[0]:02d}.png ({places[f'mel/{apart[0]:02d}.png']})"
    assert first in parts
    logged = [entry.getMessage() for entry in caplog.records]
    assert [f"data: {line}" for line in record["warnings"]] == [line for line in logged if line.startswith("data: ")]
    assert folder.records()[-1]["round"] == 1


def test_a_site_hears_of_its_copies_once_in_its_own_log_and_tells_nobody(spoilt, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    config = tiny_config(data={"cache_dir": str(tmp_path)}).data
    with caplog.at_level(logging.WARNING, "flwr.fedskew.data"):
        nodes = [node_data(config, 32, {"data-dir": str(spoilt), "name": "site"}, vocabularies=()) for _ in range(2)]
    logged = [entry.getMessage() for entry in caplog.records]
    assert sum("duplicates by content: 20 of 80" in line for line in logged) == 1
    assert sum("nothing is known of lesions" in line for line in logged) == 1
    assert not any("duplicate" in note for note in nodes[0].data.notes), "notes go to the coordinator"


def test_the_generated_images_are_all_different(generated):
    assert open_data(tiny_config().data, 32).duplicates == ()
