"""Every `fedskew run` has a SuperLink of its own: real ones, side by side, interrupted, slow, among other people's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from builders import MICRO
from flwr.cli.flower_config import read_superlink_connection

from fedskew.cli import superlink
from fedskew.cli.interrupts import Interrupts
from fedskew.cli.leftovers import abandoned_homes, stop_leftovers
from fedskew.cli.superlink import OwnSuperLink, SuperLinkError
from fedskew.cli.terminal import Terminal
from fedskew.errors import ExitCode
from fedskew.ops.processes import end_processes, processes_of

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
SETTINGS = (
    f"data.generated-images=160 data.open=0.2 model.name={MICRO} train.batch-size=16 train.threads=1 run.threads=1 "
    "prune.batch-size=16 prune.first-round=1 train.warm-start-epochs=0 federation.rounds="
)
PATIENCE = 900.0  # seconds, for a machine that does much else
TIED = ("setpriv", "--pdeathsig", "TERM", "--")  # a process that gets SIGTERM when that of the tests is killed
SLOW = "import sys, time\nif any('flower-superlink' in word for word in sys.orig_argv):\n    time.sleep({seconds})\n"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


class Command:
    """A `fedskew` command in a session of its own, whose two streams are read as they come."""

    def __init__(self, words, environment, cwd):
        command = [*TIED, sys.executable, "-m", "fedskew", *words]
        self.process = subprocess.Popen(command, env=environment, cwd=cwd, text=True, start_new_session=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self):
        return "\n".join(self.lines)

    def says(self, words):
        wait_for(lambda: words in self.text or self.process.poll() is not None, f"{words}: {self.text}")
        assert words in self.text, self.text

    def press_ctrl_c(self):
        os.killpg(self.process.pid, signal.SIGINT)

    def ends(self):
        code = self.process.wait(PATIENCE)
        self._reader.join(60)
        return code


@pytest.fixture(scope="module")
def place():
    """A person's machine: Flower home, working directory, and a folder for what is temporary."""
    with tempfile.TemporaryDirectory(prefix="fs", dir="/tmp") as name:
        for folder in ("flwr", "other", "t", "work"):
            (Path(name) / folder).mkdir()
        yield Path(name).resolve()


@pytest.fixture(autouse=True)
def nothing_outlives_a_test(place):
    """Whatever becomes of a test, and of what it asks for first, all that it started has ended afterwards."""
    yield
    assert not end_processes(lambda: started_in(place))


def started_in(place):
    """Processes that were started for a Flower home below a place, with all that they started."""
    homes = set()
    for variables in _environments():
        homes |= {word[10:] for word in variables.split("\0") if word.startswith(f"FLWR_HOME={place}/")}
    return [process for home in sorted(homes) for process in processes_of(Path(home))]


def environment_of(place, home="flwr", **more):
    return os.environ | {
        "FLWR_HOME": str(place / home), "RAY_TMPDIR": str(place / "t"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT), "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", **more,
    }  # fmt: skip


def slow(place, seconds):
    """PYTHONPATH with which a SuperLink needs so long to start."""
    folder = place / f"slow-{seconds}"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SLOW.format(seconds=seconds))
    return f"{folder}{os.pathsep}{ROOT}"


def run(place, environment, *words):
    return Command(["run", "--nodes", "2", *words], environment, place / "work")


def nothing_is_left(place):
    """No temporary folder, and no process that was started with one for its home."""
    return not list((place / "t").iterdir()) and not [line for line in _environments() if f"{place}/t/" in line]


def _environments():
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            yield path.read_bytes().decode(errors="replace")
        except OSError:
            continue


