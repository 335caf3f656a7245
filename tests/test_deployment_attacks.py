"""What somebody who reaches the coordinator's public port can do to a federation: hang up on it, crowd it, bend paths.

Each test has a cluster of real processes of its own (tests/deployment/cluster.py); marked `deployment`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
from deployment.cluster import ROOT, Cluster, namespaces_work
from deployment.processes import wait_until
from deployment.wire import read_wire

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
CROWD, GATE = 3000, 64  # connections that are tried, and that nginx.conf leaves to an address
# Some get through their TLS handshake and half of a request's header, most send half of a handshake, which costs
# nothing; all are held, and made again every few seconds.
FLOOD = """
import resource, select, socket, ssl, sys, time
number = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (2 * number, 2 * number))
host, port = sys.argv[1].rsplit(":", 1)
context = ssl._create_unverified_context()
def half(position):
    try:
        line = socket.create_connection((host, int(port)), 5)
        if position % 100:
            line.send(b"\\x16\\x03\\x01\\x02")
            return line
        line = context.wrap_socket(line)
        line.send(b"POST /v1/fleet/pull-messages HTTP/1.1\\r\\nHost: fleet\\r\\nFlwr-")
        return line
    except OSError:
        return None
held = []
while True:
    held.clear()
    held += [line for line in map(half, range(number)) if line]
    time.sleep(1)
    closed = select.poll()
    for line in held: closed.register(line, select.POLLIN)
    print("held", len(held) - len(closed.poll(0)), flush=True)
    time.sleep(4)
"""
IMPORTED = 2.5  # CPU seconds of an app's process: what it needs to start is about to end


def test_a_port_that_hangs_up_costs_no_site_and_no_finished_answer(tmp_path):
    """First for as long as an answer waits, then for so long that the SuperLink takes the sites for gone."""
    with Cluster(tmp_path / "cluster", sites=2) as cluster:
        cluster.start()
        run = cluster.run(f"{TWO} federation.rounds=3")
        hang_up(cluster, finished=1, until=lambda: answers(cluster) == 2, seconds=8)
        wait_until(lambda: all("Sent successfully" in job.text() for job in sites(cluster)), BACK)
        wait_until(lambda: len(cluster.records()) >= 2, PATIENCE)
        assert cluster.records()[1]["failed"] == {}, "both answers were delivered"

        hang_up(cluster, finished=2, until=lambda: statuses(cluster) == [503, 503], seconds=GONE)
        wait_until(lambda: statuses(cluster) == [200, 200], BACK)
        wait_until(lambda: len(cluster.records()) >= 3, PATIENCE)
        assert set(cluster.records()[2]["failed"]) == set(cluster.sites), "too late for this round"
        assert run.wait(PATIENCE) == 0, run.tail()
        last = cluster.records()[-1]
        assert (last["round"], last["clients_ok"], last["failed"]) == (3, 2, {}), "the next one has them again"
        assert all(job.process.poll() is None for job in sites(cluster)), "the processes that were there at the start"


def test_one_address_cannot_crowd_out_the_others(tmp_path):
    """Half-sent headers, 3,000 connections at a time, from a run's beginning to its end; then against the firewall."""
    with Cluster(tmp_path / "cluster", sites=3) as cluster:
        cluster.start_superlink()
        cluster.start_proxy()
        *others, attacker = cluster.sites
        for site in others:
            cluster.register(site)
            cluster.start_site(site)
        flood = cluster.spawn("flood", attacker, [sys.executable, "-c", FLOOD, cluster.public, str(CROWD)])
        wait_until(lambda: "held" in flood.text(), PATIENCE)
        # who is crowded out is hung up on at once: patience only forgives a busy machine
        run, answered = cluster.run(f"{TWO} federation.rounds=2 federation.round-deadline=900"), []
        while run.process.poll() is None:
            answered.append(cluster.answers(cluster.public, others[0], BACK))
            time.sleep(1)
        assert run.wait(1) == 0, run.tail()
        assert answered, "asked while it went on"
        assert all(answered), f"/health failed {answered.count(False)} times of {len(answered)}"
        assert [(record["clients_ok"], record["failed"]) for record in cluster.records()[1:]] == [(2, {})] * 2
        assert flood.process.poll() is None, flood.tail()
        assert "10.77.0.13" in {row["address"] for row in read_wire(cluster.wire_log)}, "who it was stands in the log"
        assert max(map(int, re.findall(r"held (\d+)", flood.text()))) <= GATE

        guide = coordinator_firewall()
        inside = ["ip", "netns", "exec", f"{cluster.prefix}-coord", "nft"]
        subprocess.run([*inside, "-f", "-"], input=guide, text=True, check=True)
        wait_until(lambda: refused(inside) > CROWD / 2, PATIENCE)
        assert cluster.answers(cluster.public, others[0], BACK), "with the guide's firewall too"


def coordinator_firewall() -> str:
    """The rules of docs/deployment.md as they stand there."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    lines = text[text.index("table inet coordinator {") :].splitlines()
    return "\n".join(lines[: next(number for number, line in enumerate(lines) if line.strip() == "}") + 1])


def refused(nft: list[str]) -> int:
    """Connections that the firewall's limit turned away."""
    rules = subprocess.run([*nft, "list", "table", "inet", "coordinator"], capture_output=True, text=True, check=True)
    return sum(int(number) for number in re.findall(r"ct count over \d+ \} counter packets (\d+)", rules.stdout))


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
