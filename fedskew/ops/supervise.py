"""Keep a run going on a real SuperLink: when it fails, start it again from its last finished round.

    fedskew run --preset hospitals --data-dir /data/public --connection hospital --supervise

Flower does not take up a run again after its SuperLink was killed: the run is "finished:failed" for good. This submits
the run, watches it, and submits it anew with `resume` as often as there was progress in between. It must run where the
run folder can be seen: on the coordinator.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from typing import Protocol, TypeVar

from fedskew.config.load import load_saved
from fedskew.errors import ExitCode, FedskewError
from fedskew.runs.folder import CONFIG, METRICS, SUMMARY, summary_time
from fedskew.runs.report import summary_text
from fedskew.runs.round_table import round_line
from fedskew.text import printable_lines

AnswerT = TypeVar("AnswerT")

COMPLETED, STOPPED = "finished:completed", "finished:stopped"
POLL_SECONDS, PAUSE_SECONDS = 2.0, 10.0
ASK_EVERY = 15  # looks at the run folder, which cost nothing, for one `flwr list`, which takes seconds of CPU
PATIENCE = 5  # failures in a row without a finished round between them
FIRST_TRIES = 12  # calls until the first answer: a wrong connection is no restart to wait for


class Unreachable(FedskewError, RuntimeError):
    """The SuperLink did not answer, or refused: its message."""


def run_config_text(values: Mapping[str, str]) -> str:
    """A run configuration as `flwr run -c` takes it; empty values are left out.

    Flower looks for a closing quote without regard to escapes, so a quote inside a value is written as \\u0022.
    """

    def toml(text: str) -> str:
        quoted = json.dumps(text, ensure_ascii=False)[1:-1]
        return '"' + re.sub(r"\\(.)", lambda found: r"\u0022" if found[1] == '"' else found[0], quoted) + '"'

    return " ".join(f"{key}={toml(value)}" for key, value in values.items() if value)


class Submitter(Protocol):
    """What supervision needs of Flower; see `FlowerCommands`."""

    def submit(self, values: Mapping[str, str]) -> str:
        """Start a run with this run configuration; returns its id."""

    def status(self, run_id: str) -> tuple[str, str]:
        """Status and details of a run, as `flwr list` tells them."""


@dataclass(frozen=True)
class FlowerCommands:
    """Flower's own commands.

    Args:
        flwr: path of the command `flwr`.
        environment: that it runs in.
        federation: of a simulation, as `--federation-config` takes it; Flower forgets it between runs.
    """

    app: Path
    connection: str
    flwr: str
    environment: Mapping[str, str]
    federation: str = ""

    def submit(self, values: Mapping[str, str]) -> str:
        """See `Submitter`."""
        more = ["--federation-config", self.federation] if self.federation else []
        words = ("run", str(self.app), self.connection, "-c", run_config_text(values), *more, "--format", "json")
        answer = self._ask(*words)
        return str(answer["run-id"])

    def status(self, run_id: str) -> tuple[str, str]:
        """See `Submitter`."""
        answer = self._ask("list", self.connection, "--run-id", run_id, "--format", "json")
        (run,) = answer["runs"]
        return run["status"], run.get("status-details") or ""

    def stop(self, run_id: str) -> None:
        """Ask for the end of a run. Raises `Unreachable`."""
        self._ask("stop", run_id, self.connection, "--format", "json")

    def _ask(self, *words: str) -> dict:
        try:
            done = subprocess.run([self.flwr, *words], env=dict(self.environment), capture_output=True, text=True,
                                  timeout=120, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Unreachable(f"flwr {words[0]}: no answer within 120 s") from None
        answer = _first_json(done.stdout)
        if done.returncode or not answer.get("success"):
            told = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
            last = next((line.strip() for line in reversed(told.splitlines()) if line.strip()), "no answer")
            raise Unreachable(f"flwr {words[0]}: {last[-500:]}")
        return answer


def _first_json(text: str) -> dict:
    """The JSON object in Flower's output, which may begin with warnings."""
    start = text.find("{")
    try:
        return json.JSONDecoder().raw_decode(text[start:])[0] if start >= 0 else {}
    except ValueError:
        return {}


