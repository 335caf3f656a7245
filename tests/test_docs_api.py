"""The examples of docs/api.md run as they stand, one after the other; its pages are made without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

import fedskew
from fedskew.paths import home

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"


def test_the_page_loads_prunes_and_simulates(finished_run, generated, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pruned").symlink_to(finished_run.path, target_is_directory=True)
    (tmp_path / "HAM10000").symlink_to(generated, target_is_directory=True)
    picture = sorted(generated.rglob("*.jpg"))[0]
    (tmp_path / "picture.jpg").write_bytes(picture.read_bytes())
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    said = capsys.readouterr().out.splitlines()
    expected = fedskew.load(finished_run.path, best=True).predict(
        Image.open(picture), age=55, sex="female", site="back"
    )
    assert said[0] == f"{expected.decision} {dict(expected.probabilities)} unknown: ()"
    assert re.fullmatch(r"\d+ units go: \d+ → \d+", next(line for line in said if "units go" in line))
    assert names["smaller"].architecture.cost.parameters < names["model"].architecture.cost.parameters
    assert names["run"].path.parent == home() / "runs"
    assert [line.split()[0] for line in said[-3:-1]] == ["0", "1"]
    assert said[-1] == str(expected and names["model"].classes)


@pytest.mark.skipif(find_spec("pdoc") is None, reason="pdoc, of the extra `dev`, is not installed")
def test_the_pages_are_made_without_a_warning(tmp_path):
    """As `make api` does."""
    modules = re.search(r"^API := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    command = [sys.executable, "-W", "error::UserWarning", "-m", "pdoc", "--output-directory", str(tmp_path), *modules]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warn" not in done.stdout + done.stderr
    page = (tmp_path / "fedskew" / "api.html").read_text(encoding="utf-8")
    for name in fedskew.__all__:
        assert f'id="{name}"' in page
