"""Kill a simulated run at random moments and resume it, in forked processes so that imports are paid once.

    python killing.py OUTPUT_DIR KILLS SEED SETTINGS

Prints one line of JSON: the hashes of the undisturbed and of the disturbed run, and when each kill struck.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from fedskew.apps import simulate

NODES = 3


def start(run_config: dict[str, str]) -> int:
    """Run in a child process; returns its id."""
    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            simulate(run_config, NODES)
        except BaseException as error:  # noqa: BLE001 - a child that fails must say why
            Path(run_config.get("resume") or run_config["output-dir"], "error.txt").write_text(repr(error))
            os._exit(1)
        os._exit(0)
    return pid


def model_hash(folder: Path) -> str:
    """SHA-256 of the latest model."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def killed_run(output: Path, settings: str, kills: int, duration: float, chance: random.Random) -> list[float]:
    """Kill the run `kills` times at random moments; each time it is resumed, in the end it finishes."""
    moments: list[float] = []
    folder = output / "killed"
    first = {"preset": "demo", "set": f"{settings} run.name=killed", "output-dir": str(output)}
    while True:
        begun = folder.is_dir() and (folder / "config.yaml").is_file()
        pid = start({"resume": str(folder)} if begun else first)
        if len(moments) < kills:
            moments.append(chance.uniform(0.0, 1.2 * duration / (1 + kills / 6)))
            time.sleep(moments[-1])
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if not begun and folder.is_dir() and not (folder / "config.yaml").is_file():
                (folder / "checkpoints").rmdir()  # killed between making the folder and its first file
                for rest in folder.iterdir():
                    rest.unlink()
                folder.rmdir()
        else:
            _, status = os.waitpid(pid, 0)
            if status:
                raise SystemExit(f"the resumed run failed: {(folder / 'error.txt').read_text()}")
            return moments


def main(output: Path, kills: int, seed: int, settings: str) -> None:
    """Compare an undisturbed run with a killed one."""
    torch.set_num_threads(1)
    begun = time.monotonic()
    undisturbed = {"preset": "demo", "set": f"{settings} run.name=undisturbed", "output-dir": str(output)}
    _, status = os.waitpid(start(undisturbed), 0)
    if status:
        raise SystemExit(f"the undisturbed run failed: {(output / 'error.txt').read_text()}")
    duration = time.monotonic() - begun
    moments = killed_run(output, settings, kills, duration, random.Random(seed))
    rounds = [json.loads(line)["round"] for line in (output / "killed" / "metrics.jsonl").read_text().splitlines()]
    hashes = [model_hash(output / name) for name in ("undisturbed", "killed")]
    print(json.dumps({"hashes": hashes, "moments": moments, "duration": duration, "rounds": rounds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
