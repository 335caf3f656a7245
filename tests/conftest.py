"""Shared fixtures: nothing is written outside pytest's temporary folders, one thread, one generated data set."""

import os
import signal

# before anything imports flwr
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import pytest
import torch
from builders import IMAGES, architecture, inputs, lively_model, run_here, tiny_config
from hypothesis import HealthCheck, settings

from fedskew.apps import make_client_app
from fedskew.federation.grids import LocalGrid
from fedskew.learning.datasets import open_data

settings.register_profile(
    "fedskew", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("fedskew")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job, whose children would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_homes(tmp_path_factory):
    """FEDSKEW_HOME and FLWR_HOME of the tests, never the person's own; one thread on a shared machine."""
    torch.set_num_threads(1)
    LocalGrid(make_client_app(), 1)  # Flower's messages can only be made inside a run; this grid is one
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("FEDSKEW_HOME", str(home))
        patch.setenv("FLWR_HOME", str(tmp_path_factory.mktemp("flwr")))
        yield home


@pytest.fixture(autouse=True)
def repeatable():
    """Every test draws the same random numbers in every order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def generated(own_homes):
    """Folder of the generated data set that `tiny_config()` uses."""
    data = open_data(tiny_config().data, 32)
    assert len(data.samples) == IMAGES
    return own_homes / "generated" / f"ham-shaped-{IMAGES}-0"


@pytest.fixture
def dense():
    """A small dense architecture of four stages, its model and a batch for it."""
    arch = architecture()
    return arch, lively_model(arch), *inputs(arch)


@pytest.fixture(scope="session")
def finished_run(generated, tmp_path_factory):
    """Run folder of two rounds with pruning and three nodes; tests must not change it."""
    return run_here(tiny_config(run={"output_dir": str(tmp_path_factory.mktemp("runs"))}))


@pytest.fixture(scope="session")
def dense_run(generated, tmp_path_factory):
    """The same with plain FedAvg."""
    return run_here(tiny_config(prune={"criterion": "none"}, run={"output_dir": str(tmp_path_factory.mktemp("runs"))}))
