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

import pytest

JOB = "MUTANTS"  # in the environment: a JSON file with `names`, `longest` (seconds), `patience`, `fates` (a path)
WARM, MADE = "generated", ("finished_run", "dense_run")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """For every mutant the tests that reach it, the quickest first, until one fails."""
    job = json.loads(Path(os.environ[JOB]).read_text())
    learned = json.loads(Path("mutmut-stats.json").read_text())
    seconds, reaching = learned["duration_by_test"], learned["tests_by_mangled_function_name"]
    items = {item.nodeid: item for item in session.items}
    warm_up(session.items)
    for name in job["names"]:
        tests = sorted((test for test in reaching.get(function_of(name), ()) if test in items), key=seconds.__getitem__)
        tests = [test for test in tests if seconds[test] <= job["longest"]] or tests
        limit = int(job["patience"] * (1 + sum(seconds[test] for test in tests))) + 1
        fate = attempt(session, name, [items[test] for test in tests], limit) if tests else "no tests"
        with Path(job["fates"]).open("a") as file:
            file.write(json.dumps([name, fate]) + "\n")
        os.write(2, f"{name}: {fate}\n".encode())
    return True


def function_of(mutant: str) -> str:
    """mutmut's name of the function that a mutant is of."""
    return mutant.partition("__mutmut_")[0]


def warm_up(items: Sequence[pytest.Item]) -> None:
    """Make the data that many tests share: run a test that wants it, as if one of another file followed."""
    using = [item for item in items if WARM in item.fixturenames and not set(MADE) & set(item.fixturenames)]
    others = [item for item in items if using and item.path != using[0].path]
    if others:
        using[0].config.hook.pytest_runtest_protocol(item=using[0], nextitem=others[0])


def attempt(session: pytest.Session, name: str, items: Sequence[pytest.Item], limit: int) -> str:
    """What becomes of one mutant, within `limit` seconds of the processor, or five times as long."""
    if not (process := os.fork()):
        try:
            os._exit(is_noticed(session, name, items, limit))
        finally:
            os._exit(2)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL, signal.SIGALRM) else "segfault"
    return ("survived", "killed", "suspicious")[os.WEXITSTATUS(status)]


def is_noticed(session: pytest.Session, name: str, items: Sequence[pytest.Item], limit: int) -> bool:
    """Run the tests, in a process that ends with this."""
    os.environ["MUTANT_UNDER_TEST"] = name
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    signal.alarm(5 * limit)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return True
    return False