@pytest.fixture
def somebody_elses(place):
    """The local SuperLink of another Flower home, as `flwr run` starts it, on what is Flower's port here."""
    port, log = free_port(), place / "other" / "local-superlink" / "superlink.log"
    log.parent.mkdir(exist_ok=True)
    command = [*TIED, PROGRAMS / "flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1",
               "--port", str(port), "--log-file", log, "--database", log.with_name("state.db")]  # fmt: skip
    process = subprocess.Popen(command, env=environment_of(place, "other"), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    wait_for(lambda: superlink.is_healthy(port), "another SuperLink")
    yield port, process, log.with_name("state.db")
    end_processes(lambda: processes_of(place / "other"))
    process.wait()


def test_what_a_test_starts_ends_with_it(place):
    """What `nothing_outlives_a_test` does, with what has left its parent behind, too."""
    orphan = "setsid sleep 600 & exec sleep 600"
    process = subprocess.Popen(["sh", "-c", orphan], env=environment_of(place, "other"))
    family = wait_for(lambda: len(found := {member.pid for member in started_in(place)}) == 2 and found, "the orphan")
    assert process.pid in family
    assert end_processes(lambda: started_in(place)) == []
    assert process.wait() == -signal.SIGTERM
    assert started_in(place) == []


def test_what_the_tests_start_ends_when_they_are_killed():
    """No finaliser runs then."""
    killed = (
        f"import subprocess, time; print(subprocess.Popen({[*TIED, 'sleep', '600']}).pid, flush=True); time.sleep(600)"
    )
    tests = subprocess.Popen([sys.executable, "-c", killed], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(tests.stdout.readline()))
    wait_for(lambda: child.name() == "sleep", "setpriv")
    tests.kill()
    tests.wait()
    assert psutil.wait_procs([child], PATIENCE)[0] == [child]


def test_runs_side_by_side_do_not_meet_and_leave_nothing(generated, place, somebody_elses):
    port, other, database = somebody_elses
    environment = environment_of(place, FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=str(port))
    seconds = 16  # Flower itself gives a SuperLink 15
    quick = run(place, environment, "--name", "long", "--set", f"{SETTINGS}900")
    late = run(place, environment | {"PYTHONPATH": slow(place, seconds)}, "--name", "short", "--set", f"{SETTINGS}1")

    late.says("Flower's SuperLink is still starting after ")
    quick.says("  0/900 ")
    quick.press_ctrl_c()
    assert quick.ends() == ExitCode.INTERRUPTED
    assert "fedskew: interrupted; Flower stops run " in quick.text
    assert "Traceback" not in quick.text
    assert "fedskew: the run has ended after round " in quick.text
    assert quick.lines[-1] == "next: fedskew run --resume runs/long"

    assert late.ends() == 0, late.text  # it did not mind
    assert "run folder: " + str(place / "work" / "runs" / "short") in late.text
    wait_for(lambda: nothing_is_left(place), "processes, or folders, of runs that have ended")

    resumed = run(place, environment, "--resume", "runs/long")
    resumed.says("resuming after round ")
    os.kill(resumed.process.pid, signal.SIGTERM)  # `kill`, systemd, CI: no other process gets it
    assert resumed.ends() == ExitCode.INTERRUPTED
    assert resumed.lines[-1] == "next: fedskew run --resume runs/long"
    assert nothing_is_left(place)

    assert other.poll() is None, "another home's SuperLink is left alone"
    with closing(sqlite3.connect(database)) as state:
        assert state.execute("SELECT count(*) FROM run").fetchone() == (0,), "and was not used"
    stopped = Command(["stop"], environment, place)
    assert stopped.ends() == 0
    assert stopped.lines == [
        f"no local SuperLink of {place / 'flwr'} is running",
        f"port {port} is answered by a SuperLink that was not started from there: it is left alone",
    ]
    assert other.poll() is None


def test_what_is_interrupted_while_its_superlink_starts_leaves_nothing(generated, place):
    started = run(place, environment_of(place, PYTHONPATH=slow(place, 600)), "--set", f"{SETTINGS}1")
    wait_for(lambda: list((place / "t").glob("*/config.toml")), started.text)
    started.press_ctrl_c()
    assert started.ends() == ExitCode.INTERRUPTED
    assert started.lines[-1] == "fedskew: interrupted before the run was started; nothing of it is running"
    assert not (place / "work" / "runs").exists() or not list((place / "work" / "runs").glob("2*"))
    assert nothing_is_left(place)


def test_stop_clears_up_after_a_run_that_was_killed_and_leaves_one_that_goes_on(generated, place):
    environment = environment_of(place, PYTHONPATH=slow(place, 600))
    killed, going = (run(place, environment, "--set", f"{SETTINGS}1") for _ in range(2))
    homes = wait_for(lambda: len(found := list((place / "t").glob("*/superlink.log"))) == 2 and found, killed.text)
    killed.process.kill()
    killed.process.wait()
    stopped = Command(["stop"], environment_of(place), place)
    assert stopped.ends() == 0
    (line,) = [line for line in stopped.lines if "was killed" in line]
    (gone,) = [home.parent for home in homes if not home.exists()]
    assert str(gone) in line
    assert not processes_of(gone)
    (kept,) = [home.parent for home in homes if home.exists()]
    assert processes_of(kept)
    assert going.process.poll() is None
    going.press_ctrl_c()
    assert going.ends() == ExitCode.INTERRUPTED
    assert nothing_is_left(place)


@pytest.fixture
def link(place, monkeypatch):
    """Makes an `OwnSuperLink` in this process."""
    for name, value in environment_of(place).items():
        monkeypatch.setenv(name, value)
    with Interrupts() as interrupts:
        yield lambda **more: OwnSuperLink(os.environ | more, Terminal(), interrupts)


def test_a_port_that_somebody_takes_first_is_not_shared(link, place, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1], free_port()]
        wanted = list(ports)
        monkeypatch.setattr(superlink, "START_SECONDS", PATIENCE)
        monkeypatch.setattr(superlink, "_free_port", lambda: wanted.pop(0))
        with link() as own:
            assert superlink.is_healthy(ports[1])
            assert f'address = "127.0.0.1:{ports[1]}"' in (own.home / "config.toml").read_text()
    assert not superlink.is_healthy(ports[1])
    assert nothing_is_left(place)


