"""A sweep: in its order, several at a time, past failures, and on from wherever it was stopped."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from builders import IMAGES, MICRO
from filelock import FileLock
from typer.testing import CliRunner

from fedskew.apps import make_client_app
from fedskew.cli.main import app
from fedskew.federation.grids import LocalGrid
from fedskew.federation.server import FederatedRun
from fedskew.runs.folder import RunFolder
from fedskew.sweeps import sweep as sweep_module
from fedskew.sweeps.history import read_history
from fedskew.sweeps.job import shared_cores
from fedskew.sweeps.progress import Progress, progress_line, seconds_left
from fedskew.sweeps.study import StudyError, read_study
from fedskew.sweeps.sweep import EXIT_FAILED, EXIT_UNFINISHED, Place, Sweep, SweepError

FAKE = (sys.executable, str(Path(__file__).with_name("fake_cell.py")))
REAL = f"""\
preset: demo
nodes: 2
seeds: [0, 1]
set:
  - model.name={MICRO} data.generated-images={IMAGES} data.open=0.2 federation.rounds=3 run.threads=1
  - train.batch-size=16 train.local-epochs=1 prune.batch-size=16 prune.first-round=1
cells:
  dense: {{set: prune.criterion=none}}
  pruned: {{}}
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Sweep a study with a stand-in for its runs; returns the exit code and what was said."""
    monkeypatch.setattr(sweep_module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(sweep_module, "TELL_SECONDS", 0.0)
    out = tmp_path / "out"
    out.mkdir()

    def start(cells="a: {}\n  b: {}", *, seeds="[0, 1]", settings="", behaviour=None, **place):
        (out / "behaviour.json").write_text(json.dumps(behaviour or {}))
        path = tmp_path / "study.yaml"
        setting = f"model.name={MICRO} federation.rounds=4 {settings}"
        path.write_text(f"preset: demo\nnodes: 3\nseeds: {seeds}\nset: {setting}\ncells:\n  {cells}\n")
        said = []
        code = Sweep(read_study(path, out), out, Place(command=FAKE, **place), said.append).run()
        return code, said

    start.out = out
    return start


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def starts(said):
    return [line.split()[0] for line in said if " starts " in line]


def test_runs_start_in_their_order_and_are_done_once(sweep):
    code, said = sweep()
    assert code == 0
    assert starts(said) == ["a-s0", "b-s0", "a-s1", "b-s1"]
    assert said[-1].startswith("all 4 runs are done")
    history = read_history(sweep.out)
    assert history["cells"] == ["a", "b"]
    assert all((run["state"], run["attempts"]) == ("done", 1) for run in history["runs"].values())
    before = contents(sweep.out / "a-s0")
    code, said = sweep()
    assert (code, starts(said)) == (0, [])
    assert contents(sweep.out / "a-s0") == before


def test_new_cells_and_seeds_join_what_is_done(sweep):
    sweep("a: {}", seeds="[0]")
    code, said = sweep("c: {}\n  a: {}", seeds="[0, 5]")
    assert (code, starts(said)) == (0, ["c-s0", "c-s5", "a-s5"])
    assert read_history(sweep.out)["cells"] == ["c", "a"]
    assert set(read_history(sweep.out)["runs"]) == {"a-s0", "a-s5", "c-s0", "c-s5"}


def test_a_failed_run_is_shown_and_recorded_the_others_go_on_and_it_is_tried_again(sweep):
    code, said = sweep(behaviour={"b-s0": "fail"})
    assert code == EXIT_FAILED
    assert starts(said) == ["a-s0", "b-s0", "a-s1", "b-s1"]
    place = next(i for i, line in enumerate(said) if line.startswith("b-s0 FAILED"))
    assert "exit code 7" in said[place]
    assert said[place + 1 : place + 5] == [
        *(f"  | {line}" for line in _log_head(sweep.out / "logs" / "b-s0.log")),
        "  | this is b-s0 with 2 threads", "  | INFO: before it", "  | the reason why it failed",
    ]  # fmt: skip
    assert "1 of 4 runs failed (b-s0)" in said[-1]
    entry = read_history(sweep.out)["runs"]["b-s0"]
    assert (entry["state"], entry["why"]) == ("failed", "exit code 7")
    assert entry["last_lines"][-1] == "the reason why it failed"
    code, said = sweep()
    assert (code, starts(said)) == (0, ["b-s0"])
    entry = read_history(sweep.out)["runs"]["b-s0"]
    assert (entry["state"], entry["attempts"], entry.get("why")) == ("done", 2, None)


def _log_head(log):
    return [line for line in log.read_text().splitlines() if line.startswith("===")]


def test_a_run_that_stopped_early_is_not_done(sweep):
    code, said = sweep("a: {}", seeds="[0]", behaviour={"a-s0": "stop"})
    assert code == EXIT_FAILED
    assert any("it stopped: 3 rounds below the quorum" in line for line in said)
    assert sweep("a: {}", seeds="[0]")[0] == 0


def when_hanging(out, runs, act):
    """Do something as soon as the stand-ins hang, in a thread; returns it with the processes that they started."""
    pids = []

    def watch():
        files = [out / name / "pids.json" for name in runs]
        while not all(file.is_file() for file in files):
            time.sleep(0.02)
        pids.extend(pid for file in files for pid in json.loads(file.read_text()))
        act(pids)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread, pids


def gone(pids):
    """Whether processes end within seconds; those of a dead parent are zombies until init looks."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_runs_and_keeps_everything(sweep, number):
    before = signal.getsignal(number)
    thread, pids = when_hanging(sweep.out, ["b-s0", "a-s1"], lambda _: os.kill(os.getpid(), number))
    code, said = sweep(behaviour={"b-s0": "hang", "a-s1": "hang"}, jobs=2)
    thread.join(5)
    assert code == 128 + number
    assert len(pids) == 4
    assert gone(pids), "with all that they started"
    assert said[-1].startswith(f"stopped: {number.name}. 1 of 4 runs are done, 2 go on")
    assert "same command again" in said[-1]
    assert signal.getsignal(number) == before
    code, said = sweep()
    assert code == 0
    assert not {"a-s0"} & set(starts(said)), "what was done stays done"


