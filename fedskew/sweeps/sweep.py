"""Run a study: every cell and seed as an ordinary run in a folder of its own, several at a time.

    DIR/dense-s0/ …      run folders
    DIR/logs/dense-s0.log
    DIR/sweep.json       cells in the order of the file, attempts and failures; what is done, the run folders say

Nothing that matters is in memory: after any end, the same command skips what is done, resumes what was begun, tries
again what failed and starts the rest.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fedskew.errors import FedskewError
from fedskew.sweeps.history import History
from fedskew.sweeps.job import COMMAND, Job, shared_cores
from fedskew.sweeps.progress import BEGUN, DONE, Progress, conflicts, progress_line, progress_of, read_summary
from fedskew.sweeps.references import PlannedRun
from fedskew.sweeps.study import Study, StudyError
from fedskew.text import duration

EXIT_FAILED = 1
EXIT_UNFINISHED = 75  # EX_TEMPFAIL: call again
POLL_SECONDS, TELL_SECONDS = 1.0, 30.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Place:
    """What a sweep may use of the machine.

    Attributes:
        jobs: runs at a time.
        seconds: time after which the sweep stops by itself; 0: none.
        pin: each run on cores of its own, where there are enough.
        command: what runs a request, see `fedskew.cli.cell`.
    """

    jobs: int = 1
    seconds: float = 0.0
    pin: bool = True
    command: Sequence[str] = COMMAND


class SweepError(FedskewError, RuntimeError):
    """A sweep that cannot begin in this folder; the message says why."""


def check_folder(study: Study, out: Path) -> None:
    """Refuse a folder whose runs had other settings than the study now gives them.

    Raises:
        StudyError: with every difference, by run.
    """
    lines = [f"{run.name}: {line}" for run in study.runs for line in conflicts(run, out / run.name)]
    if lines:
        raise StudyError(
            f"{out} holds runs of other settings than {study.path} asks for; nothing was changed:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nTake another --out for the new settings, or move these runs away"
        )


def plan_lines(study: Study, out: Path) -> list[str]:
    """What a sweep would do, run by run in its order."""
    todo = {BEGUN: "resume after round {}", DONE: "done"}
    width = max(len(run.name) for run in study.runs)
    states = [(run, progress_of(run, out / run.name)) for run in study.runs]
    return [
        f"{run.name:<{width}}  {todo.get(state.state, 'start').format(state.round_number)}; {run.config.preset}, "
        f"{run.nodes} nodes, {run.config.federation.rounds} rounds, pruning {run.config.prune.criterion}"
        for run, state in states
    ]


class Sweep:
    """One invocation of a sweep.

    Args:
        study: checked, see `read_study`.
        out: folder of the runs.
        say: tells a person a line.
    """

    def __init__(self, study: Study, out: Path, place: Place, say: Callable[[str], None]) -> None:
        self._study, self._out, self._place, self._say = study, out, place, say
        self._jobs: dict[int, Job] = {}  # by place
        self._states: dict[str, Progress] = {}
        self._failed: set[str] = set()
        self._stopped = threading.Event()
        self._reason, self._signal = "", 0
        self._told, self._told_at = "", 0.0

    def run(self) -> int:
        """Run until all is done, or until a signal or the time limit; returns the exit code.

        0: every run is done. 1: some failed. 75: stopped by the time limit. 128 + n: stopped by signal n.

        Raises:
            SweepError: another sweep is at work in the folder, or it cannot be written.
            StudyError: see `check_folder`.
        """
        try:
            (self._out / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SweepError(f"no runs can be made in {self._out}: {error}") from error
        try:
            with FileLock(self._out / ".sweep.lock", timeout=0), self._stoppable():
                check_folder(self._study, self._out)
                return self._work()
        except Timeout:
            raise SweepError(f"another sweep is at work in {self._out}; wait for it, or stop it first") from None

    def _work(self) -> int:
        self._history = History.open(self._out, self._study)
        self._look()
        waiting = deque(run for run in self._study.runs if self._states[run.name].state != DONE)
        self._say(
            f"{len(self._study.runs) - len(waiting)} of {len(self._study.runs)} runs are done; folder {self._out}"
        )
        cores = shared_cores(self._place.jobs) if self._place.pin else [()] * self._place.jobs
        try:
            while waiting or self._jobs:
                for slot in range(self._place.jobs):
                    free = slot not in self._jobs and not self._stopped.is_set()
                    if free and (run := self._next(waiting)):
                        self._start(run, slot, cores[slot])
                self._stopped.wait(POLL_SECONDS)
                self._collect()
                self._look()
                if self._stopped.is_set():
                    break
                self._tell()
        finally:
            self._end_jobs()
        self._look()
        self._jobs.clear()
        return self._close()

    def _next(self, waiting: deque[PlannedRun]) -> PlannedRun | None:
        """The first run that can start, taken out; those that can never, as one that they need has failed, fail."""
        for run in list(waiting):
            lacking = [need for need in run.needs if self._states[need].state != DONE]
            if failed := [need for need in lacking if need in self._failed]:
                waiting.remove(run)
                self._failed.add(run.name)
                self._history.failed(run, f"it starts from {failed[0]}, which failed", [])
                self._say(f"{run.name} FAILED: it starts from {failed[0]}, which failed")
            elif not lacking:
                waiting.remove(run)
                return run
        return None

    def _start(self, run: PlannedRun, slot: int, cores: Sequence[int]) -> None:
        state = self._states[run.name]
        how = f"goes on after round {state.round_number}" if state.round_number >= 0 else "starts"
        self._say(f"{run.name} {how} ({self._log(run)})")
        self._history.started(run)
        self._jobs[slot] = Job(run, self._log(run), cores, self._place.command)

    def _log(self, run: PlannedRun) -> Path:
        return self._out / "logs" / f"{run.name}.log"

    def _collect(self) -> None:
        """Take note of the runs that have ended."""
        for slot, job in list(self._jobs.items()):
            if (code := job.poll()) is not None:
                job.close()
                del self._jobs[slot]
                self._ended(job, code)

    def _ended(self, job: Job, code: int) -> None:
        run, path = job.run, self._out / job.run.name
        took = duration(time.monotonic() - job.started)
        self._states[run.name] = progress_of(run, path)
        if self._states[run.name].state == DONE:
            found = read_summary(path)["final"]["balanced_accuracy"]
            self._say(f"{run.name} is done after {took}: balanced accuracy {found:.3f}")
            self._history.done(run)
            return
        reason = read_summary(path).get("stopped") if code == 0 else ""
        why = f"it stopped: {reason}" if reason else f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        lines = job.last_lines()
        self._failed.add(run.name)
        self._history.failed(run, why, lines)
        self._say(f"{run.name} FAILED after {took}, {why}; the end of {job.log}:")
        for line in lines:
            self._say(f"  | {line}")

    def _look(self) -> None:
        """Read how far the runs are: all of them at first, then those that are running."""
        running = {job.run.name for job in self._jobs.values()}
        for run in self._study.runs:
            if run.name in running or run.name not in self._states:
                self._states[run.name] = progress_of(run, self._out / run.name)

    def _tell(self) -> None:
        """Say how far everything is when that has changed, but not too often."""
        now = time.monotonic()
        running = sorted((job.run.name for job in self._jobs.values()), key=list(self._states).index)
        line = progress_line(self._study.runs, self._states, running, len(self._failed), self._place.jobs)
        if running and line != self._told and now - self._told_at >= TELL_SECONDS:
            self._say(line)
            self._told, self._told_at = line, now

    def _end_jobs(self) -> None:
        for job in self._jobs.values():
            job.ask_to_end()
        for job in self._jobs.values():
            job.make_end()

    def _close(self) -> int:
        counts = Counter(state.state for state in self._states.values())
        left = len(self._study.runs) - counts[DONE]
        if self._stopped.is_set() and left:
            self._say(
                f"stopped: {self._reason}. {counts[DONE]} of {len(self._study.runs)} runs are done, {counts[BEGUN]} go "
                "on from their last finished round, the rest start: give the same command again"
            )
            return 128 + self._signal if self._signal else EXIT_UNFINISHED
        if left:
            names = ", ".join(run.name for run in self._study.runs if run.name in self._failed)
            self._say(f"{left} of {len(self._study.runs)} runs failed ({names}); the same command tries them again")
            return EXIT_FAILED
        self._say(f"all {len(self._study.runs)} runs are done; fedskew table {self._out}")
        return 0

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Signals and the time limit stop the sweep between two looks; the handlers before are put back."""

        def by_signal(number: int, _: object) -> None:
            self._reason, self._signal = signal.Signals(number).name, number
            self._stopped.set()

        def by_time() -> None:
            self._reason = f"its {duration(self._place.seconds)} are over"
            self._stopped.set()

        before = {number: signal.signal(number, by_signal) for number in SIGNALS}
        clock = threading.Timer(self._place.seconds, by_time)
        clock.daemon = True
        if self._place.seconds:
            clock.start()
        try:
            yield
        finally:
            clock.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)
