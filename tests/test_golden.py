"""Final models of whole runs, as hashes that were recorded before the code was rearranged: no move may change a bit.

A hash holds for one kind of processor and one version of torch; elsewhere the tests are skipped. `python
tests/test_golden.py` records those of the machine that it runs on, for code that is known to be right. That a real
`flwr run`, a resumed run and the in-process grid end with the same bytes is `test_flwr_run.py`'s and
`test_resume.py`'s to show.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from builders import run_here, tiny_config
from safetensors.torch import load_file

RECORD = Path(__file__).with_name("golden.json")

RUNS = {
    "skewness": {"federation": {"rounds": 3}},
    "block-by-block": {
        "prune": {"order": "block", "freeze": True, "thaw": True, "views": 2, "calibrate": False},
        "federation": {"rounds": 4, "upload": "trained"},
    },
    "moments": {
        "train": {"moments": "averaged", "warm_start_epochs": 1, "round_warmup": 2, "class_weights": "sqrt"},
        "prune": {"criterion": "l1-norm", "rule": "share", "share": 0.34, "min_parameters": 0.5},
        "federation": {"rounds": 3, "server_optimiser": "avgm", "server_momentum": 0.6},
    },
    "given-back": {
        "prune": {"criterion": "random", "rule": "match", "rollback": 0.01, "align": 8, "mlp_group": "width",
                  "first_round": 0},
        "run": {"seed": 3},
    },
    "emptied": {
        "prune": {"criterion": "skewness-reversed", "removed": "skip", "min_heads": 0, "rule": "share", "share": 1.0,
                  "min_macs": 0.3, "reading": "per-window"},
    },
    "median": {
        "model": {"stem": "conv", "image_only": True},
        "data": {"partition": "dirichlet", "alpha": 1.0},
        "train": {"proximal": 0.1, "class_counts": "global", "logit_adjustment": 0.5, "zoom": 0.1},
        "prune": {"reading": "mean", "mlp_activation": "after-gelu", "heads": False},
        "federation": {"aggregation": "median", "rounds": 2},
    },
    "mixed": {
        "train": {"mixup": 0.2, "cutmix": 0.2, "rand_augment": "rand-m5-n2-mstd0.5", "sampling": "sqrt",
                  "clip_norm": 0.5},
        "prune": {"criterion": "none"},
        "federation": {"weighting": "equal", "server_optimiser": "adam", "fraction": 0.67},
    },
}  # fmt: skip


def machine() -> str:
    """What the bits of a product depend on: the kind of processor and torch's version."""
    words = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    kind = [line.split(":", 1)[1].strip() for line in words if line.startswith(("cpu family", "model\t", "stepping"))]
    return (
        f"torch {torch.__version__.partition('+')[0]}, {torch.backends.cpu.get_cpu_capability()}, {'/'.join(kind[:3])}"
    )


def fingerprint(name: str, folder: Path) -> str:
    """SHA-256 of the final model of a run: names, shapes and bytes of its tensors, in the order of names."""
    run = run_here(tiny_config(**RUNS[name] | {"run": RUNS[name].get("run", {}) | {"output_dir": str(folder)}}))
    digest = hashlib.sha256()
    for key, tensor in sorted(load_file(run.path / "model.safetensors").items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_with_the_model_that_it_always_ended_with(name, generated, tmp_path):
    known = json.loads(RECORD.read_text()).get(machine())
    if known is None:
        pytest.skip(f"no hashes were recorded on a machine like this one ({machine()})")
    assert fingerprint(name, tmp_path) == known[name]


def record() -> None:
    """Write this machine's hashes into the record."""
    torch.set_num_threads(1)
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        known[machine()] = {name: fingerprint(name, Path(folder)) for name in RUNS}
    RECORD.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(record())
