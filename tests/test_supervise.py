"""A supervised run is submitted again from its last finished round, as long as there is progress."""

from __future__ import annotations

import shutil

import pytest

from fedskew.errors import ExitCode
from fedskew.ops.supervise import FIRST_TRIES, PATIENCE, FlowerCommands, Supervisor, Unreachable
from fedskew.runs.folder import RunFolder

VALUES = {"preset": "demo", "set": "run.name=here", "data-dir": "/data", "output-dir": "/runs"}


class _Flower:
    """Plays a SuperLink: each submission is a list of answers to `status`; an exception is raised."""

    def __init__(self, *runs, on_submit=lambda number: None):
        self.runs, self.submitted, self.on_submit = [list(run) for run in runs], [], on_submit

    def submit(self, values):
        self.on_submit(len(self.submitted))
        self.submitted.append(dict(values))
        return str(len(self.submitted))

    def status(self, run_id):
        answer = self.runs[int(run_id) - 1].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


FAILED, RUNNING, DONE = ("finished:failed", "No heartbeat"), ("running", ""), ("finished:completed", "")


@pytest.fixture
def supervised(tmp_path):
    said: list[str] = []

    def start(flower, folder=tmp_path / "here"):
        return Supervisor(flower, VALUES, folder, say=said.append, sleep=lambda _: None).run(), said

    return start


def test_a_failed_run_goes_on_from_its_folder_until_it_completes(supervised, finished_run, tmp_path):
    folder = tmp_path / "here"

    def rounds(number):  # the run folder as the first attempt leaves it, then complete
        if number == 0:
            shutil.copytree(finished_run.path, folder, ignore=shutil.ignore_patterns("summary.json"))
        elif number == 2:
            shutil.copy(finished_run.path / "summary.json", folder)

    flower = _Flower([RUNNING, FAILED], [RUNNING, Unreachable("refused"), FAILED], [DONE], on_submit=rounds)
    code, said = supervised(flower)
    assert code == 0
    assert flower.submitted == [VALUES, *2 * [{"data-dir": "/data", "resume": str(folder)}]]
    assert sum(line.startswith("waiting for the SuperLink") for line in said) == 1
    assert any("No heartbeat" in line for line in said)
    assert any(line.lstrip().startswith("2/2") for line in said), "the rounds are shown as they finish"
    assert said[-1].endswith(f"run folder: {folder}")


@pytest.mark.parametrize("left", [[], ["config.yaml"]], ids=["before the folder", "before round 0"])
def test_after_an_early_kill_the_second_attempt_runs_in_the_folder_that_is_watched(supervised, tmp_path, left):
    """A killed server leaves its folder with a configuration or none at all: never one whose name is only taken."""
    folder = tmp_path / "here"

    def killed(number):
        if number == 0 and left:
            RunFolder.create(tmp_path, "here", dict.fromkeys(left, "preset: demo\n"), numbered=False)

    flower = _Flower([FAILED], [DONE], on_submit=killed)
    assert supervised(flower)[0] == ExitCode.OK
    assert flower.submitted[1] == ({"data-dir": "/data", "resume": str(folder)} if left else VALUES)


def test_a_folder_that_is_being_discarded_when_its_process_dies_is_not_taken_for_a_run(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path, "here", {"config.yaml": "preset: demo\n"}, numbered=False)

    def dies(path, **_):
        (path / "config.yaml").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("fedskew.runs.folder.shutil.rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        folder.discard()
    monkeypatch.undo()
    assert not (tmp_path / "here").exists()
    assert RunFolder.create(tmp_path, "here", {}, numbered=False).path == tmp_path / "here"


def test_failures_without_a_finished_round_end_it(supervised):
    code, said = supervised(_Flower(*([FAILED] for _ in range(PATIENCE))))
    assert code == 1
    assert said[-1].startswith(f"gave up: {PATIENCE} failures in a row")


def test_a_run_that_a_person_stopped_stays_stopped(supervised):
    flower = _Flower([("finished:stopped", "")])
    assert supervised(flower)[0] == ExitCode.STOPPED
    assert len(flower.submitted) == 1


def test_a_connection_that_never_answers_is_reported(supervised):
    calls = []

    def refuse(number):
        calls.append(number)
        raise Unreachable("no such connection")

    with pytest.raises(Unreachable, match="no such connection"):
        supervised(_Flower(on_submit=refuse))
    assert len(calls) == FIRST_TRIES


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("echo 'not json'", "not json"),
        ('echo \'{"success": false, "error-message": "no SuperLink"}\'', "no SuperLink"),
        ("echo broken >&2; exit 1", "broken"),
        (
            "printf 'Using SuperLink: x\\n Stopping run 7...\\n\\n[code: 18] Run is already finished.\\n' >&2; exit 1",
            r"^flwr run: \[code: 18\] Run is already finished\.$",
        ),
    ],
)
def test_what_flwr_says_is_passed_on(tmp_path, answer, told):
    flwr = tmp_path / "flwr"
    flwr.write_text(f"#!/bin/sh\n{answer}\n")
    flwr.chmod(0o755)
    with pytest.raises(Unreachable, match=told):
        FlowerCommands(tmp_path, "hospital", str(flwr), {}).submit(VALUES)


def test_flwr_is_called_with_the_run_configuration(tmp_path):
    flwr = tmp_path / "flwr"
    flwr.write_text(
        f"#!/bin/sh\necho \"$@\" >> {tmp_path}/words\necho 'a warning'\n"
        'echo \'{"success": true, "run-id": "7", "runs": [{"status": "running", "status-details": null}]}\'\n'
    )
    flwr.chmod(0o755)
    commands = FlowerCommands(tmp_path, "hospital", str(flwr), {"PATH": "/bin:/usr/bin"})
    assert commands.submit(VALUES) == "7"
    assert commands.status("7") == ("running", "")
    first, second = (tmp_path / "words").read_text().splitlines()
    assert first.startswith(f'run {tmp_path} hospital -c preset="demo" set="run.name=here" data-dir="/data"')
    FlowerCommands(tmp_path, "here", str(flwr), {"PATH": "/bin:/usr/bin"}, "num-supernodes=6").submit(VALUES)
    assert "--federation-config num-supernodes=6 --format json" in (tmp_path / "words").read_text().splitlines()[2]
    assert second == "list hospital --run-id 7 --format json"
