"""What somebody who reaches the coordinator's public port can do to a federation: hang up on it, crowd it, bend paths.

Each test has a cluster of real processes of its own (tests/deployment/cluster.py); marked `deployment`.
"""

from __future__ import annotations

import sys
import time

import pytest
from deployment.cluster import Cluster, namespaces_work
from deployment.processes import wait_until

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(bool(namespaces_work()), reason=f"sites as network namespaces: {namespaces_work()}"),
]
PATIENCE = 900  # seconds for anything that takes one: CI machines are slow when others use them
BACK = 60  # seconds in which everything works again
TWO = "federation.min-nodes=2 federation.quorum=2"
GONE = 60  # seconds after its last heartbeat in which the SuperLink still takes a site to be there
HANG_UP = """
import socket, sys
host, port = sys.argv[1].rsplit(":", 1)
with socket.create_server((host, int(port))) as listener:
    while True: listener.accept()[0].close()
"""
IMPORTED = 2.5  # CPU seconds of an app's process: what it needs to start is about to end


def test_a_port_that_hangs_up_costs_no_site_and_no_finished_answer(tmp_path):
    """First for as long as an answer waits, then for so long that the SuperLink takes the sites for gone."""
    with Cluster(tmp_path / "cluster", sites=2) as cluster:
        cluster.start()
        run = cluster.run(f"{TWO} federation.rounds=3")
        hang_up(cluster, finished=1, until=lambda: answers(cluster) == 2, seconds=8)
        wait_until(lambda: all("Sent successfully" in job.text() for job in sites(cluster)), BACK)
        wait_until(lambda: len(cluster.records()) == 2, PATIENCE)
        assert cluster.records()[-1]["failed"] == {}, "both answers were delivered"

        hang_up(cluster, finished=2, until=lambda: statuses(cluster) == [503, 503], seconds=GONE)
        wait_until(lambda: statuses(cluster) == [200, 200], BACK)
        wait_until(lambda: len(cluster.records()) == 3, PATIENCE)
        assert set(cluster.records()[-1]["failed"]) == set(cluster.sites), "too late for this round"
        assert run.wait(PATIENCE) == 0, run.tail()
        last = cluster.records()[-1]
        assert (last["round"], last["clients_ok"], last["failed"]) == (3, 2, {}), "the next one has them again"
        assert all(job.process.poll() is None for job in sites(cluster)), "the processes that were there at the start"


def hang_up(cluster: Cluster, *, finished: int, until, seconds: float) -> None:
    """While both sites work on the round after `finished` records: the proxy gone, connections taken and closed."""
    wait_until(lambda: len(cluster.records()) == finished, PATIENCE)
    wait_until(lambda: all(cluster.task_seconds(site) > IMPORTED for site in cluster.sites), PATIENCE, every=0.05)
    cluster.jobs["proxy"].kill(children=True)
    start = time.monotonic()
    attacker = cluster.spawn("attacker", "coordinator", [sys.executable, "-c", HANG_UP, cluster.public])
    wait_until(lambda: until() and time.monotonic() - start > seconds, PATIENCE)
    attacker.kill()
    cluster.start_proxy()


def sites(cluster: Cluster) -> list:
    return [cluster.jobs[site] for site in cluster.sites]


def answers(cluster: Cluster) -> int:
    """How many sites have an answer that they cannot deliver."""
    return sum("Sending: train" in job.text() for job in sites(cluster))


def statuses(cluster: Cluster) -> list[int]:
    """Of the sites' own /health."""
    return [cluster.health(site) for site in cluster.sites]
