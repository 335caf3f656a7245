"""Several hosts for real: SuperLink with TLS and node authentication behind nginx, three sites with their own data.

Marked `deployment`: minutes, not seconds. As root with iproute2, nftables and nginx every site is a network namespace.
"""

from __future__ import annotations

import json

import pytest
from deployment.cluster import Cluster

from fedskew.site.audit import verify_audit

pytestmark = pytest.mark.deployment


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three sites that pin the app, running."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        running.start()
        yield running


def test_a_whole_run_over_three_sites_with_their_own_data(cluster):
    run = cluster.run("federation.aggregation=median federation.quorum=3")  # the preset's own
    assert run.wait(900) == 0, run.tail()
    folder, records = cluster.run_folder(), cluster.records()
    assert [record["round"] for record in records] == [0, 1, 2, 3]
    assert all(record["clients_ok"] == 3 and not record["failed"] for record in records[1:])
    assert set(records[1]["nodes"]) == set(cluster.sites), "by the names they are registered under"
    assert "require-signatures: true" in (folder / "config.yaml").read_text(), "so every answer was signed and verified"
    assert all(record["strangers"] == [] and record["rolled_back"] is None for record in records)
    assert records[-1]["parameters"] < records[0]["parameters"], "pruned"
    assert records[-1]["bytes_down"] < records[1]["bytes_down"], "so less is sent"
    split = json.loads((folder / "split.json").read_text())
    assert split["data"] == str(cluster.folder / "data" / "public")
    for site in cluster.sites:
        state = verify_audit(cluster.folder / site / "audit.jsonl")
        assert state.entries >= 4, "the bundle and three answers"
