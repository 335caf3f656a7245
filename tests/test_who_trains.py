"""Four trainings of a run (warm start, nodes, the server's own step, teaching): each with its images and the recipe."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import run_here, tiny_config

from fedskew.config.schema import TrainConfig
from fedskew.data.batches import Augmentation
from fedskew.learning import local
from fedskew.learning.datasets import open_data
from fedskew.learning.initial import initial_model
from fedskew.learning.optimiser import STEPS

RECIPE = {
    "local_epochs": 2, "warm_start_epochs": 3, "warm_start_lr": 4e-4, "distil_epochs": 1, "distil_rounds": 1,
    "class_weights": "sqrt", "label_smoothing": 0.1, "sampling": "sqrt", "flips": False, "zoom": 0.1,
    "moments": "averaged",
}  # fmt: skip
SETTINGS = {
    "train": RECIPE,
    "model": {"drop_path": 0.3},
    "federation": {"rounds": 2, "norm_bound": 1e6},  # of one node nobody but the server can tell
    "prune": {"criterion": "skewness", "first_round": 2},
}


@pytest.fixture(scope="module")
def trainings(generated, tmp_path_factory):
    """What each training of a run with one node was given, in order; and the run's split."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        make, train = local.training_batches, local.train

        def spy_batches(data, indices, arch, config, seed):
            seen.append({"images": {data.samples[i].image_id for i in indices}, "seed": seed, "of_batches": config})
            return make(data, indices, arch, config, seed)

        def spy_train(model, batches, config, **given):
            rates = [module.drop_prob for module in model.modules() if hasattr(module, "drop_prob")]
            seen[-1] |= {"drop": max(rates, default=0.0), "config": config, **given}
            return train(model, batches, config, **given)

        patch.setattr(local, "training_batches", spy_batches)
        patch.setattr(local, "train", spy_train)
        folder = run_here(tiny_config(**SETTINGS, run={"output_dir": str(tmp_path_factory.mktemp("runs"))}), nodes=1)
    assert not any(record["failed"] or record["kept_model"] for record in folder.records())
    split = json.loads((folder.path / "split.json").read_text())
    ids = split["ids"]
    parts = {"open": set(ids["open"]) - set(split["held_back"]), "node": set(ids["parts"][0])}
    return seen, parts, folder


ORDER = ("warm start", "node", "own", "node", "own", "teaching")


def test_every_training_sees_the_images_that_it_may_see(trainings):
    seen, parts, _ = trainings
    assert len(seen) == len(ORDER)
    for who, given in zip(ORDER, seen, strict=True):
        if who == "node":  # some of its part are held out for validation
            assert given["images"] < parts["node"]
            assert len(given["images"]) == pytest.approx(0.8 * len(parts["node"]), abs=3)
        else:
            assert given["images"] == parts["open"], who


def test_every_training_has_the_recipe_and_the_stochastic_depth(trainings):
    seen, _, _ = trainings
    recipe = tiny_config(train=RECIPE).train
    differing = {"warm start": {"local_epochs": 3, "lr": 4e-4}, "teaching": {"local_epochs": 1}}
    for who, given in zip(ORDER, seen, strict=True):
        assert given["config"] == given["of_batches"] == replace(recipe, **differing.get(who, {})), who
        assert given["drop"] == pytest.approx(0.3), who
        assert (given["teacher"] is not None) == (who == "teaching")


def test_every_training_has_its_place_on_the_curve_and_a_seed_of_its_own(trainings):
    seen, _, _ = trainings
    assert [(given["round_number"], given["rounds"]) for given in seen] == [
        (1, 1),
        (1, 2),
        (1, 2),
        (2, 2),
        (2, 2),
        (2, 2),
    ]
    assert [given["seed"] for given in seen] == [
        local.local_seed(0, number, name)
        for number, name in ((0, "server"), (1, "partition-0"), (1, "server"), (2, "partition-0"), (2, "server"),
                             (2, "teacher"))
    ]  # fmt: skip


def test_the_servers_own_step_goes_on_where_the_nodes_do(trainings):
    seen, _, _ = trainings
    assert seen[0]["moments"] is None, "the warm start begins afresh"
    for node, own in ((seen[1], seen[2]), (seen[3], seen[4])):
        assert node["moments"].keys() == own["moments"].keys()
        assert all(torch.equal(tensor, own["moments"][name]) for name, tensor in node["moments"].items())
    assert float(seen[3]["moments"][STEPS]) > float(seen[1]["moments"][STEPS]) > 0


def test_the_class_weights_of_every_training_are_of_the_images_that_it_sees(trainings):
    seen, _, _ = trainings
    config = tiny_config()
    label = {sample.image_id: sample.label for sample in open_data(config.data, 32).samples}
    for who, given in zip(ORDER, seen, strict=True):
        labels = [label[image] for image in given["images"]]
        assert given["counts"].tolist() == [labels.count(name) for name in config.model.classes], who


@pytest.mark.parametrize("sampling", ["natural", "balanced"])
def test_an_epoch_of_training_draws_classes_as_it_is_told(generated, sampling):
    config = tiny_config(train={"sampling": sampling})
    data, (_, arch) = open_data(config.data, 32), initial_model(config)
    source = local.training_batches(data, data.usable, arch, config.train, seed=3)
    labels = np.concatenate([batch.labels.numpy() for _ in range(20) for batch in source])
    counts = np.bincount(labels, minlength=7)
    names = [data.samples[i].label for i in data.usable]
    of_data = np.array([names.count(name) for name in arch.classes])
    if sampling == "natural":
        assert counts.tolist() == (20 * of_data).tolist(), "each once an epoch"
    else:
        assert max(of_data) > 10 * min(of_data), "the case is worth testing"
        np.testing.assert_allclose(counts / counts.sum(), 1 / 7, atol=0.02)


def test_what_is_trained_on_is_augmented_and_only_as_asked(generated):
    config = tiny_config()
    data, (_, arch) = open_data(config.data, 32), initial_model(config)
    plain, mirrored = (
        torch.cat(
            [batch.images for batch in local.training_batches(data, data.usable, arch, TrainConfig(**OFF | on), 3)]
        )
        for on in ({}, {"flips": True})
    )
    forms = [[image.flip(axes) for axes in ((), (1,), (2,), (1, 2))] for image in plain]
    found = [
        [torch.equal(image, form) for form in four].index(True) for image, four in zip(mirrored, forms, strict=True)
    ]
    assert min(np.bincount(found, minlength=4)) > 20, "each of the four by and by"


OFF = {"flips": False, "quarter_turns": False, "colour": 0.0, "crop": False, "zoom": 0.0, "rand_augment": ""}


@pytest.mark.parametrize(
    "on", [{"flips": True}, {"quarter_turns": True}, {"colour": 0.2}, {"crop": True}, {"zoom": 0.1},
           {"rand_augment": "rand-m5-n2"}], ids=str,
)  # fmt: skip
def test_each_setting_of_the_augmentation_is_the_one_that_it_names(on):
    assert local.augmentation(TrainConfig(**OFF | on)) == Augmentation(**OFF | on)
