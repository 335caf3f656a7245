"""The compose demo to its end: credentials, SuperLink, proxy, three sites, a run with pruning, results on the host.

Marked `docker`. Needs a Docker engine (DOCKER_HOST, or the default socket) and docker-compose or the compose plug-in;
tests/containers/start-engine.sh starts an engine, tests/containers/build-images.sh builds the images, on a base made
here where no registry of images answers. FEDSKEW_IMAGE_TAG names images that are built already.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from containers.engine import Project, docker

from fedskew.ops.bundle import bundle_hash

DEMO_SECONDS = 1500
SITES = ("site-a", "site-b", "site-c")

pytestmark = pytest.mark.docker


class Demo(Project):
    """docker/compose.yaml; `runs` is the results' folder on the host."""

    def __init__(self, runs: Path) -> None:
        super().__init__("compose.yaml", "demo", RUNS=str(runs), PORT="0", IMAGES="48")
        self.runs = runs


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo, running."""
    demo = Demo(tmp_path_factory.mktemp("runs"))
    try:
        demo("up", "--detach", "--no-build", seconds=DEMO_SECONDS)
        yield demo
    finally:
        demo.down()


def test_the_demo_runs_to_its_end_and_leaves_its_results_on_the_host(demo):
    deadline = time.monotonic() + DEMO_SECONDS
    run = demo.container("run")
    while docker("inspect", "--format", "{{.State.Status}}", run) in ("created", "running"):
        assert time.monotonic() < deadline, demo("logs", "--no-color", "--tail", "30")
        time.sleep(2)
    assert docker("inspect", "--format", "{{.State.ExitCode}}", run) == "0", docker("logs", run)[-3000:]
    (folder,) = demo.runs.iterdir()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["round"] == 3
    assert records[-1]["parameters"] < records[0]["parameters"], "the model shrank"
    assert all(set(record["nodes"]) == set(SITES) and not record["failed"] for record in records[1:])
    assert (folder / "model.safetensors").stat().st_size > 10_000


def test_sites_have_no_way_out_but_the_coordinators_fleet_routes(demo):
    superlink = _address(demo, "superlink", "control")
    addresses = [("proxy", 8443), ("superlink", 8000), (superlink, 8000), ("192.0.2.1", 443), ("1.1.1.1", 443),
                 ("pypi.org", 443), ("site-b", 9094)]  # fmt: skip
    paths = ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/pull-task-input"]
    assert demo.reach("site-a", "proxy", addresses, paths) == ["open", *["closed"] * 6, 403, 403, 403]


def test_containers_have_no_rights(demo):
    code = (
        "import os, re\n"
        "def write(path):\n"
        "    try: open(path, 'w').close(); return 'written'\n"
        "    except OSError: return 'refused'\n"
        "status = open('/proc/self/status').read()\n"
        "print(os.getuid(), write('/root-file'), write('/data/x'), write('/site/x'), write('/opt/fedskew/x'),\n"
        "      *re.findall(r'CapBnd:\\s*(\\w+)|NoNewPrivs:\\s*(\\w)', status))\n"
    )
    found = demo.inside("site-a", code)
    assert found.split()[:5] == ["10001", "refused", "refused", "refused", "refused"]
    assert "0000000000000000" in found
    assert "'1'" in found


def test_the_audit_log_tells_of_the_bundle_and_every_answer(demo):
    lines = [
        json.loads(line) for line in docker("exec", demo.container("site-b"), "cat", "/state/audit.jsonl").splitlines()
    ]
    assert lines[0]["kind"] == "bundle"
    assert lines[0]["outcome"] == "allowed"
    assert [line["round"] for line in lines if line["kind"] == "train"] == [1, 2, 3]


def test_image_and_checkout_give_the_same_bundle_hash(demo, tmp_path):
    """So a site can compute the hash that it pins from either."""
    docker("cp", f"{demo.container('site-a')}:/opt/fedskew", str(tmp_path / "app"))
    assert docker("exec", demo.container("site-a"), "fedskew", "bundle-hash") == bundle_hash(tmp_path / "app")


def _address(demo: Demo, service: str, network: str) -> str:
    found = json.loads(docker("inspect", demo.container(service)))[0]["NetworkSettings"]["Networks"]
    return next(settings["IPAddress"] for name, settings in found.items() if name.endswith(network))
