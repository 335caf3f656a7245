"""`train.precision`: what is computed in, where that is fast, and that logs, records and comparisons say it."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from builders import architecture, inputs, lively_model, run_here, tiny_config
from test_site_mod import ask  # noqa: F401  a fixture

from fedskew.apps import make_client_app
from fedskew.config import load_config
from fedskew.config.schema import TrainConfig
from fedskew.federation.grids import LocalGrid
from fedskew.federation.server import FederatedRun
from fedskew.learning.precision import choose_precision, has_bfloat16, precision_in_words, slow_precision
from fedskew.learning.train import autocast
from fedskew.runs.resume import open_checkpoint, resume_config
from fedskew.runs.start_checks import doubtful_settings
from fedskew.runs.starts import read_changes
from fedskew.tools.compare import read_runs
from fedskew.tools.fairness import warnings_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """A machine with or without instructions for bfloat16, in its CPU (either kind) or its GPU."""

    def make(*, amx=False, avx512=False, gpu=False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or gpu)

    return make


def test_this_cpu_is_asked_for_the_instructions_that_the_kernel_lists():
    """Against /proc/cpuinfo, where there is one; on other machines that the two questions can still be asked."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = set(next(line for line in lines if line.startswith("flags")).split())
    except (OSError, StopIteration):
        assert has_bfloat16(CPU) in (True, False)
        return
    assert has_bfloat16(CPU) == bool(flags & {"amx_tile", "avx512_bf16"})


@pytest.mark.parametrize(
    ("has", "setting", "on_cpu", "on_gpu"),
    [
        ({"amx": True, "gpu": True}, "fast", "bfloat16", "bfloat16"),
        ({"avx512": True}, "fast", "bfloat16", "float32"),
        ({"gpu": True}, "fast", "float32", "bfloat16"),
        ({}, "fast", "float32", "float32"),
        ({"amx": True}, "auto", "float32", "bfloat16"),
        ({}, "bfloat16", "bfloat16", "bfloat16"),
        ({"amx": True, "gpu": True}, "float32", "float32", "float32"),
    ],
)
def test_fast_is_bfloat16_where_there_are_instructions_for_it(machine, has, setting, on_cpu, on_gpu):
    machine(**has)
    assert (choose_precision(setting, CPU), choose_precision(setting, CUDA)) == (on_cpu, on_gpu)


@pytest.mark.parametrize("amx", [True, False])
def test_a_model_is_computed_in_what_was_chosen(machine, amx):
    machine(amx=amx)
    arch = architecture(image_size=32, stages=2)
    with autocast(TrainConfig(precision="fast"), CPU):
        found = lively_model(arch)(*inputs(arch)).dtype
    assert found == (torch.bfloat16 if amx else torch.float32)


@pytest.mark.parametrize("preset", ["ham10000-small", "ham10000-sites"])
def test_the_presets_for_a_cpu_are_not_slow_on_one_without_the_instructions(machine, preset):
    settings = load_config(preset).train
    machine()
    assert choose_precision(settings.precision, CPU) == "float32"
    machine(amx=True)
    assert choose_precision(settings.precision, CPU) == "bfloat16"


def test_who_asks_for_bfloat16_on_a_machine_without_is_told_so_by_name(machine):
    machine()
    for setting in ("fast", "auto", "float32"):
        assert slow_precision(setting, CPU) == ""
    assert "this GPU has no instructions" in slow_precision("auto", CUDA)
    doubts = doubtful_settings(tiny_config(train={"precision": "bfloat16"}))
    (said,) = [line for line in doubts if "bfloat16" in line]
    assert said.startswith("train.precision=bfloat16 computes in bfloat16, and this CPU has neither AMX nor AVX-512 ")
    assert "ten times as long" in said
    assert said.endswith("train.precision=fast takes bfloat16 only where there are")
    machine(avx512=True)
    assert slow_precision("bfloat16", CPU) == ""


def test_a_hospital_whose_cpu_lacks_them_reads_it_in_its_own_log(machine, ask, caplog):  # noqa: F811
    machine()
    with caplog.at_level(logging.WARNING):
        ask(config=tiny_config(data={"clients": "own"}, train={"precision": "bfloat16"}))
        ask(config=tiny_config(data={"clients": "own"}, train={"precision": "fast"}))
    assert sum("train.precision=bfloat16" in line.getMessage() for line in caplog.records) == 1


def test_log_starts_summary_and_comparison_say_what_a_run_computed_in(machine, generated, tmp_path, caplog):
    machine(amx=True)
    config = tiny_config(train={"precision": "fast"}, run={"output_dir": str(tmp_path)}, federation={"rounds": 1})
    with caplog.at_level(logging.INFO, logger="flwr"):
        run = run_here(config).path
    head = [line.getMessage() for line in caplog.records if line.getMessage().startswith("computes in")]
    assert head == ["computes in bfloat16 on cpu, as train.precision=fast finds instructions for"]
    assert json.loads((run / "starts.jsonl").read_text())["precision"] == "bfloat16"
    assert json.loads((run / "summary.json").read_text())["precision"] == "bfloat16"

    machine()
    other = shutil.copytree(run, tmp_path / "other")
    wanted = resume_config(other, overrides="federation.rounds=2")
    FederatedRun(LocalGrid(make_client_app(), 3), wanted, *open_checkpoint(other)).run()
    moved = "precision bfloat16 → float32 from round 2"
    assert moved in [str(change) for change in read_changes(other)]
    summary = json.loads((other / "summary.json").read_text())
    assert (summary["precision"], [change["key"] for change in summary["changes"]]) == (
        "float32", ["federation.rounds", "precision"],
    )  # fmt: skip
    said = warnings_of(read_runs([run, other]))
    assert any(line.startswith("the precisions differ") and line.endswith("): float32") for line in said), said
    assert any("resumed with other settings" in line and moved in line for line in said)


def test_a_run_whose_record_does_not_tell_goes_on_without_a_change(machine, finished_run, tmp_path):
    """Runs of earlier versions have no such entry."""
    machine()
    run = shutil.copytree(finished_run.path, tmp_path / "run")
    (line,) = (run / "starts.jsonl").read_text().splitlines()
    old = {key: value for key, value in json.loads(line).items() if key != "precision"}
    (run / "starts.jsonl").write_text(json.dumps(old) + "\n")
    wanted = resume_config(run, overrides="federation.rounds=3")
    FederatedRun(LocalGrid(make_client_app(), 3), wanted, *open_checkpoint(run)).run()
    assert [change.key for change in read_changes(run)] == ["federation.rounds"]


def test_in_words(machine):
    machine()
    assert precision_in_words("float32", CPU) == "float32 on cpu"
    assert precision_in_words("fast", CPU) == (
        "float32 on cpu, as train.precision=fast finds no instructions for bfloat16"
    )
