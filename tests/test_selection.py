"""Which nodes take part is a matter of seed, round and name, not of the ids that a simulation draws anew."""

from __future__ import annotations

import json
import random

import pytest
from builders import run_here, tiny_config

from fedskew.federation.local_grid import LocalGrid
from fedskew.federation.selection import missing_names
from fedskew.federation.simulation import make_client_app


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


def test_a_site_of_an_earlier_start_is_missing_too():
    assert missing_names({1: "site-a"}, {1: "site-a"}, ["site-a", "site-b"]) == ["site-b"]
    assert missing_names({}, {7: "site-b"}, ["site-a", "site-b"]) == ["site-a"]