def test_the_time_limit_stops_with_its_own_exit_code(sweep):
    code, said = sweep(behaviour={"a-s0": "hang"}, seconds=1.5)
    assert code == EXIT_UNFINISHED
    assert said[-1].startswith("stopped: its 0m02s are over. ")  # how far it came is the machine's affair
    assert sweep()[0] == 0
    assert sweep(seconds=0.001)[0] == 0, "nothing was left to stop"


def test_a_killed_run_is_a_failure_of_that_run_alone(sweep):
    thread, _ = when_hanging(sweep.out, ["a-s0"], lambda pids: os.kill(pids[0], signal.SIGKILL))
    code, said = sweep(behaviour={"a-s0": "hang"})
    thread.join(5)
    assert code == EXIT_FAILED
    assert any(line.startswith("a-s0 FAILED") and "killed by signal 9" in line for line in said)
    assert sum(" is done after " in line for line in said) == 3


def test_two_sweeps_do_not_share_a_folder(sweep):
    with FileLock(sweep.out / ".sweep.lock"), pytest.raises(SweepError, match="another sweep is at work in"):
        sweep()
    assert not (sweep.out / "a-s0").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "study.yaml"
    path.write_text(f"preset: demo\nset: model.name={MICRO}\ncells: {{a: {{}}}}\n")
    out = tmp_path / "file" / "out"
    with pytest.raises(SweepError, match=r"no runs can be made in .*file/out"):
        Sweep(read_study(path, out), out, Place(command=FAKE), print).run()


def test_other_settings_than_those_of_the_folder_are_refused_by_run_and_key(sweep, tmp_path):
    sweep()
    (sweep.out / "b-s1" / "split.json").write_text(json.dumps({"ids": {"parts": [[], []]}}))
    before = contents(sweep.out)
    with pytest.raises(StudyError) as error:
        sweep("a: {}\n  b: {set: train.lr=0.5 run.eval-batch-size=7}\n  c: {}")
    lines = str(error.value).splitlines()
    old = read_study(tmp_path / "study.yaml", sweep.out).runs[0].config.train.lr
    assert lines[1:6] == [
        f"  b-s0: train.lr was {old}, is 0.5",
        "  b-s0: run.eval-batch-size was 256, is 7",
        f"  b-s1: train.lr was {old}, is 0.5",
        "  b-s1: run.eval-batch-size was 256, is 7",
        "  b-s1: nodes was 2, is 3",
    ]
    assert "move these runs away" in lines[-1]
    assert contents(sweep.out) == before, "nothing is overwritten and nothing started"


