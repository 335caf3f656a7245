"""The open data's two parts: what trains or scores never judges, and no lesion is in both."""

from collections import Counter

import numpy as np
import pytest
from builders import tiny_config

from fedskew.config import ConfigError
from fedskew.data.batches import ImageBatches
from fedskew.data.samples import DataError
from fedskew.data.splits import check_disjoint
from fedskew.learning.datasets import divide_open, node_data, open_data, partitions, split_server
from fedskew.learning.initial import initial_model
from fedskew.learning.server_data import ServerData
from fedskew.methods import make_method
from fedskew.methods.base import Model


@pytest.fixture(scope="module")
def data(generated):
    return open_data(tiny_config().data, 32)


def server_of(opened, /, **overrides):
    config = tiny_config(**overrides)
    return ServerData(config, opened, split_server(opened, config.data))


def test_the_open_data_is_divided_by_lesion_and_class(data):
    config = tiny_config(data={"open": 0.5}).data
    opened = split_server(data, config).open
    training, held_back = divide_open(data, split_server(data, config), config)
    assert sorted([*training, *held_back]) == opened.tolist()
    check_disjoint(data.samples, training, held_back, unit="lesion")
    lesions = [{(data.samples[i].label, data.samples[i].lesion_id) for i in part} for part in (training, held_back)]
    assert len(lesions[1]) == pytest.approx(0.25 * len(lesions[0] | lesions[1]), abs=0.5)
    of_class = [Counter(label for label, _ in part) for part in lesions]
    for label in of_class[0]:
        assert of_class[1][label] == pytest.approx(0.25 * (of_class[0] + of_class[1])[label], abs=1), label
    assert len(lesions[0]) < len(training), "some lesions have several images"


def test_where_sites_have_their_own_data_the_server_s_are_shared_between_test_and_open_alone(data):
    """In the proportion of the two fractions, which no longer add up to 1 by themselves."""
    split = split_server(data, tiny_config(data={"clients": "own", "test": 0.1, "open": 0.3}).data)
    assert not len(split.clients)
    assert sorted([*split.test, *split.open]) == data.usable.tolist()
    lesions = [Counter(label for label, _ in {(data.samples[i].label, data.samples[i].lesion_id) for i in part})
               for part in (split.test, split.open)]  # fmt: skip
    for label, count in (lesions[0] + lesions[1]).items():
        assert lesions[0][label] == pytest.approx(0.25 * count, abs=1), label


@pytest.mark.parametrize("part", [{}, {"partition-id": 1, "num-partitions": 3}], ids=["whole", "part"])
def test_a_node_reads_its_own_folder_for_the_model_of_its_task(generated, tmp_path, part):
    config, known = tiny_config().data, (("sex", ("unknown", "female")),)
    asked = {"data-dir": str(generated), "cache-dir": str(tmp_path), **part}
    node = node_data(config, 48, asked, vocabularies=known)
    assert (node.data.place, node.data.vocabularies) == (str(generated), known)
    assert node.data.cached.path.is_relative_to(tmp_path)
    assert node.data.cached.images.shape[1:] == (54, 54, 3), "an eighth more than the model sees"
    given = partitions(node.data, split_server(node.data, config), config, 3)[1] if part else node.data.usable
    assert sorted([*node.train, *node.validation]) == sorted(given)
    assert len(node.validation) == pytest.approx(0.2 * len(given), abs=4)
    assert node.name == ("partition-1" if part else generated.name)
    with pytest.raises(DataError, match="this node has no data: give it data-dir='/absolute/path'"):
        node_data(config, 48, {"name": "a"})


def test_by_image_the_parts_are_exact_and_may_share_lesions(data):
    config = tiny_config(data={"open": 0.5, "split_by": "image", "held_back": 0.5}).data
    training, held_back = divide_open(data, split_server(data, config), config)
    assert abs(len(training) - len(held_back)) <= 1
    with pytest.raises(DataError, match="both in set"):
        check_disjoint(data.samples, training, held_back, unit="lesion")


