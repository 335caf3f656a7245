"""Stands in for `python -m fedskew.cli.cell` in tests of the sweep: leaves a run folder behind in milliseconds.

What it does with a run is said by name in the file `behaviour.json` beside the run folders: `fail`, `hang`, `stop`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import yaml


def write(path: Path, text: str) -> None:
    """As real runs do: the old file or the new one, never half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def main() -> None:
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(3)), daemon=True).start()
    config = request["config"]
    folder = Path(config["run"]["output-dir"], config["run"]["name"])
    file = folder.parent / "behaviour.json"
    behaviour = json.loads(file.read_text()).get(folder.name, "") if file.is_file() else ""
    print(f"this is {folder.name} with {os.environ['OMP_NUM_THREADS']} threads", flush=True)
    folder.mkdir(exist_ok=True)
    write(folder / "config.yaml", yaml.safe_dump(config))
    write(folder / "split.json", json.dumps({"ids": {"parts": [[]] * request["nodes"]}}))
    if behaviour == "fail":
        print("\x1b[92mINFO\x1b[0m: before it\nthe reason why it failed", flush=True)
        sys.exit(7)
    if behaviour == "hang":
        child = subprocess.Popen(["sleep", "1000"])
        write(folder / "pids.json", json.dumps([os.getpid(), child.pid]))
        time.sleep(1000)
    rounds = config["federation"]["rounds"]
    lines = [
        {"round": number, "seconds": 1.5, "accuracy": 0.5, "balanced_accuracy": 0.25} for number in range(rounds + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stopped = "3 rounds below the quorum" if behaviour == "stop" else None
    summary = {"rounds": rounds, "stopped": stopped, "final": {"balanced_accuracy": 0.25}}
    write(folder / "summary.json", json.dumps(summary))


if __name__ == "__main__":
    main()
