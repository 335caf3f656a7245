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
from fedskew.federation.companions import cut
from fedskew.federation.selection import wait_for_nodes
from fedskew.federation.server_model import Evaluation, ServerModel
from fedskew.federation.strategy import SkewPruning
from fedskew.federation.streaming import StreamingGrid
from fedskew.federation.weights import to_record, to_state
from fedskew.metrics.classification import NUMBERS, not_evaluated
from fedskew.model.families import image_size, vocabularies
from fedskew.pruning.schedule import stages_to_prune
from fedskew.runs.folder import CONFIG, SPLIT, SUMMARY, Checkpoint, RunFolder
from fedskew.runs.judging import HELD_BACK, improves, in_words, is_evaluated, judge, source_of
from fedskew.runs.lineage import about_model
from fedskew.runs.record import RoundLog, round_record
from fedskew.runs.report import COLUMNS, head_lines, quiet_flower, round_line, summary_of, summary_text

log = logging.getLogger("flwr.fedskew.server")

SUMS = ("bytes_down", "bytes_up")
Start = tuple[dict[str, Tensor], Architecture, RoundLog, dict[str, Tensor]]  # state, shape, record, companions


class RunStopped(RuntimeError):
    """A run that ends before its last round on purpose; everything up to here is saved."""


class FederatedRun:
    """A run in progress: prepares, lets Flower's loop drive the strategy, records every round.

    Args:
        grid: Flower's grid, or a `LocalGrid`.
        config: of the run; that of the run folder if it resumes.
        folder: a new run folder, or the one to resume in (see `runs.resume`).
        checkpoint: the last finished round of the folder; None starts at the beginning.
    """

    def __init__(self, grid: Grid, config: Config, folder: RunFolder, checkpoint: Checkpoint | None = None) -> None:
        self.config, self.grid, self.folder, self.checkpoint = config, StreamingGrid(grid), folder, checkpoint
        self.data = open_data(config.data, image_size(config.model), vocabularies=vocabularies(config.model))
        self.split = split_server(self.data, config.data)
        self.split_hash = split_hash(self.data, self.split)
        self.server = ServerModel(config, self.data, self.split)
        self.progress: dict[str, Any] = {
            "bytes_down_total": 0, "bytes_up_total": 0, "best": None, "missed": 0, "seconds": 0.0, "class_counts": {},
        }  # fmt: skip
        self._round_started = time.perf_counter()

    def run(self) -> RunFolder:
        """Run all rounds that are left; returns the run folder."""
        with self.folder.locked():
            self._prepare_folder()
            # a run killed before its first checkpoint may have left a line of metrics
            self.folder.rewind(self.checkpoint.round_number if self.checkpoint else -1)
            state, arch, first, companions = self._resumed() if self.checkpoint else self._round_zero()
            self.strategy = SkewPruning(
                self.config, arch, self.server, self.grid,
                split_hash=self.split_hash, first_round=first.number + 1, scratch=self.folder.path,
            )  # fmt: skip
            self.strategy.round, self.strategy.companions = first, companions
            self.strategy.class_counts = self.progress["class_counts"]
            self._rounds(state)
            return self._finish()

    def _rounds(self, state: Mapping[str, Tensor]) -> None:
        try:
            with quiet_flower():
                self.strategy.start(
                    self.grid,
                    to_record(state),
                    num_rounds=self.config.federation.rounds - self.strategy.offset,
                    timeout=self.config.federation.round_deadline,
                    evaluate_fn=self._after_round,
                )
        except RunStopped as reason:
            log.error("the run stops: %s", reason)
            self.progress["stopped"] = str(reason)

    def _prepare_folder(self) -> None:
        settings = self.config
        nodes = 0
        if settings.data.clients == "partition":
            nodes = len(wait_for_nodes(self.grid, settings.federation, 0))
        parts = partitions(self.data, self.split, settings.data, nodes) if nodes else ()
        held_back = [self.data.samples[i].image_id for i in self.server.held_back]
        manifest = describe_split(self.data, self.split, parts, settings.model.classes) | {
            "held_back": held_back, "split_hash": self.split_hash,
        }  # fmt: skip
        if self.checkpoint:
            self.folder.check_split(manifest)
        self.folder.write_text(CONFIG, to_yaml(settings))
        self.folder.write_json(SPLIT, manifest)
        for line in head_lines(self.folder.path, settings, self.data, self.split, nodes, len(held_back)):
            log.info(line)
        for line in manifest["warnings"]:
            log.warning("data: %s", line)

    def _resumed(self) -> Start:
        assert self.checkpoint is not None
        number = self.checkpoint.round_number
        self.folder.rewind(number)
        self.folder.republish(self.checkpoint)
        self.progress |= self.checkpoint.progress
        self.progress.pop("stopped", None)
        self.progress["missed"] = 0  # whoever resumes has seen to it
        log.info("resuming after round %d of %d", number, self.config.federation.rounds)
        log.info(COLUMNS)
        return self.checkpoint.weights, self.checkpoint.architecture, RoundLog(number), self.checkpoint.companions

    def _round_zero(self) -> Start:
        """The initial model; after a warm start on open data and its pruning step if the configuration asks."""
        state, arch = self.server.initial()
        note, prune, epochs = RoundLog(0, before=arch), self.config.prune, self.config.train.warm_start_epochs
        moments: dict[str, Tensor] = {}
        if epochs:
            log.info("warm start: %d epochs on %d open images", epochs, len(self.server.training))
            start = time.perf_counter()
            state, moments = self.server.warm_start(state, arch)
            note.seconds_training = time.perf_counter() - start
        companions = moments if self.config.train.moments == "averaged" else {}
        if stages := stages_to_prune(prune, 0, len(arch.stages)):
            note.step = self.server.prune(state, arch, stages, 0)
            companions = cut(companions, arch, note.step.plan, prune.mlp_group)
            state, arch = note.step.state, note.step.architecture
            note.seconds_scoring = note.step.seconds_total
        return state, arch, note, companions

    def _after_round(self, flower_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Flower's `evaluate_fn`: evaluate the new global model on the server's data and record the finished round."""
        if flower_round == 0 and self.checkpoint:
            return None  # this round is on record already
        start, arch, note = time.perf_counter(), self.strategy.architecture, self.strategy.round
        self.progress["missed"] = self.progress["missed"] + 1 if note.kept_model else 0
        state, found = to_state(arrays, arch), None
        if is_evaluated(self.config, note.number) or self._is_hopeless:
            found = self.server.evaluate(state, arch, note.number)
        note.seconds_evaluation = time.perf_counter() - start
        note.seconds, self._round_started = time.perf_counter() - self._round_started, time.perf_counter()
        record, is_best = self._advance(note, arch, found)
        self.folder.finish_round(
            note.number, arch, state, record, self.progress,
            is_best=is_best, keep=self.config.run.keep_checkpoints, predictions=found.predictions if found else None,
            companions=self.strategy.companions, about=about_model(self.config, arch, note.number, self.split_hash),
        )  # fmt: skip
        for line in round_line(record, self.config, self.progress["seconds"]):
            log.info(line)
        self._stop_if_hopeless()
        return MetricRecord({k: v for k, v in found.metrics.items() if isinstance(v, float)}) if found else None

    def _advance(self, note: RoundLog, arch: Architecture, found: Evaluation | None) -> tuple[dict[str, Any], bool]:
        """Update the running sums and the best round; the record of this round and whether it is the best so far."""
        for name in SUMS:
            self.progress[f"{name}_total"] += getattr(note, name)
        self.progress["seconds"] += note.seconds
        held_back = found.held_back if found else None
        judgement = judge(self.config, held_back if source_of(self.config) == HELD_BACK else note.validation)
        is_best = improves(self.progress["best"], judgement, note.number)
        if is_best:
            self.progress["best"] = {"round": note.number, **judgement}
        more = {f"{name}_total": self.progress[f"{name}_total"] for name in SUMS} | {
            "held_back": {name: held_back[name] for name in NUMBERS} if held_back else None,
            "selection": judgement | {"best": is_best},
        }
        return round_record(note, arch, found.metrics if found else not_evaluated(), more), is_best

    @property
    def _is_hopeless(self) -> bool:
        limit = self.config.federation.max_missed_rounds
        return bool(limit) and self.progress["missed"] >= limit

    def _stop_if_hopeless(self) -> None:
        if self._is_hopeless:
            raise RunStopped(
                f"{self.progress['missed']} rounds in a row were below the quorum of {self.config.federation.quorum} "
                f'(federation.max-missed-rounds). Go on later with resume="{self.folder.path}"'
            )

    def _finish(self) -> RunFolder:
        records = self.folder.records()
        if self.progress["best"] is None:
            log.warning("no round could be judged by %s: best/ is the model of the last round, %d",
                        in_words(judge(self.config, None)), records[-1]["round"])  # fmt: skip
            self.folder.publish_last_as_best()
        summary = summary_of(records, self.config, self.progress)
        self.folder.write_json(SUMMARY, summary)
        for line in summary_text(summary, self.folder.path).splitlines():
            log.info(line)
        return self.folder