@pytest.mark.parametrize("alpha", [0.05, 30.0])
def test_nodes_parts_are_as_skewed_as_data_alpha_says(data, alpha):
    config = tiny_config(data={"partition": "dirichlet", "alpha": alpha}).data
    split = split_server(data, config)
    shares = np.array([[sum(data.samples[i].label == name for i in part) for name in ("nv", "mel", "bkl")]
                       for part in partitions(data, split, config, 3)], dtype=float)  # fmt: skip
    shares /= shares.sum(0)  # of each class, by node: at the limits one node has all of it, or each a third
    largest = shares.max(0).mean()
    assert largest > 0.85 if alpha < 1 else largest < 0.5


def test_seeds_of_the_run_share_what_is_held_back_and_draw_their_own_scoring_images(data):
    first, second = server_of(data), server_of(data, run={"seed": 1})
    assert np.array_equal(first.held_back, second.held_back)
    assert len(first.scoring) == 16
    assert not np.array_equal(first.scoring, second.scoring)
    for server in (first, second):
        assert set(server.scoring) <= set(server.training)
        assert not set(server.held_back) & set(server.training)


def test_warm_start_and_scoring_see_no_image_held_back_and_rollback_and_judge_see_no_other(data, monkeypatch):
    seen = []
    real = ImageBatches.__init__

    def spy(self, images, indices, *args, **options):
        seen.append(set(np.asarray(indices).tolist()))
        real(self, images, indices, *args, **options)

    monkeypatch.setattr(ImageBatches, "__init__", spy)
    server = server_of(data, train={"warm_start_epochs": 1}, prune={"rollback": 0.1})
    held_back, training = set(server.held_back.tolist()), set(server.training.tolist())
    state, arch = initial_model(server.config)
    server.warm_start(state, arch)
    assert seen == [training]
    seen.clear()
    assert make_method(server.config).advance(Model(arch, state), 1, server).pruned
    assert seen[0] == set(server.scoring.tolist())
    assert seen[1:]
    assert all(images == held_back for images in seen[1:]), "the rollback's looks"
    seen.clear()
    found = server.evaluate(state, arch, 3)
    assert len(seen) == 2
    assert seen[0].isdisjoint(held_back | training), "the test set"
    assert seen[1] == held_back
    assert found.held_back["examples"] == len(held_back)
    assert found.metrics["examples"] == len(seen[0]) == len(found.predictions.images)
    assert found.predictions.round_number == 3


def test_too_little_to_judge_by_is_refused_with_the_keys_to_change(data):
    with pytest.raises(DataError, match=r"choosing the best round need .* 0 of 0 .*data\.held-back"):
        server_of(data, data={"held_back": 0.0})
    with pytest.raises(DataError, match=r"prune\.rollback need .*data\.held-back"):
        server_of(data, data={"held_back": 0.0}, federation={"evaluate_clients": True}, prune={"rollback": 0.1})
    with pytest.raises(DataError, match="of at least two classes"):
        server_of(data, data={"open": 0.02, "held_back": 0.1})


def test_nothing_need_be_held_back_where_the_nodes_judge_and_nothing_is_rolled_back(data):
    server = server_of(data, data={"held_back": 0.0}, federation={"evaluate_clients": True})
    assert not len(server.held_back)
    state, arch = initial_model(server.config)
    assert server.evaluate(state, arch).held_back is None
    server_of(data, data={"held_back": 0.0}, federation={"evaluate_clients": True},
              prune={"rollback": 0.1, "criterion": "none"})  # fmt: skip


def test_nodes_without_validation_images_cannot_be_asked_to_judge(data):
    with pytest.raises(ConfigError, match=r"data\.validation is 0.*federation\.evaluate-clients"):
        server_of(data, data={"validation": 0.0}, federation={"evaluate_clients": True})


def test_fewer_scoring_images_than_asked_for_are_said(data):
    server = server_of(data, prune={"batch_size": 1000})
    assert np.array_equal(np.sort(server.scoring), server.training)
    assert server.scoring_note.startswith(f"units are scored on all {len(server.training)} open images")
    assert server_of(data).scoring_note == ""
    assert server_of(data, prune={"batch_size": 1000, "criterion": "none"}).scoring_note == ""
