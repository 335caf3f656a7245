"""docs/deployment.md, typed from its first command to a finished run on three empty Debians with systemd.

Marked `docker`: scripts/walk_guide.py says what is real there and what is not. FEDSKEW_WHEELS names a folder with all
wheels of `locks/`, where fetching them is too slow.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from containers.engine import ROOT, no_engine

from fedskew.site.audit import verify_audit

SECONDS = 3600  # most of it goes into fetching packages

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """What was said, and the folder with what coordinator and sites have kept."""
    if why := no_engine():
        pytest.skip(why)
    if os.geteuid() or not shutil.which("debootstrap"):
        pytest.skip("an empty Debian is made by debootstrap, as root")
    if not (ROOT / ".git").exists():
        pytest.skip("the guide's machines clone this checkout, which is none")
    folder = tmp_path_factory.mktemp("walk")
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-u", ROOT / "scripts" / "walk_guide.py", "--out", folder / "out"]
        command += ["--wheels", wheels] if (wheels := os.environ.get("FEDSKEW_WHEELS", "")) else []
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=SECONDS, check=False)
    said = (folder / "log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, said[-6000:]
    return said, folder / "out"


def test_every_command_of_the_guide_works_and_the_run_is_finished(walked):
    _, folder = walked
    (run,) = (folder / "coordinator" / "runs").iterdir()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == [0, 1, 2]
    assert all(set(record["nodes"]) == {"site-a", "site-b"} and not record["failed"] for record in records[1:])
    assert records[-1]["parameters"] < records[0]["parameters"], "pruned"
    assert (run / "model.safetensors").stat().st_size > 10_000


def test_doctors_find_no_fault_and_look_at_the_logs_that_the_services_write(walked):
    said, folder = walked
    assert "\nFAIL " not in said
    assert said.count("0 problems, ") == 6, "twice at the coordinator and at each site"
    for site in ("site-a", "site-b"):
        state = verify_audit(folder / site / "audit.jsonl")
        assert state.entries >= 3, "the bundle and two answers"
        assert f"/var/lib/fedskew/audit.jsonl: {state.entries} entries, chain whole" in said
