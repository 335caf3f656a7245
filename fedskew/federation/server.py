"""One federated run from its configuration to its summary, on any Flower grid."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from shutil import get_terminal_size
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedskew.config import Config, to_yaml
from fedskew.console import PROGRESS_FILE, RESULTS
from fedskew.errors import FedskewError
from fedskew.federation.folding import check_effect, warn_of_hostile_sites
from fedskew.federation.grids import StreamingGrid
from fedskew.federation.selection import sharing_nodes
from fedskew.federation.strategy import RoundStrategy
from fedskew.federation.weights import to_record, to_state
from fedskew.files import json_text
from fedskew.learning.datasets import open_data, split_hash, split_server
from fedskew.learning.initial import initial_model, started_from
from fedskew.learning.judging import HELD_BACK, improves, in_words, is_evaluated, judge, source_of
from fedskew.learning.manifest import run_manifest
from fedskew.learning.server_data import Evaluation, ServerData
from fedskew.methods import make_method
from fedskew.methods.base import Model
from fedskew.metrics.classification import NUMBERS, not_evaluated
from fedskew.model.architecture import Architecture
from fedskew.model.catalogue import vocabularies
from fedskew.runs.checkpoint import Checkpoint
from fedskew.runs.folder import RunFolder
from fedskew.runs.lineage import about_model
from fedskew.runs.observers import Observers, Opener
from fedskew.runs.reading import CONFIG, SPLIT, STARTS, SUMMARY, recorded_nodes
from fedskew.runs.record import RoundLog, round_record
from fedskew.runs.report import head_lines, quiet_flower, summary_of, summary_text
from fedskew.runs.resume import MAY_MOVE, check_changes, new_folder, saved_config
from fedskew.runs.round_table import round_heading, round_line
from fedskew.runs.start_checks import check_place, check_settings, doubtful_settings
from fedskew.runs.starts import (
    add_start,
    check_nodes,
    check_plugins,
    check_split,
    curve_note,
    first_start,
    samples_hash,
    summary_of_starts,
)

log = logging.getLogger("flwr.fedskew.server")
results = logging.getLogger(RESULTS)
SUMS = ("bytes_down", "bytes_up")
Start = tuple[dict[str, Tensor], Architecture, RoundLog, dict[str, Tensor]]  # state, shape, record, companions


class RunStopped(FedskewError, RuntimeError):
    """A run that ends before its last round on purpose; everything up to here is saved."""


class FederatedRun:
    """A run in progress: prepares, lets Flower's loop drive the strategy, records every round.

    Building one checks all that can be checked, so that a start that fails leaves nothing behind.

    Args:
        grid: Flower's grid, or a `LocalGrid`.
        config: of the run; it may differ from that of the run folder in `MAY_MOVE`.
        folder: to resume in (see `runs.resume`), or made already; None makes a new one once nothing is amiss.
        checkpoint: the last finished round of the folder; None starts at the beginning.
        observers: who is told of its rounds.

    Raises:
        ConfigError, DataError, TrainingError, RunFolderError: what is amiss, and the remedy.
    """

    def __init__(
        self,
        grid: Grid,
        config: Config,
        folder: RunFolder | None = None,
        checkpoint: Checkpoint | None = None,
        *,
        observers: Sequence[Opener] = (),
    ) -> None:
        self.config, self.grid, self.checkpoint = config, StreamingGrid(grid), checkpoint
        if folder:
            check_plugins(folder.path)
        dense = check_settings(config)
        if folder is None:
            check_place(config, dense)
        else:
            self.folder = folder
            if saved := saved_config(folder.path):
                check_changes(folder.path, saved, config, MAY_MOVE)
        self._is_new, self._openers = folder is None, tuple(observers)
        self._initial = None if checkpoint else initial_model(config)
        self.data = open_data(config.data, dense.image_size, vocabularies=vocabularies(config.model))
        self.split = split_server(self.data, config.data)
        self.split_hash = split_hash(self.data, self.split)
        self.server = ServerData(config, self.data, self.split)
        self.progress: dict[str, Any] = {
            "bytes_down_total": 0, "bytes_up_total": 0, "best": None, "missed": 0, "seconds": 0.0, "class_counts": {},
            "open_losses": {}, **({} if checkpoint else started_from(config.model)),
        }  # fmt: skip
        self._round_started = time.perf_counter()

    def run(self) -> RunFolder:
        """Run all rounds that are left; returns the run folder. A new run that fails before round 0 is saved has none.

        Raises:
            RunFolderError: the folder cannot be gone on in with this data or number of nodes, and nothing in it was
                changed; or it cannot be written.
        """
        manifest = self._manifest()
        check_effect(self.config, manifest["nodes"])
        if not self._is_new:
            with self.folder.locked():
                self._take_up(manifest)
                return self._go(manifest)
        start = first_start(self.config, int(self.grid.run.run_id))
        files = {SPLIT: json_text(manifest), CONFIG: to_yaml(self.config), STARTS: start}
        self.folder = new_folder(self.config, files)
        try:
            with self.folder.locked():
                return self._go(manifest)
        except BaseException:
            if not self.folder.checkpoints():
                self.folder.discard()
            raise

    def _go(self, manifest: Mapping[str, Any]) -> RunFolder:
        self.server.folder = self.folder.path
        log.info("run folder: %s", self.folder.path)
        for line in head_lines(self.config, self.data, self.split, manifest, self.server.scoring_note):
            log.info(line)
        for line in manifest["warnings"]:
            log.warning("data: %s", line)
        for line in doubtful_settings(self.config):
            log.warning("%s", line)
        warn_of_hostile_sites(self.config)
        # a run killed before its first checkpoint may have left a line of metrics
        self.folder.rewind(self.checkpoint.round_number if self.checkpoint else -1)
        state, arch, first, companions = self._resumed() if self.checkpoint else self._round_zero()
        self.strategy = RoundStrategy(
            self.config, arch, self.server, self.grid,
            split_hash=self.split_hash, first_round=first.number + 1, scratch=self.folder.path,
        )  # fmt: skip
        self.strategy.round, self.strategy.companions = first, companions
        self.strategy.roll.class_counts = self.progress["class_counts"]
        self.strategy.roll.audit = self.progress.setdefault("audit", {})
        self.strategy.roll.sites = self.progress.setdefault("sites", [])
        self.strategy.losses = self.progress["open_losses"]
        next_round = self.checkpoint.round_number + 1 if self.checkpoint else 0
        self.observers = Observers(self._openers, self.folder.path, self.config, next_round)
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

    def _manifest(self) -> dict[str, Any]:
        """Who gets which images; `nodes` is None where each has its own.

        Raises:
            DataError: too few images for so many nodes.
            RunFolderError: another number of nodes is connected than the run began with.
        """
        settings, nodes = self.config.data, 0
        if settings.clients == "partition":
            recorded = None if self._is_new else recorded_nodes(self.folder.path)
            nodes = sharing_nodes(self.grid, self.config.federation, recorded)
            if recorded:
                check_nodes(self.folder.path, nodes)
        manifest = run_manifest(self.config, self.data, self.split, self.server.held_back, nodes)
        return manifest | {"samples_hash": samples_hash(self.data.samples)}

    def _take_up(self, manifest: dict[str, Any]) -> None:
        """Check that the data is what it was, then write down that it is, and with what changes."""
        folder, saved = self.folder, saved_config(self.folder.path)
        if saved is None:
            folder.write_text(STARTS, first_start(self.config, int(self.grid.run.run_id)))
        else:
            check_split(folder.path, manifest)
            finished = self.checkpoint.round_number if self.checkpoint else -1
            for change in add_start(folder, saved, self.config, finished + 1, int(self.grid.run.run_id)):
                log.info("%s", change)
            if line := curve_note(saved, self.config, max(0, finished)):
                log.info("%s", line)
        folder.write_json(SPLIT, manifest)
        folder.write_text(CONFIG, to_yaml(self.config))

    def _resumed(self) -> Start:
        assert self.checkpoint is not None
        number = self.checkpoint.round_number
        self.folder.rewind(number)
        self.folder.republish(self.checkpoint)
        self.progress |= self.checkpoint.progress | {"missed": 0}  # whoever resumes has seen to it
        self.progress.pop("stopped", None)
        log.info("resuming after round %d of %d", number, self.config.federation.rounds)
        results.info(round_heading(self.config, get_terminal_size().columns))
        return self.checkpoint.weights, self.checkpoint.architecture, RoundLog(number), self.checkpoint.companions

    def _round_zero(self) -> Start:
        """The model that the first round starts from, as the method makes it of the initial one."""
        assert self._initial is not None
        (state, arch), self._initial = self._initial, None
        step = make_method(self.config).start(Model(arch, state), self.server)
        note = RoundLog(0, before=arch, seconds_training=step.seconds_training, step=step.pruned)
        note.seconds_scoring = step.pruned.seconds_total if step.pruned else 0.0
        return dict(step.model.state), step.model.architecture, note, dict(step.model.companions)

    def _after_round(self, flower_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Flower's `evaluate_fn`: evaluate the new global model on the server's data and record the finished round."""
        if flower_round == 0 and self.checkpoint:
            return None  # this round is on record already
        start, arch, note = time.perf_counter(), self.strategy.architecture, self.strategy.round
        self.progress["missed"] = self.progress["missed"] + 1 if note.kept_model else 0
        if self.config.data.partition == "pooled":
            note.bytes_down = note.bytes_up = 0  # in one place nothing has to travel
        state, found = to_state(arrays, arch), None
        if is_evaluated(self.config, note.number) or self._is_hopeless:
            found = self.server.evaluate(state, arch, note.number, held_back=self.strategy.open_metrics)
            self.strategy.open_metrics = found.held_back
        note.seconds_evaluation = time.perf_counter() - start
        note.seconds, self._round_started = time.perf_counter() - self._round_started, time.perf_counter()
        record, is_best = self._advance(note, arch, found)
        parent, reference = self.progress.get("from", ""), self.server.reference
        about = about_model(self.config, arch, note.number, self.split_hash, parent, reference)
        record = self.folder.finish_round(
            note.number, arch, state, record, self.progress,
            is_best=is_best, keep=self.config.run.keep_checkpoints, predictions=found.predictions if found else None,
            companions=self.strategy.companions, about=about,
        )  # fmt: skip
        for line in round_line(record, self.config, self.progress["seconds"], get_terminal_size().columns):
            results.info(line)
        self.observers.observe(note.number, record)
        self._stop_if_hopeless()
        return MetricRecord({k: v for k, v in found.metrics.items() if isinstance(v, float)}) if found else None

    def _advance(self, note: RoundLog, arch: Architecture, found: Evaluation | None) -> tuple[dict[str, Any], bool]:
        """Update the running sums and the best round; the record of this round and whether it is the best so far."""
        for name in SUMS:
            self.progress[f"{name}_total"] += getattr(note, name)
        self.progress["seconds"] += note.seconds
        held_back = found.held_back if found else None
        judgement = judge(self.config, held_back if source_of(self.config) == HELD_BACK else note.validation)
        is_best = improves(self.progress["best"], judgement, note.number, kept_model=note.kept_model)
        if is_best:
            self.progress["best"] = {"round": note.number, **judgement}
        more = {f"{name}_total": self.progress[f"{name}_total"] for name in SUMS} | {
            "held_back": {name: held_back[name] for name in NUMBERS} if held_back else None,
            "selection": judgement | {"best": is_best},
        }
        return round_record(note, arch, found.metrics if found else not_evaluated(), more), is_best

    @property
    def _is_hopeless(self) -> bool:
        missed: int = self.progress["missed"]
        return 0 < self.config.federation.max_missed_rounds <= missed

    def _stop_if_hopeless(self) -> None:
        if self._is_hopeless:
            missed, note = self.progress["missed"], self.strategy.round
            why = f"were below the quorum of {self.config.federation.quorum}"
            if note.rolled_back or note.no_effect:
                why = f"were not accepted; the last: {note.rolled_back or note.no_effect}"
            raise RunStopped(
                f"{missed} rounds in a row {why} (federation.max-missed-rounds). The model is that of the last "
                f'accepted round. Go on later with resume="{self.folder.path}"'
            )

    def _finish(self) -> RunFolder:
        records = self.folder.records()
        if self.progress["best"] is None:
            log.warning("no round could be judged by %s: best/ is the model of the last round, %d",
                        in_words(judge(self.config, None)), records[-1]["round"])  # fmt: skip
            self.folder.publish_last_as_best()
        summary = summary_of(records, self.config, self.progress) | summary_of_starts(self.folder.path)
        self.folder.write_json(SUMMARY, summary)
        (self.folder.path / PROGRESS_FILE).unlink(missing_ok=True)
        self.observers.close()
        for line in summary_text(summary, self.folder.path).splitlines():
            results.info(line)
        return self.folder
