"""A node key is revoked and replaced while a run is on, as docs/deployment.md says; marked `deployment`."""

from __future__ import annotations

import re

import pytest
from deployment.cluster import Cluster
from deployment.processes import wait_until

from fedskew.ops.credentials import make_credentials

pytestmark = pytest.mark.deployment
PATIENCE = 900  # seconds for anything that takes one: CI machines are slow when others use them


def test_a_key_is_revoked_and_replaced_while_a_run_is_on(tmp_path):
    """The old key opens nothing from then on, the others go on, and the site is back under its name with a new one."""
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start()
        site, *others = cluster.sites
        run = cluster.run("federation.rounds=40 federation.min-nodes=2")
        wait_until(lambda: len(cluster.records()) == 2, PATIENCE)
        assert set(cluster.records()[-1]["nodes"]) == set(cluster.sites)

        node_id = re.search(r"SuperNode ID: (\d+)", cluster.jobs[site].text())[1]
        done = cluster.flwr("supernode", "unregister", node_id, "hospital")
        assert done.returncode == 0, done.stdout + done.stderr
        wait_until(lambda: set(cluster.records()[-1]["nodes"]) == set(others), PATIENCE)
        if cluster.jobs[site].process.poll() is None:
            cluster.jobs[site].kill(children=True)
        refused = cluster.start_site(site)
        wait_until(lambda: refused.process.poll() is not None, PATIENCE)
        assert refused.process.returncode != 0
        assert "2004" in refused.text(), refused.tail()

        make_credentials(cluster.folder / "pki", hosts=[], sites=[site], days=2, force=True)
        cluster.register(site)
        cluster.restart_site(site)
        wait_until(lambda: site in cluster.records()[-1]["nodes"], PATIENCE)
        assert cluster.records()[-1]["failed"] == {}, "its answer is signed with the key that is registered now"
        new_id = re.search(r"SuperNode ID: (\d+)", cluster.jobs[site].text())[1]
        assert new_id != node_id
        cluster.flwr("stop", re.search(r"run (\d+) started", run.text())[1], "hospital")
        assert "stopped by hand" in (run.wait(PATIENCE), run.text())[1]