def test_a_folder_that_was_moved_with_its_data_goes_on(sweep, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    sweep("a: {data-dir: here}", seeds="[0]")
    assert sweep("a: {data-dir: there}", seeds="[0]") == (0, [
        f"1 of 1 runs are done; folder {sweep.out}", f"all 1 runs are done; fedskew table {sweep.out}"
    ])  # fmt: skip


def test_a_configuration_that_cannot_be_read_and_a_damaged_history_are_named(sweep):
    sweep("a: {}", seeds="[0]")
    (sweep.out / "a-s0" / "config.yaml").write_text("train: {lrr: 1}")
    with pytest.raises(StudyError, match=r"a-s0: .*config.yaml: unknown key train.lrr"):
        sweep("a: {}", seeds="[0]")
    (sweep.out / "sweep.json").write_text("{")
    with pytest.raises(StudyError, match=r"sweep.json is damaged .*delete it"):
        sweep("b: {}", seeds="[0]")


def progress_of_three(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("preset: demo\nseeds: [0, 1]\nset: federation.rounds=10\ncells: {a: {}, b: {}, c: {seeds: [0]}}\n")
    return read_study(path, tmp_path).runs


def test_time_left_is_rounds_left_times_the_pace_of_the_run_its_cell_or_all(tmp_path):
    runs = progress_of_three(tmp_path)  # a-s0, b-s0, c-s0, a-s1, b-s1
    states = {run.name: Progress() for run in runs}
    assert seconds_left(runs, states, 1) is None
    states["a-s0"] = Progress("done", 10, (2.0, 4.0))
    states["b-s0"] = Progress("begun", 4, (7.0,))
    # b-s0: 6 rounds of 7; c-s0 (nothing known): 10 of (2 + 4 + 7) / 3; a-s1: 10 of 3; b-s1: 10 of 7
    each = [6 * 7, 10 * 13 / 3, 10 * 3, 10 * 7]
    assert seconds_left(runs, states, 1) == pytest.approx(sum(each))
    assert seconds_left(runs, states, 2) == pytest.approx(sum(each) / 2)
    assert seconds_left(runs, states, 50) == pytest.approx(70), "the longest run cannot be shared"
    line = progress_line(runs, states, ["b-s0"], 1, 2)
    assert line == "1 of 5 done, 1 running (b-s0 4/10), 1 failed, 2 left, about 1m33s left"
    states["b-s0"] = Progress("done", 10, (7.0,))
    assert progress_line(runs, states, ["b-s0"], 0, 1).startswith("1 of 5 done, 1 running (b-s0 10/10), 3 left, about ")
    assert seconds_left(runs, {run.name: Progress("done", 10, (1.0,)) for run in runs}, 1) == 0


def test_every_place_has_cores_of_its_own(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 2, 3, 5, 11}, raising=False)
    assert shared_cores(2) == [(2, 3), (5, 7)]
    assert shared_cores(1) == [()], "alone, a run may use all"
    assert shared_cores(6) == [()] * 6
    monkeypatch.delattr(os, "sched_getaffinity")
    assert shared_cores(2) == [(), ()]


def command(*words):
    return [sys.executable, "-c", "from fedskew.cli.main import app; app()", *map(str, words)]


def wait_for_a_round(out, process):
    """Until some run has finished a round beyond the first evaluation and none is through."""
    while process.poll() is None:
        rounds = [len(path.read_text().splitlines()) for path in out.glob("*/metrics.jsonl")]
        if max(rounds, default=0) >= 2:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0])


def model_hashes(folders):
    return {path.name: hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() for path in folders}


def test_a_sweep_killed_midway_ends_with_the_models_of_undisturbed_runs(tmp_path, generated):
    path, out = tmp_path / "study.yaml", tmp_path / "out"
    path.write_text(REAL)
    words = command("sweep", path, "--out", out, "--jobs", 2)
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_a_round(out, first)
    children = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.communicate()
    assert len(children) == 2
    assert gone([child.pid for child in children]), "the runs do not outlive their sweep"
    assert not any((folder / "summary.json").is_file() for folder in out.glob("*-s1"))
    begun = {path.parent.name: len(path.read_text().splitlines()) for path in out.glob("*-s0/metrics.jsonl")}

    said = []
    assert Sweep(read_study(path, out), out, Place(jobs=2), said.append).run() == 0, said
    assert any("goes on after round" in line for line in said), (begun, said)
    assert not (out / "dense-s0-2").exists()

    expected = []
    for run in read_study(path, tmp_path / "undisturbed").runs:
        folder = RunFolder(Path(run.config.run.output_dir) / run.name)
        (folder.path / "checkpoints").mkdir(parents=True)
        expected.append(FederatedRun(LocalGrid(make_client_app(), run.nodes), run.config, folder).run().path)
    assert model_hashes(out / folder.name for folder in expected) == model_hashes(expected)
    for folder in expected:
        rounds = [record["round"] for record in RunFolder(out / folder.name).records()]
        assert rounds == [0, 1, 2, 3], "each round has its line, once"


def test_what_a_real_run_fails_of_is_told_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    path, out, said = tmp_path / "study.yaml", tmp_path / "out", []
    path.write_text(f"preset: demo\ndata-dir: empty\nset: model.name={MICRO}\ncells: {{a: {{}}}}\n")
    assert Sweep(read_study(path, out), out, Place(), said.append).run() == EXIT_FAILED
    assert any(line.startswith(f"  | fedskew: {tmp_path / 'empty'}") for line in said), said
    assert not any("Traceback" in line for line in said)
    assert "exit code 2" in read_history(out)["runs"]["a-s0"]["why"]


def test_a_dry_run_says_what_would_be_done_and_starts_nothing(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(REAL)
    result = CliRunner().invoke(app, ["sweep", str(path), "--out", str(tmp_path / "out"), "--seeds", "3", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "dense-s3   start; demo, 2 nodes, 3 rounds, pruning none",
        "pruned-s3  start; demo, 2 nodes, 3 rounds, pruning skewness",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seeds", ["1,1", "a", "0,-1", "1.5"])
def test_seeds_on_the_command_line_are_checked(tmp_path, seeds):
    path = tmp_path / "study.yaml"
    path.write_text(REAL)
    result = CliRunner().invoke(app, ["sweep", str(path), "--out", str(tmp_path), "--seeds", seeds])
    assert result.exit_code == 2
    assert "is no list of different whole numbers" in " ".join(result.output.split())
