"""A plugin of pytest's for `mutants.py`: tests are collected once, then run in a fork of the process for each mutant.

Collecting and importing costs seconds, and most mutants are noticed within a fraction of one. The session fixture that
holds data (`WARM`) is made before the forks; those that hold what the code under test makes are not: a mutant must
reach them.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mutmut.state import state

JOB = "MUTANTS"  # in the environment: a JSON file with `names`, `longest` (seconds), `patience`, and paths
WARM, MADE = "generated", ("finished_run", "dense_run")
ACTIVE = "MUTANT_UNDER_TEST"  # in the environment: which mutant mutmut's code runs; `stats`: note what is reached


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """For every mutant the tests that reach it, the quickest first, until one fails."""
    job = json.loads(Path(os.environ[JOB]).read_text())
    warm_up(session.items)
    learned = learn(session, Path(job["learned"]))
    items = {item.nodeid: item for item in session.items}
    for name in job["names"]:
        function = name.partition("__mutmut_")[0].replace("__init__.", "")
        tests = sorted((seconds, test) for test, (seconds, reached) in learned.items() if function in reached)
        tests = [pair for pair in tests if pair[0] <= job["longest"]] or tests
        limit = int(job["patience"] * (1 + sum(seconds for seconds, _ in tests))) + 1
        fate = attempt(session, name, [items[test] for _, test in tests], limit) if tests else "no tests"
        with Path(job["fates"]).open("a") as file:
            file.write(json.dumps([name, fate]) + "\n")
        os.write(2, f"{name}: {fate}\n".encode())
    return True


def warm_up(items: Sequence[pytest.Item]) -> None:
    """Make the data that many tests share: run a test that wants it, as if one of another file followed."""
    using = [item for item in items if WARM in item.fixturenames and not set(MADE) & set(item.fixturenames)]
    others = [item for item in items if using and item.path != using[0].path]
    if others:
        using[0].config.hook.pytest_runtest_protocol(item=using[0], nextitem=others[0])


def learn(session: pytest.Session, record: Path) -> dict[str, tuple[float, list[str]]]:
    """Seconds and functions that it reaches of every test; run in a fork, and once for each test.

    One that fails without any mutant, in a fork or on a machine like this, could not tell: it is left out, and named.
    """
    known = json.loads(record.read_text()) if record.is_file() else {}
    fresh = [item for item in session.items if item.nodeid not in known]
    if fresh and not (process := os.fork()):
        try:
            os.environ[ACTIVE] = "stats"
            session.config.pluginmanager.register(learning := Learning())
            run(session, fresh, to_the_end=True)
            record.write_text(json.dumps(known | learning.found))
            os._exit(0)
        finally:
            os._exit(2)
    if fresh and os.waitpid(process, 0)[1]:
        raise pytest.UsageError("what the tests reach could not be learned")
    known = json.loads(record.read_text())
    return {item.nodeid: known[item.nodeid] for item in session.items}


class Learning:
    """A plugin that notes what mutmut's code tells while the tests run."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, list[str]]] = {}
        self.told = os.dup(2)

    def pytest_runtest_setup(self) -> None:
        """What was reached before belongs to others."""
        state()._stats.clear()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Only the seconds of the test itself: fixtures may be others' too."""
        if report.when == "call" and report.passed:
            self.found[report.nodeid] = (report.duration, sorted(state()._stats))
        elif not report.passed:
            self.found[report.nodeid] = (0.0, [])
            if report.failed:
                os.write(self.told, f"left out, it fails without any mutant: {report.nodeid}\n".encode())


def attempt(session: pytest.Session, name: str, items: Sequence[pytest.Item], limit: int) -> str:
    """What becomes of one mutant, within `limit` seconds of the processor, or five times as long."""
    if not (process := os.fork()):
        try:
            os.environ[ACTIVE] = name
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            signal.alarm(5 * limit)
            os._exit(run(session, items))
        finally:
            os._exit(2)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL, signal.SIGALRM) else "segfault"
    return ("survived", "killed", "suspicious")[os.WEXITSTATUS(status)]


def run(session: pytest.Session, items: Sequence[pytest.Item], *, to_the_end: bool = False) -> bool:
    """Run tests until one fails, or all: whether one does. In a process of their own, which ends with this."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed and not to_the_end:
            return True
    return session.testsfailed > 0
