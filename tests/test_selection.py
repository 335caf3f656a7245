"""Which nodes take part is a matter of seed, round and name, not of the ids that a simulation draws anew."""

from __future__ import annotations

import json
import random

import hostile
import pytest
from builders import run_here, tiny_config
from flwr.proto.node_pb2 import NodeInfo

from fedskew.apps import make_client_app
from fedskew.federation.grids import LocalGrid
from fedskew.federation.selection import missing_names, told_apart


def chosen_partitions(id_seed: int, output) -> tuple[list[list[str]], bytes]:
    """Partitions that trained in each round, and the final model, with node ids drawn from `id_seed`."""
    ids = random.Random(id_seed).sample(range(10, 10**6), 5)
    configs = {node: {"partition-id": index, "num-partitions": 5} for index, node in enumerate(ids)}
    config = tiny_config(federation={"fraction": 0.4, "rounds": 3}, run={"output_dir": str(output)})
    folder = run_here(config, grid=LocalGrid(make_client_app(), 5, node_configs=configs))
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return [sorted(line["nodes"]) for line in lines[1:]], (folder.path / "model.safetensors").read_bytes()


def test_a_sampled_federation_is_repeatable_although_node_ids_are_random(tmp_path, generated):
    first, second = chosen_partitions(1, tmp_path / "a"), chosen_partitions(2, tmp_path / "b")
    assert first == second
    assert all(len(names) == 2 for names in first[0])
    assert len({tuple(names) for names in first[0]}) > 1, "other rounds choose other nodes"


@pytest.mark.parametrize(
    ("known", "connected", "missing"),
    [
        ({1: "site-a", 2: "site-b"}, {2: "site-b"}, ["site-a"]),
        ({1: "site-a", 2: "site-b"}, {2: "site-b", 3: "site-a"}, []),  # its key was replaced
        ({1: "site-a", 3: "site-a"}, {2: "site-b"}, ["site-a"]),  # gone, under both ids
        ({1: "node-0", 2: "node-1"}, {2: ""}, ["node-0"]),  # a simulation: no registered names
        ({1: "node-0", 2: "node-1"}, {1: "", 2: ""}, []),
        ({}, {1: "site-a"}, []),
    ],
)
def test_a_site_is_missing_if_it_is_there_under_no_id(known, connected, missing):
    assert missing_names(known, connected) == missing


def test_no_two_nodes_have_one_name():
    names = {1: "site-a", 2: "site-b", 7: "site-a"}
    assert told_apart(names) == {1: "site-a (node 1)", 2: "site-b", 7: "site-a (node 7)"}


class Registered(LocalGrid):
    """Nodes of the same names, of which the last attacks: Flower registers two keys under one name."""

    def __init__(self, app, names):
        super().__init__(app, len(names))
        self._names = dict(zip(self._configs, names, strict=True))

    def get_nodes(self):
        return [NodeInfo(node_id=node, name=name) for node, name in self._names.items()]


def test_nobody_is_judged_by_the_norm_of_another_of_its_name(tmp_path, generated):
    """A stolen key and the one that replaces it: the honest answer came last, and both were averaged by its norm."""
    grid = Registered(hostile.federation(hostile.huge, {1}), ["site-a", "site-b", "site-c", "site-b"])
    config = tiny_config(federation={"rounds": 1, "norm_bound": 3.0}, run={"output_dir": str(tmp_path)})
    line = run_here(config, grid=grid).records()[1]
    assert list(line["failed"]) == ["site-b (node 2)"]
    assert sorted(line["norms"]) == ["site-a", "site-b (node 2)", "site-b (node 4)", "site-c"]
    assert line["clients_ok"] == 3
    assert line["rolled_back"] is None


def test_nodes_that_call_themselves_the_same_are_told_apart_when_they_are_asked_for_their_names(tmp_path, generated):
    """A fraction of the nodes is chosen by names, which are asked for before the first round."""
    configs = {node: {"data-dir": str(generated)} | ({"name": name} if name else {})
               for node, name in ((1, "ham"), (2, "ham"), (3, "other"))}  # fmt: skip
    grid = LocalGrid(make_client_app(), 3, node_configs=configs)
    config = tiny_config(
        data={"clients": "own"}, federation={"rounds": 1, "fraction": 0.99}, run={"output_dir": str(tmp_path)}
    )
    line = run_here(config, grid=grid).records()[1]
    assert sorted(line["nodes"]) == ["ham", "ham (node 2)", "other"]
    assert sorted(line["norms"]) == sorted(line["nodes"])


def test_a_site_of_an_earlier_start_is_missing_too():
    assert missing_names({1: "site-a"}, {1: "site-a"}, ["site-a", "site-b"]) == ["site-b"]
    assert missing_names({}, {7: "site-b"}, ["site-a", "site-b"]) == ["site-a"]
