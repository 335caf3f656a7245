"""The compose demo to its end: credentials, SuperLink, proxy, three sites, a run with pruning, results on the host.

Marked `docker`. Needs a Docker engine (DOCKER_HOST, or the default socket) and docker-compose or the compose plug-in;
tests/docker/start-engine.sh starts an engine, tests/docker/build-images.sh builds the images on a base made here where
no registry of images answers. FEDSKEW_IMAGE_TAG names images that are built already.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedskew.ops.bundle import bundle_hash

ROOT = Path(__file__).resolve().parents[1]
BUILD_SECONDS, DEMO_SECONDS = 1800, 1500
SITES = ("site-a", "site-b", "site-c")

pytestmark = pytest.mark.docker


def _engine() -> str:
    """Empty if an engine answers, else why the tests cannot run."""
    if not shutil.which("docker"):
        return "no docker command"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else f"no Docker engine: {(done.stderr or done.stdout).strip()[-200:]}"


def _compose() -> list[str]:
    """The plug-in, or docker-compose."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]


class Demo:
    """docker/compose.yaml under a project name of its own."""

    def __init__(self, tag: str, runs: Path) -> None:
        self.runs = runs
        self._environment = os.environ | {"TAG": tag, "RUNS": str(runs), "PORT": "0", "IMAGES": "48"}
        self._base = [
            *_compose(),
            "--file",
            str(ROOT / "docker" / "compose.yaml"),
            "--project-name",
            f"fs{os.getpid()}",
        ]

    def __call__(self, *words: str, check: bool = True, seconds: float = 600) -> str:
        done = subprocess.run([*self._base, *words], env=self._environment, capture_output=True, text=True,
                              timeout=seconds, check=False)  # fmt: skip
        assert done.returncode == 0 or not check, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def container(self, service: str) -> str:
        """Its id."""
        return self("ps", "-q", service).split()[-1]

    def inside(self, service: str, code: str) -> str:
        """What Python code prints in a running container."""
        return docker("exec", self.container(service), "python", "-c", code)


def docker(*words: str) -> str:
    """Output of a docker command."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True, timeout=600).stdout.strip()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo, running."""
    if why := _engine():
        pytest.skip(why)
    tag = os.environ.get("FEDSKEW_IMAGE_TAG", "")
    if not tag:
        tag, script = "test", ROOT / "tests" / "docker" / "build-images.sh"
        built = subprocess.run([script, tag], env=os.environ | {"PYTHON": sys.executable}, capture_output=True,
                               text=True, timeout=BUILD_SECONDS, check=False)  # fmt: skip
        assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    runs = tmp_path_factory.mktemp("runs")
    demo = Demo(tag, runs)
    try:
        demo("up", "--detach", "--no-build", seconds=DEMO_SECONDS)
        yield demo
    finally:
        demo("logs", "--no-color", check=False)
        demo("down", "--volumes", "--timeout", "5", check=False)


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
    code = (
        "import socket, ssl, urllib.request, urllib.error\n"
        "def tcp(host, port):\n"
        "    try: socket.create_connection((host, port), 4).close(); return 'open'\n"
        "    except OSError as error: return 'closed'\n"
        "def post(path):\n"
        "    request = urllib.request.Request('https://proxy:8443' + path, method='POST', data=b'')\n"
        "    context = ssl.create_default_context(cafile='/site/ca.crt')\n"
        "    try: return urllib.request.urlopen(request, timeout=9, context=context).status\n"
        "    except urllib.error.HTTPError as error: return error.code\n"
        f"print(tcp('proxy', 8443), tcp('superlink', 8000), tcp('{_address(demo, 'superlink', 'control')}', 8000),\n"
        "      tcp('192.0.2.1', 443), tcp('1.1.1.1', 443), tcp('pypi.org', 443), tcp('site-b', 9094),\n"
        "      post('/v1/control/start-run'), post('/v1/control/register-node'), post('/v1/runtime/pull-task-input'))\n"
    )
    words = demo.inside("site-a", code).split()
    assert words == ["open", *["closed"] * 6, "403", "403", "403"]


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