def test_the_persons_connections_stay_readable_and_as_they_are(link, place, monkeypatch):
    file = place / "flwr" / "config.toml"
    mine = '[superlink]\ndefault = "hospital"\n[superlink.hospital]\naddress = "host:8000"\n'
    file.write_text(mine)
    monkeypatch.setattr(OwnSuperLink, "_launch", lambda *_: subprocess.Popen([sys.executable, "-c", ""]))
    monkeypatch.setattr(OwnSuperLink, "_answers", lambda *_: True)
    with link() as own:
        monkeypatch.setenv("FLWR_HOME", own.environment["FLWR_HOME"])
        assert read_superlink_connection("hospital").address == "host:8000"
        assert read_superlink_connection("local-simulation").address.startswith("127.0.0.1:")
        monkeypatch.setenv("FLWR_HOME", str(place / "flwr"))
    assert file.read_text() == mine
    file.write_text('[superlink.local-simulation]\naddress = "host:1"\n')
    with pytest.raises(SuperLinkError, match=r"config.toml gives the connection local-simulation the address host:1"):
        link().__enter__()
    file.write_text("[superlink")
    with pytest.raises(SuperLinkError, match=r"config.toml cannot be read"):
        link().__enter__()
    file.unlink()
    assert nothing_is_left(place)


def test_a_superlink_that_never_answers_or_ends_is_named(link, place, monkeypatch, capsys):
    monkeypatch.setattr(superlink, "START_SECONDS", 3.0)
    monkeypatch.setattr(superlink, "TELL_SECONDS", 1.0)
    with pytest.raises(SuperLinkError, match=r"did not answer within 3 s: try again .* `fedskew simulate`"):
        link(PYTHONPATH=slow(place, 600)).__enter__()
    assert "s; this machine is busy. It has 3 s" in capsys.readouterr().err
    broken = place / "broken"
    broken.mkdir()
    (broken / "flower-superlink").write_text("#!/bin/sh\necho 'no room on the disk' >&2\nexit 7\n")
    (broken / "flower-superlink").chmod(0o755)
    with pytest.raises(SuperLinkError, match=r"exit code 7\): no room on the disk"):
        link(PATH=str(broken)).__enter__()
    assert nothing_is_left(place)


def test_a_second_interrupt_hurries_and_does_not_break_off():
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            assert not interrupts.hurried
            signal.raise_signal(signal.SIGINT)
            assert interrupts.hurried
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_processes_that_do_not_want_to_end_are_killed_at_once_when_it_is_hurried(tmp_path):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", stubborn], env=os.environ | {"FLWR_HOME": str(tmp_path)},
                               stdout=subprocess.PIPE)  # fmt: skip
    process.stdout.readline()
    begun = time.monotonic()
    assert [found.pid for found in processes_of(tmp_path)] == [process.pid]
    assert end_processes(lambda: processes_of(tmp_path), lambda: True) == []
    assert process.wait() == -signal.SIGKILL
    assert time.monotonic() - begun < 10


def test_nothing_to_stop_is_said(place, monkeypatch):
    for name, value in environment_of(place, FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=str(free_port())).items():
        monkeypatch.setenv(name, value)
    theirs = place / "t" / "fedskew-run-theirs"
    theirs.mkdir(mode=0o700)
    (theirs / "lock").touch()
    assert abandoned_homes() == [theirs]
    if os.geteuid() == 0:
        os.chown(theirs, 12345, -1)
        assert abandoned_homes() == [], "another account's are its own affair"
    shutil.rmtree(theirs)
    assert stop_leftovers() == [f"no local SuperLink of {place / 'flwr'} is running"]
