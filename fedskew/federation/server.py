"""One federated run from its configuration to its summary, on any Flower grid."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedskew.architecture import Architecture
from fedskew.config import Config, to_yaml
from fedskew.data.prepare import describe_split, open_data, partitions, split_hash, split_server
from fedskew.federation.messages import to_record, to_state
from fedskew.federation.selection import connected_nodes
from fedskew.federation.server_model import ServerModel
from fedskew.federation.strategy import SkewPruning
from fedskew.federation.streaming import StreamingGrid
from fedskew.model.families import dense_architecture
from fedskew.paths import runs_directory
from fedskew.pruning.schedule import stages_to_prune
from fedskew.runs.folder import CONFIG, SPLIT, SUMMARY, RunFolder
from fedskew.runs.record import RoundLog, round_record
from fedskew.runs.report import head_lines, round_line, summary_of, summary_text

log = logging.getLogger("flwr.fedskew.server")

SUMS = ("bytes_down", "bytes_up")


class FederatedRun:
    """A run in progress: prepares, lets Flower's loop drive the strategy, records every round."""

    def __init__(self, grid: Grid, config: Config) -> None:
        self.config, self.grid = config, StreamingGrid(grid)
        image_size = config.model.image_size or dense_architecture(config.model).image_size
        self.data = open_data(config.data, image_size)
        self.split = split_server(self.data, config.data)
        self.server = ServerModel(config, self.data, self.split)
        self.progress: dict[str, Any] = {"bytes_down_total": 0, "bytes_up_total": 0, "best": None, "best_round": None}
        self.folder = RunFolder.create(runs_directory(config.run.output_dir), config.run.name or _run_name(config))
        self._round_started = self._started = time.perf_counter()

    def run(self) -> RunFolder:
        """Run all rounds; returns the run folder."""
        self._prepare_folder()
        state, arch = self.server.initial()
        state, arch, start = self._round_zero(state, arch)
        self.strategy = SkewPruning(self.config, arch, self.server, split_hash=split_hash(self.data, self.split))
        self.strategy.round = start
        self.strategy.start(
            self.grid,
            to_record(state),
            num_rounds=self.config.federation.rounds,
            timeout=self.config.federation.round_deadline,
            evaluate_fn=self._after_round,
        )
        return self._finish()

    def _prepare_folder(self) -> None:
        nodes = len(connected_nodes(self.grid)) if self.config.data.clients == "partition" else 0
        parts = partitions(self.data, self.split, self.config.data, nodes) if nodes else ()
        self.folder.write_text(CONFIG, to_yaml(self.config))
        self.folder.write_json(SPLIT, describe_split(self.data, self.split, parts))
        for line in head_lines(self.folder.path, self.config, self.data, self.split, nodes):
            log.info(line)

    def _round_zero(
        self, state: dict[str, Tensor], arch: Architecture
    ) -> tuple[dict[str, Tensor], Architecture, RoundLog]:
        """Warm start on open data and its pruning step, if the configuration asks for them."""
        note = RoundLog(0, before=arch)
        prune = self.config.prune
        if prune.warm_start_epochs:
            log.info("warm start: %d epochs on %d open images", prune.warm_start_epochs, len(self.split.open))
            start = time.perf_counter()
            state = self.server.warm_start(state, arch)
            note.seconds_training = time.perf_counter() - start
        if stages := stages_to_prune(prune, 0, len(arch.stages)):
            note.step = self.server.prune(state, arch, stages, 0)
            state, arch = note.step.state, note.step.architecture
            note.seconds_scoring = note.step.seconds_total
        return state, arch, note

    def _after_round(self, _: int, arrays: ArrayRecord) -> MetricRecord:
        """Flower's `evaluate_fn`: evaluate the new global model on the test set and record the finished round."""
        start, state, arch = time.perf_counter(), to_state(arrays), self.strategy.architecture
        metrics = self.server.evaluate(state, arch)
        note = self.strategy.round
        note.seconds_evaluation = time.perf_counter() - start
        note.seconds, self._round_started = time.perf_counter() - self._round_started, time.perf_counter()
        is_best = self._advance(note, metrics)
        sums = {f"{name}_total": self.progress[f"{name}_total"] for name in SUMS}
        record = round_record(note, arch, metrics, sums)
        self.folder.finish_round(
            note.number, arch, state, record, self.progress, is_best=is_best, keep=self.config.run.keep_checkpoints
        )
        for line in round_line(record, self.config, time.perf_counter() - self._started):
            log.info(line)
        return MetricRecord({name: value for name, value in metrics.items() if isinstance(value, float)})

    def _advance(self, note: RoundLog, metrics: Mapping[str, Any]) -> bool:
        """Update the running sums and the best metric; whether this round is the best so far."""
        for name in SUMS:
            self.progress[f"{name}_total"] += getattr(note, name)
        value = metrics[self.config.run.best_metric]
        if value is None or (self.progress["best"] is not None and value <= self.progress["best"]):
            return False
        self.progress["best"], self.progress["best_round"] = value, note.number
        return True

    def _finish(self) -> RunFolder:
        records = self.folder.records()
        summary = summary_of(records, self.config, time.perf_counter() - self._started)
        self.folder.write_json(SUMMARY, summary)
        for line in summary_text(summary, self.folder.path).splitlines():
            log.info(line)
        return self.folder


def _run_name(config: Config) -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{config.preset}-{config.prune.method}-seed{config.run.seed}"