class Supervisor:
    """Submits a run again and again until it is complete.

    Args:
        values: run configuration of the first attempt; its `run.name` must make `folder` the run folder.
        folder: the run folder.
    """

    def __init__(
        self,
        flower: Submitter,
        values: Mapping[str, str],
        folder: Path,
        *,
        say: Callable[[str], None] = print,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._flower, self._values, self._folder = flower, dict(values), folder
        self._say, self._sleep = say, sleep
        self._shown = 0
        self._trouble, self._answered = "", False

    def run(self) -> int:
        """Returns the exit code: 0 if the run went through all of its rounds.

        Raises:
            Unreachable: the SuperLink never answered.
        """
        fruitless, finished = 0, self._rounds()
        while fruitless < PATIENCE:
            status, details = self._attempt()
            if status == COMPLETED:
                return self._end()
            if status == STOPPED:
                self._say(
                    f"the run was stopped by hand; go on with: fedskew run --resume {shlex.quote(str(self._folder))}"
                )
                return ExitCode.STOPPED
            fruitless = fruitless + 1 if self._rounds() == finished else 0
            finished = self._rounds()
            self._say(f"the run failed after round {finished}: {details or status}")
            if fruitless < PATIENCE:
                self._sleep(PAUSE_SECONDS)
        self._say(f"gave up: {PATIENCE} failures in a row without a finished round; see `flwr log` for the reason")
        return ExitCode.FAILED

    def _attempt(self) -> tuple[str, str]:
        """One submitted run up to its end."""
        resume = (self._folder / CONFIG).is_file()
        values = {**resumable(self._values), "resume": str(self._folder)} if resume else self._values
        run_id = self._patiently(lambda: self._flower.submit(values))
        self._say(f"run {run_id} {f'goes on in {self._folder}' if resume else 'started'}")
        ended = summary_time(self._folder)
        for look in itertools.count():
            self._show_rounds()
            if look % ASK_EVERY == 0 or summary_time(self._folder) != ended:
                status, details = self._patiently(lambda: self._flower.status(run_id))
                if status.startswith("finished"):
                    self._show_rounds()
                    return status, details
            self._sleep(POLL_SECONDS)
        raise AssertionError("unreachable")

    def _patiently(self, call: Callable[[], AnswerT]) -> AnswerT:
        """Call until the SuperLink answers: it may be starting again."""
        for tries in itertools.count(1):
            try:
                answer = call()
            except Unreachable as trouble:
                if not self._answered and tries >= FIRST_TRIES:
                    raise
                if str(trouble) != self._trouble:
                    self._say(f"waiting for the SuperLink: {trouble}")
                self._trouble = str(trouble)
                self._sleep(POLL_SECONDS)
            else:
                self._trouble, self._answered = "", True
                return answer
        raise AssertionError("unreachable")

    def _records(self) -> list[dict]:
        path = self._folder / METRICS
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def _rounds(self) -> int:
        return max((record["round"] for record in self._records()), default=-1)

    def _show_rounds(self) -> None:
        records = self._records()
        self._shown = min(self._shown, len(records))
        if records[self._shown :]:
            config = load_saved(self._folder / CONFIG)
            for index in range(self._shown, len(records)):
                elapsed = sum(record["seconds"] for record in records[: index + 1])
                for line in round_line(records[index], config, elapsed, get_terminal_size().columns):
                    self._say(line)
        self._shown = len(records)

    def _end(self) -> int:
        path = self._folder / SUMMARY
        if not path.is_file():
            self._say(f"the run is complete; its folder {self._folder} cannot be seen from here")
            return ExitCode.OK
        summary = json.loads(path.read_text(encoding="utf-8"))
        self._say(summary_text(summary, self._folder))
        return ExitCode.STOPPED if summary.get("stopped") else ExitCode.OK


def resumable(values: Mapping[str, str]) -> dict[str, str]:
    """What a resumed run may be given again: the run folder knows the rest."""
    return {key: value for key, value in values.items() if key == "data-dir"}


def supervise(flower: Submitter, values: Mapping[str, str], folder: Path) -> int:
    """Run `Supervisor` for a person at a terminal; a `KeyboardInterrupt` is the caller's."""
    try:
        return Supervisor(flower, values, folder, say=lambda line: print(printable_lines(line), flush=True)).run()
    except Unreachable as trouble:
        print(f"fedskew: the SuperLink does not answer: {trouble}", file=sys.stderr)
        return ExitCode.FAILED
