"""`make install`: one line for a Python that is too old, and no environment that only looks finished. And the wheel."""

from __future__ import annotations

import ast
import os
import runpy
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from builders import MICRO

from fedskew.cli import flower

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "install.py"
OLD = f"""
import runpy, sys
sys.version_info = (3, 10, 13)
sys.argv = ["install.py", {{venv!r}}]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


def install(venv, *words, **environment):
    """The command of `make install`, where pip finds nothing."""
    nothing = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
    return subprocess.run([sys.executable, str(SCRIPT), str(venv), *words], env=os.environ | nothing | environment,
                          cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip


def test_an_old_python_is_one_line_before_anything_is_made(tmp_path):
    venv = tmp_path / "venv"
    done = subprocess.run(
        [sys.executable, "-c", OLD.format(venv=str(venv))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert "is Python 3.10.13, fedskew needs 3.11 or newer: " in done.stderr
    assert "make install PYTHON=" in done.stderr
    assert not venv.exists()


def test_the_script_can_be_read_by_the_python_that_it_refuses():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7))


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_calls_it(tmp_path):
    exact = "torch==2.8.0 torchvision==0.23.0"
    words = [
        "make",
        "--dry-run",
        "install",
        f"VENV={tmp_path}/venv",
        f"TORCH={exact}",
        "TORCH_INDEX=https://mirror/cpu",
    ]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"scripts/install.py {tmp_path}/venv --torch '{exact}' --torch-index https://mirror/cpu" in shown


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_other_locks_install_anew_what_they_pin(tmp_path):
    (tmp_path / ".installed").touch()
    ask = ["make", "--question", "--what-if=locks/requirements.txt", "install", f"VENV={tmp_path}"]
    assert subprocess.run(ask, cwd=ROOT, check=False).returncode == 0, "without LOCKED they pin nothing"
    assert subprocess.run([*ask, "LOCKED=1"], cwd=ROOT, check=False).returncode == 1


def test_what_cannot_be_finished_is_taken_away(tmp_path):
    done = install(tmp_path / "venv", "--torch", "cuda")
    assert done.returncode == 1
    assert not (tmp_path / "venv").exists()
    steps = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert [step[:5] for step in steps] == ["[1/4]", "[2/4]"], "it shows where it is"
    assert "pip could not install it" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_environment_that_was_there_stays_but_does_not_count_as_finished(tmp_path):
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / ".installed").touch()
    done = install(venv, "--torch", "cuda")
    assert done.returncode == 1
    assert "`make install` again completes it" in done.stderr
    assert (venv / "bin" / "python").exists()
    assert not (venv / ".installed").exists()


def test_the_cpu_build_is_refused_or_replaced_where_its_index_does_not_answer(tmp_path):
    nowhere = (tmp_path / "nowhere").as_uri()
    asked = install(tmp_path / "venv", "--torch", "cpu", "--torch-index", nowhere)
    assert asked.returncode == 1
    assert f"the CPU build of torch cannot be had from {nowhere}" in asked.stderr
    assert "TORCH_INDEX=URL" in asked.stderr
    assert "pip install" not in asked.stdout, "pip would try for minutes"


def test_versions_that_a_person_names_are_what_pip_is_asked_for(tmp_path):
    done = install(tmp_path / "venv", "--torch", "torch==0.0.1 torchvision==0.0.2")
    assert done.returncode == 1
    assert "-m pip install torch==0.0.1 torchvision==0.0.2\n" in done.stdout
    assert "--index-url" not in done.stdout
    refused = install(tmp_path / "other", "--torch", "gpu")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "TORCH=gpu is none of auto, cpu, cuda" in refused.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU: the usual build is right")
def test_before_gigabytes_are_fetched_that_nobody_asked_for_a_person_can_choose(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "venv"), "--torch-index", (tmp_path / "nowhere").as_uri()]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PIP_NO_INDEX": "1"}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    told = ""
    while "TORCH=cuda    " not in told:
        told += (line := process.stdout.readline())
        assert line, process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "pip install torch" not in told + out
    assert all(words in told for words in ("several gigabytes", "TORCH_INDEX=URL", "TORCH='torch=="))
    assert err.strip().endswith("what pip fetched it keeps for the next try")
    assert "Traceback" not in err
    assert not (tmp_path / "venv").exists()


def test_whether_an_index_answers(tmp_path):
    answers = runpy.run_path(str(SCRIPT))["answers"]
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "index.html").touch()
    assert answers(tmp_path.as_uri())
    assert not answers((tmp_path / "nowhere").as_uri())
    assert not answers("http://127.0.0.1:9/cpu/")


@pytest.mark.parametrize("path", ["/usr/bin:/bin", "", str(Path(sys.executable).parent)])
def test_every_process_of_the_environment_finds_the_programs_beside_it(tmp_path, monkeypatch, path):
    paths = sysconfig.get_paths() | {"purelib": str(tmp_path)}
    monkeypatch.setattr(flower.sysconfig, "get_paths", lambda: paths)
    assert "Flower uses the packages of" in flower.use_installed_packages()
    line = (tmp_path / "fedskew_flower.pth").read_text()
    code = f"import os; exec({line!r}); exec({line!r}); print(os.environ['PATH']); print(os.environ[{flower.SWITCH!r}])"
    environment = {"PATH": path, flower.SWITCH: "0"}
    done = subprocess.run([sys.executable, "-S", "-E", "-c", code], env=environment, capture_output=True, text=True,
                          check=True)  # fmt: skip
    own = str(Path(sys.executable).parent)
    assert done.stdout.splitlines()[0].split(os.pathsep) == [
        *(part for part in path.split(":") if part and part != own),
        own,
    ]
    assert done.stdout.splitlines()[1] == "0", "a person's own choice stays"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the programs of a fresh environment with the wheel in it, which borrows all other packages here."""
    place = tmp_path_factory.mktemp("wheel")
    building = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(building, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = place.glob("*.whl")
    venv.create(place / "venv", with_pip=False)
    programs = place / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, cwd=place)
    ask = [str(programs / "python"), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    own = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    (own / "others.pth").write_text(
        sysconfig.get_paths()["purelib"] + "\n"
    )  # after pip: it must not find fedskew there
    return programs


def test_the_wheel_runs_a_federation_outside_of_a_checkout(installed, generated, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    settings = (f"model.name={MICRO} data.generated-images=160 data.open=0.2 federation.rounds=1 train.threads=1 "
                "run.threads=1 train.batch-size=16 train.warm-start-epochs=0")  # fmt: skip
    command = [
        installed / "fedskew",
        "simulate",
        "--preset",
        "demo",
        "--nodes",
        "2",
        "--name",
        "mine",
        "--set",
        settings,
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mine" / "summary.json").is_file()
    code = (
        "import fedskew, pathlib; model = fedskew.load('runs/mine'); print(fedskew.__file__); print(*model.classes); "
        "print((pathlib.Path(fedskew.__file__).parent / 'py.typed').is_file())"
    )
    command = [installed / "python", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file, classes, typed = done.stdout.splitlines()
    assert Path(file).is_relative_to(installed.parent), "that of the wheel, not that of this checkout"
    assert (classes, typed) == ("akiec bcc bkl df mel nv vasc", "True")
