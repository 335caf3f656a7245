"""What a run says at its start of the nodes' parts: which site is where, and images that nobody uses."""

from __future__ import annotations

import json

import pytest
from builders import run_here, tiny_config

from fedskew.learning.datasets import node_data, open_data, split_server
from fedskew.learning.manifest import run_manifest
from fedskew.runs.report import part_lines


def test_held_out_images_without_a_use_are_counted_and_said(generated, tmp_path, caplog):
    config = tiny_config(federation={"rounds": 1}, run={"output_dir": str(tmp_path)}, prune={"criterion": "none"})
    nodes = [node_data(config.data, 32, {"partition-id": i, "num-partitions": 3}) for i in range(3)]
    expected = sum(len(node.validation) for node in nodes)
    assert expected > 10, "the fixture"
    with caplog.at_level("INFO"):
        folder = run_here(config)
    assert json.loads((folder.path / "split.json").read_text())["unused_validation"] == expected
    said = " ".join(" ".join(caplog.messages).split())
    assert f"{expected} of the nodes' images are held out for validation (data.validation=0.2) and unused" in said


def test_images_that_the_nodes_evaluate_on_are_not_without_a_use(generated):
    config = tiny_config(federation={"evaluate_clients": True})
    data = open_data(config.data, 32)
    split = split_server(data, config.data)
    assert run_manifest(config, data, split, split.open[:2], 3)["unused_validation"] == 0


def test_nothing_is_said_where_they_are_used_or_there_are_none():
    assert list(part_lines(tiny_config(), (), 0)) == []
    own = tiny_config(data={"clients": "own"})
    assert "some of each node's images are held out" in next(part_lines(own, (), 0))
    assert list(part_lines(tiny_config(data={"clients": "own"}, federation={"evaluate_clients": True}), (), 0)) == []


@pytest.mark.parametrize(
    ("sites", "lines"),
    [
        ([["Nord"], ["Süd"]], ["sites: partition-0 = Nord, partition-1 = Süd"]),
        (
            [["Nord", "West"], ["Süd"]],
            ["sites: partition-0 = Nord + West, partition-1 = Süd",
             "WARNING: 2 nodes, but the data have 3 sites: sites are merged at one. For a node a site give --nodes 3"],
        ),
        (
            [["Nord"], ["Nord"], ["Süd"]],
            ["sites: partition-0 = Nord, partition-1 = Nord, partition-2 = Süd",
             "WARNING: 3 nodes, but the data have 2 sites: sites are divided among several. For a node a "
             "site give --nodes 2"],
        ),
    ],
)  # fmt: skip
def test_sites_are_named_at_their_nodes(sites, lines):
    assert list(part_lines(tiny_config(data={"partition": "site"}), sites, 0)) == lines


def test_a_run_by_site_says_which_is_where(generated, tmp_path, caplog):
    config = tiny_config(
        data={"partition": "site", "validation": 0.0}, federation={"rounds": 1}, prune={"criterion": "none"},
        run={"output_dir": str(tmp_path)},
    )  # fmt: skip
    with caplog.at_level("INFO"):
        folder = run_here(config, nodes=2)
    sites = json.loads((folder.path / "split.json").read_text())["sites"]
    names = sorted(name for part in sites for name in part)
    assert len(names) > 2, "the fixture: more sites than nodes"
    said = " ".join(" ".join(caplog.messages).split())
    assert f"partition-0 = {' + '.join(sites[0])}, partition-1 = {' + '.join(sites[1])}" in said
    assert f"WARNING: 2 nodes, but the data have {len(set(names))} sites" in said
    assert "held out for validation" not in said
