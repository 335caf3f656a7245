"""A real `flwr run . local-simulation`: a real SuperLink, Flower's simulation engine, the app as it is bundled."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from golden import fingerprint, recorded

from fedskew.apps import simulate
from fedskew.cli.superlink import is_healthy

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (
    "data.generated-images=160 data.open=0.2 model.name=swin_micro_patch4_window4_32 train.batch-size=16 "
    "train.threads=1 run.threads=1 prune.batch-size=16 prune.first-round=1 federation.rounds=2"
)
TOO_SLOW = ("Failed to start local SuperLink within", "node timed out during startup")  # of Flower, of Ray


def _fedskew(*words: str, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fedskew.cli.main import app; app()", *words]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture
def flower(tmp_path, own_homes):
    """Environment of a person who has just installed the project: an own Flower home, no connection yet.

    Flower's port for local SuperLinks is a free one: whoever holds 39091 on this machine is not met.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    (tmp_path / "work").mkdir()
    registered = _fedskew("setup", environment=environment, cwd=tmp_path)
    assert registered.returncode == 0, registered.stderr
    return environment


def test_flwr_run_prunes_resumes_and_equals_the_in_process_grid(flower, tmp_path, generated):
    work = tmp_path / "work"
    before = (ROOT / "pyproject.toml").read_bytes()
    words = ("run", "--preset", "demo", "--nodes", "3", "--set", SETTINGS)
    done = _fedskew(*words, environment=flower, cwd=work)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    (folder,) = (work / "runs").iterdir()  # under the directory where the command was typed
    messages = [line for line in done.stderr.splitlines() if "is still starting" not in line]  # on a busy machine
    assert messages[0].startswith("flwr run ")
    assert messages[1] == f"run folder: {folder}", "the first thing that a run says"
    assert "\x1b" not in done.stdout + done.stderr
    assert not any(word in done.stdout + done.stderr for word in ("WARNING", "Ray", "flwr 1.32", "Starting logstream"))
    assert done.stdout.count("after 2 rounds") == 1
    assert done.stdout.rstrip().endswith(str(folder)), "the wrapper ends with the table and the absolute path"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert lines[-1]["parameters"] < lines[0]["parameters"]
    assert lines[-1]["bytes_down"] < lines[1]["bytes_down"], "a smaller model is a smaller message"
    assert lines[-1]["clients_ok"] == 3
    assert (ROOT / "pyproject.toml").read_bytes() == before, "no file of the checkout is rewritten"

    here = simulate({"preset": "demo", "set": SETTINGS, "output-dir": str(tmp_path / "here")}, 3)
    assert (here.path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert fingerprint(folder) == recorded().get("flwr run", fingerprint(folder)), "as it always ended"

    shutil.rmtree(folder / "checkpoints" / "round-0002")  # as if the server had died in round 2
    latest = (folder / "model.safetensors").read_bytes()
    resumed = _fedskew("run", "--resume", str(folder), "--nodes", "3", environment=flower, cwd=work)
    assert resumed.returncode == 0, resumed.stdout[-4000:] + resumed.stderr[-2000:]
    assert "resuming after round 1 of 2" in resumed.stderr
    assert (folder / "model.safetensors").read_bytes() == latest
    assert not (tmp_path / "flwr" / "local-superlink").exists(), "its SuperLink was its own"


def test_bare_flwr_run_takes_the_default_number_of_nodes(flower, tmp_path, own_homes):
    """Flower's default is two simulated nodes; the run folder goes to the one documented place."""
    program = str(Path(sys.executable).with_name("flwr"))
    command = [program, "run", str(ROOT), "local-simulation", "--stream", "-c", f'set="{SETTINGS} run.name=bare"']
    bare = flower | {"PATH": "/usr/bin:/bin"}  # the environment is not activated: Flower finds its programs even so
    for _ in range(3):  # as the README says of a busy machine
        done = subprocess.run(command, env=bare, cwd="/", capture_output=True, text=True, timeout=400, check=False)
        if not any(words in done.stdout + done.stderr for words in TOO_SLOW):
            break
    folder = own_homes / "runs" / "bare"
    assert (folder / "summary.json").is_file(), done.stdout[-4000:] + done.stderr[-2000:]
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["clients_ok"] == 2
    ours = [line for line in done.stdout.splitlines() if line.startswith(("| ", "fedskew: "))]
    assert ours[0] == f"fedskew: run folder: {folder}"
    assert max(map(len, (line for line in ours if line.startswith("| ") and "run folder" not in line))) <= 80
    assert not any("\x1b" in line for line in ours)
    assert not (folder / ".progress").exists()

    (home, port) = (flower[f"FLWR_{name}"] for name in ("HOME", "LOCAL_SUPERLINK_HTTP_API_PORT"))
    assert is_healthy(port), "it stays, for further runs"
    stopped = _fedskew("stop", environment=flower, cwd=tmp_path)
    # Ray may still be ending
    said = rf"stopped the local SuperLink of {re.escape(home)} \(process \d+\)(, and its run)?\n"
    assert re.fullmatch(said, stopped.stdout)
    assert not is_healthy(port)
    again = _fedskew("stop", environment=flower, cwd=tmp_path)
    assert again.stdout == f"no local SuperLink of {home} is running\n"
