"""Who is told of a run's rounds: in order, from the record; what they do and that they fail changes no bit of it."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time

import numpy as np
import pytest
import torch
from builders import tiny_config
from typer.testing import CliRunner

from fedskew.apps import make_client_app, simulate_config
from fedskew.cli.main import app
from fedskew.config import ConfigError, load_config
from fedskew.federation.grids import LocalGrid
from fedskew.federation.server import FederatedRun
from fedskew.report import observers as opening
from fedskew.report.observers import ReportObserver, observers_of
from fedskew.report.scalars import scalars
from fedskew.runs.reading import read_records


class Noted:
    """Keeps what it is told."""

    def __init__(self, told):
        self.told = told

    def observe(self, round_number, metrics):
        self.told.append((round_number, dict(metrics)))

    def close(self):
        self.told.append("closed")


class Nasty:
    """Draws from everybody's random numbers, spoils what it is given, and fails."""

    def observe(self, round_number, metrics):
        torch.rand(7), np.random.rand(7), random.random()
        metrics.clear()
        raise OSError("the disk is full")

    def close(self):
        raise RuntimeError("and now this")


def run(config, *observers, nodes=3):
    grid = LocalGrid(make_client_app(), nodes)
    return FederatedRun(grid, config, observers=observers).run()


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def observed(generated, tmp_path_factory):
    """The run of `finished_run`, with every kind of observer."""
    told, records = [], []

    class Handler(logging.Handler):
        def emit(self, record):
            records.append(record)

    logger, handler = logging.getLogger("flwr.fedskew.runs"), Handler()
    logger.addHandler(handler)
    try:
        folder = run(
            tiny_config(run={"output_dir": str(tmp_path_factory.mktemp("runs"))}),
            lambda *_: 1 / 0, lambda *_: Nasty(), lambda *_: Noted(told),
            lambda folder, config, first: ReportObserver(folder, 1.0),
        )  # fmt: skip
    finally:
        logger.removeHandler(handler)
    return folder, told, [record.getMessage() for record in records if record.levelno == logging.WARNING]


def test_no_observer_changes_a_bit_of_the_run(observed, finished_run):
    folder, _, _ = observed
    assert sha(folder.path / "model.safetensors") == sha(finished_run.path / "model.safetensors")
    assert sha(folder.path / "best" / "predictions.npz") == sha(finished_run.path / "best" / "predictions.npz")


def test_each_is_told_every_round_once_in_order_with_its_line_of_the_record_and_the_end(observed):
    folder, told, _ = observed
    assert told == [*((record["round"], record) for record in read_records(folder.path)), "closed"]


def test_every_fault_is_said_and_ends_nothing(observed):
    _, _, warnings = observed
    assert len(warnings) == 1 + 3 + 1
    assert "ZeroDivisionError" in warnings[0]
    assert "Nasty fails in round 1, and the run goes on without it: OSError: the disk is full" in warnings[2]
    assert "Nasty fails at the end" in warnings[-1]


def test_the_report_is_in_the_folder_at_the_end_and_of_all_rounds(observed):
    page = (observed[0].path / "report.html").read_text()
    assert "finished, 2 rounds" in page


def test_rewriting_a_report_stays_within_its_share_of_the_time(monkeypatch, tmp_path):
    now, written = [0.0], []

    def write(folder):
        written.append(now[0])
        now[0] += 2.0  # what a writing costs

    monkeypatch.setattr("fedskew.report.page.write_report", write)
    observer = ReportObserver(tmp_path, 0.05, clock=lambda: now[0])
    for number in range(200):
        now[0] += 3.0  # what a round takes
        observer.observe(number, {})
        assert 2.0 * len(written) <= 0.05 * now[0] + 0.6, "the first is taken to cost 1.5 s"
    assert len(written) == pytest.approx(0.05 * now[0] / 2, abs=1.5), "and uses it"
    slow = ReportObserver(tmp_path, 0.05, clock=lambda: now[0])
    for number in range(10):
        now[0] += 200.0
        before = len(written)
        slow.observe(number, {})
        assert len(written) == before + 1, "after every round of some length"


def test_no_report_where_none_is_wanted_and_one_by_default(tmp_path):
    assert len(observers_of(tiny_config())) == 1
    assert observers_of(tiny_config(run={"report": 0.0})) == []


def test_a_sink_that_is_none_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"run\.sinks names 'wandb', expected some of tensorboard, mlflow"):
        load_config(overrides="run.sinks=tensorboard,wandb")


def test_a_sink_whose_package_is_missing_is_refused_before_anything_is_made(monkeypatch, generated, tmp_path):
    monkeypatch.setitem(opening.PACKAGES, "mlflow", "no_such_package_here")
    config = tiny_config(run={"sinks": "mlflow", "output_dir": str(tmp_path / "runs")})
    with pytest.raises(ConfigError, match=r"pip install 'fedskew\[mlflow\]'"):
        simulate_config(config, 2)
    assert not (tmp_path / "runs").exists()


def test_curves_hold_numbers_of_the_run_and_none_of_single_sites(finished_run):
    record = finished_run.records()[-1]
    found = scalars(record)
    assert found["balanced_accuracy"] == record["balanced_accuracy"]
    assert found["recall/mel"] == record["recall"]["mel"]
    assert found["selection/value"] == record["selection"]["value"]
    assert not [name for name in found if "partition" in name]
    assert "kept_model" not in found
    assert all(isinstance(value, float) for value in found.values())


def test_tensorboard_reads_every_round_once_also_of_a_run_that_was_resumed(finished_run, tmp_path):
    reading = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(reading, reason="TensorBoard is an extra").EventAccumulator
    records = finished_run.records()
    for part, first in ((records, 0), (records[1:], 1)):  # the process died after the last round, and went on from 1
        sink = opening.SINKS["tensorboard"](tmp_path, tiny_config(), first)
        for record in part:
            sink.observe(record["round"], record)
        sink.close()
        time.sleep(1.1)  # its files are named by the second
    found = accumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    points = [(event.step, event.value) for event in found.Scalars("balanced_accuracy")]
    assert points == [(record["round"], pytest.approx(record["balanced_accuracy"])) for record in records]


def test_mlflow_has_settings_and_every_round_and_goes_on_in_the_same_run(finished_run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is an extra")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "pruned"
    folder.mkdir()
    records = finished_run.records()
    for part in (records[:1], records[1:]):
        sink = opening.SINKS["mlflow"](folder, tiny_config(), part[0]["round"])
        for record in part:
            sink.observe(record["round"], record)
    sink.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (kept,) = client.search_runs(["0"])
    assert kept.info.run_name == "pruned"
    assert kept.info.status == "FINISHED"
    assert kept.data.params["prune.criterion"] == "skewness"
    points = client.get_metric_history(kept.info.run_id, "recall/nv")
    assert [(one.step, one.value) for one in points] == [
        (record["round"], record["recall"]["nv"]) for record in records
    ]


def test_the_command_ends_with_where_to_look(generated, tmp_path):
    settings = "data.source=generated data.generated-images=160 data.open=0.2 model.name=swin_micro_patch4_window4_32"
    more = "federation.rounds=1 train.threads=1 run.threads=1 train.warm-start-epochs=0 prune.batch-size=16"
    done = CliRunner().invoke(app, ["simulate", "--preset", "demo", "--nodes", "2", "--set", f"{settings} {more}",
                                    "--output-dir", str(tmp_path), "--name", "r"])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[-1].endswith("r/report.html")
    assert done.stderr.splitlines()[-1].startswith("look: ")
    assert (tmp_path / "r" / "report.html").is_file()
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["rounds"] == 1
