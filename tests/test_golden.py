"""Final models of whole runs, as hashes that were recorded before the code was rearranged: no move may change a bit.

A hash holds for one kind of processor and one version of torch; elsewhere the tests are skipped. `python
tests/test_golden.py` records those of the machine that it runs on, for code that is known to be right. That of a real
`flwr run` is `test_flwr_run.py`'s to hold; that a federation whose SuperLink is killed ends with the bytes of one that
was left alone, `test_deployment_faults.py`'s.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from builders import run_here, tiny_config
from golden import RECORD, fingerprint, machine, recorded
from test_flwr_run import SETTINGS

from fedskew.apps import make_client_app, run_on, simulate
from fedskew.federation.grids import LocalGrid

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


def whole_run(name: str, folder: Path) -> Path:
    """One of the runs, in `folder`."""
    settings = RUNS[name] | {"run": RUNS[name].get("run", {}) | {"output_dir": str(folder)}}
    return run_here(tiny_config(**settings)).path


@pytest.fixture
def known():
    """The hashes of machines like this one."""
    if not (found := recorded()):
        pytest.skip(f"no hashes were recorded on a machine like this one ({machine()})")
    return found


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_with_the_model_that_it_always_ended_with(name, known, generated, tmp_path):
    assert fingerprint(whole_run(name, tmp_path)) == known[name]


def test_so_does_one_whose_server_died_in_the_last_round(known, generated, tmp_path):
    run = whole_run("moments", tmp_path)
    shutil.rmtree(run / "checkpoints" / "round-0003")
    (run / "model.safetensors").unlink()
    run_on(LocalGrid(make_client_app(), 3), {"resume": str(run)})
    assert fingerprint(run) == known["moments"]


def record() -> None:
    """Write this machine's hashes into the record."""
    torch.set_num_threads(1)
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        found = {name: fingerprint(whole_run(name, Path(folder))) for name in RUNS}
        real = {"preset": "demo", "set": SETTINGS, "output-dir": folder}
        known[machine()] = found | {"flwr run": fingerprint(simulate(real, 3).path)}
    RECORD.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(record())
