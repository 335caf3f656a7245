"""SIGKILL the server at twenty random moments: every time it resumes, and it ends with the undisturbed run's model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SETTINGS = (
    "data.generated-images=160 data.open=0.2 model.name=swin_micro_patch4_window4_32 train.batch-size=16 "
    "train.local-epochs=1 train.threads=1 run.threads=1 prune.batch-size=16 federation.rounds=6"
)


def test_a_run_killed_twenty_times_ends_with_the_same_model(tmp_path, generated):
    script = Path(__file__).with_name("killing.py")
    command = [sys.executable, str(script), str(tmp_path), "20", "7", SETTINGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["moments"]) == 20
    assert found["hashes"][0] == found["hashes"][1]
    assert found["rounds"] == list(range(7)), "each round has its line of metrics, once"
