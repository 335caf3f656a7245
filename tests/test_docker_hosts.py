"""Separate machines: compose.coordinator.yaml and, on two others, compose.site.yaml, to the end of a run.

Marked `docker`; see test_docker_demo.py for what it needs. The "machines" share one engine and nothing else: a site
reaches the coordinator's published port at the address of the host, through containers/relay.py.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path

import pytest
from containers.engine import Project, docker
from containers.relay import relay
from deployment.processes import free_port, wait_until

from fedskew.demo.generator import generate
from fedskew.ops.credentials import make_credentials

COORDINATOR, SITES, USER = "fl.example.org", ("site-a", "site-b"), 10001
SECONDS = 900
SETTINGS = (
    "model.name=swin_micro_patch4_window4_32 train.batch-size=16 train.local-epochs=1 train.lr=1e-3 train.threads=1 "
    "run.threads=1 prune.first-round=1 prune.steps-per-stage=1 prune.calibrate=true prune.batch-size=16 "
    "federation.rounds=2 federation.min-nodes=2 federation.quorum=2 federation.aggregation=mean federation.grace=0"
)
HEALTH = """
import urllib.error, urllib.request
try: print(urllib.request.urlopen("http://127.0.0.1:9094/health", timeout=9).read().decode())
except urllib.error.HTTPError as error: print(error.read().decode())
"""

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Coordinator and sites, running, the sites registered; and the folder with everybody's files."""
    folder = tmp_path_factory.mktemp("machines")
    port = free_port()
    make_credentials(folder / "pki", hosts=[COORDINATOR, "superlink", "localhost"], sites=SITES, days=2)
    for number, place in enumerate(("public", *SITES)):
        generate(folder / "data" / place, images=48, seed=number)
    (folder / "runs").mkdir()
    coordinator = Project("compose.coordinator.yaml", "hub", PKI=str(folder / "pki" / "coordinator"), PORT=str(port),
                          DATA=str(folder / "data" / "public"), RUNS=str(folder / "runs"))  # fmt: skip
    sites = {}
    with ExitStack() as stack:
        entry = stack.enter_context(relay(_host_address(), port))
        for site in SITES:
            (folder / "pki" / site / "policy.yaml").write_text("min-examples: 5\n")
            sites[site] = Project("compose.site.yaml", site, NAME=site, COORDINATOR=COORDINATOR,
                                  COORDINATOR_ADDRESS=f"{_host_address()}:{entry}", SITE=str(folder / "pki" / site),
                                  DATA=str(folder / "data" / site))  # fmt: skip
        _give(folder)
        for project in (coordinator, *sites.values()):
            stack.callback(project.down)
        coordinator("up", "--detach", "--no-build", seconds=SECONDS)
        coordinator.wait_healthy("proxy", SECONDS)
        for site in SITES:
            coordinator("run", "--rm", "admin", "flwr", "supernode", "register", f"/pki/{site}.pub", "hospital",
                        "--name", site)  # fmt: skip
            sites[site]("up", "--detach", "--no-build", seconds=SECONDS)
        for site in SITES:
            sites[site].wait_healthy("site", SECONDS)
        yield coordinator, sites, folder


def test_a_run_over_separate_machines(machines):
    coordinator, sites, folder = machines
    coordinator("run", "--rm", "admin", "fedskew", "run", "--preset", "hospitals", "--connection", "hospital",
                "--supervise", "--data-dir", "/data", "--output-dir", "/runs", "--set", SETTINGS,
                seconds=SECONDS)  # fmt: skip
    (run,) = (folder / "runs").iterdir()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == [0, 1, 2]
    assert all(set(record["nodes"]) == set(SITES) and not record["failed"] for record in records[1:])
    assert records[-1]["parameters"] < records[0]["parameters"]
    log = docker("exec", sites["site-b"].container("site"), "cat", "/state/audit.jsonl").splitlines()
    assert [json.loads(line)["kind"] for line in log] == ["train", "train"]


def test_the_gate_is_a_sites_only_way_out_and_leads_to_the_fleet_routes_only(machines):
    _, sites, _ = machines
    addresses = [(COORDINATOR, 8443), ("1.1.1.1", 443), ("pypi.org", 443), (_host_address(), 8000)]
    paths = ["/v1/control/start-run", "/v1/control/register-node"]
    assert sites["site-a"].reach("site", COORDINATOR, addresses, paths) == ["open", *["closed"] * 3, 403, 403]


def test_sites_outlive_an_outage_of_the_coordinator(machines):
    """Their gates take connections and hang up meanwhile, which Flower alone takes for a wrong certificate."""
    coordinator, sites, _ = machines
    started = {name: _started(site) for name, site in sites.items()}
    coordinator("stop", "proxy")
    for site in sites.values():
        wait_until(lambda site=site: "no contact with the coordinator" in site("logs", "site"), SECONDS, every=1)
    coordinator("start", "proxy")
    coordinator.wait_healthy("proxy", SECONDS)
    for site in sites.values():
        wait_until(lambda site=site: _seconds_since_contact(site) < 5, 60, every=1)
    assert {name: _started(site) for name, site in sites.items()} == started, "and none was started anew"


def _seconds_since_contact(site: Project) -> float:
    """By the site's own health, whether good or bad."""
    return json.loads(site.inside("site", HEALTH))["seconds-since-contact"]


def _started(site: Project) -> str:
    return docker("inspect", "--format", "{{.State.StartedAt}}", site.container("site"))


def _host_address() -> str:
    """The host as containers reach it; an engine that found its bridge there already names a subnet alone."""
    bridge = json.loads(docker("network", "inspect", "bridge", "--format", "{{json (index .IPAM.Config 0)}}"))
    return bridge.get("Gateway") or str(next(ip_network(bridge["Subnet"]).hosts()))


def _give(folder: Path) -> None:
    """Everything below belongs to the containers' user, and the way to it is open."""
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, USER, USER)
    folder.chmod(0o755)
