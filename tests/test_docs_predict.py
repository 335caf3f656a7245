"""docs/predict.md: its Python block and its commands run as they stand."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedskew
from fedskew.cli.main import app
from fedskew.export.graph import encode, to_onnx
from fedskew.model.modelfile import load_model, read_about
from fedskew.tools.onnx_file import ABOUT, ARCHITECTURE, EXPORT

PAGE = Path(__file__).resolve().parents[1] / "docs" / "predict.md"


@pytest.fixture
def here(finished_run, generated, tmp_path, monkeypatch):
    """The places that the page names."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pruned").symlink_to(finished_run.path, target_is_directory=True)
    (tmp_path / "HAM10000").symlink_to(generated, target_is_directory=True)
    (tmp_path / "picture.jpg").write_bytes(sorted(generated.rglob("*.jpg"))[0].read_bytes())
    file = finished_run.path / "model.safetensors"
    model = load_model(file)
    said = {ARCHITECTURE: model.architecture.to_json(), ABOUT: json.dumps(read_about(file)), EXPORT: "{}"}
    (tmp_path / "model.onnx").write_bytes(encode(to_onnx(model), said))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page(here, finished_run, capsys):
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})
    said = fedskew.load(finished_run.path).predict(here / "picture.jpg", age=60, sex="female", site="back")
    share = said.probabilities[said.decision]
    assert capsys.readouterr().out == f"{said.decision} {share:.1%} () ()\n"
    commands = [
        line for part in re.findall(r"(?<!-->\n)```bash\n(.*?)```", text, re.DOTALL) for line in part.splitlines()
    ]
    assert len(commands) == 3
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    assert len((here / "answers.csv").read_text().splitlines()) == 161
    assert len(json.loads(done.stdout)["images"]) == 161
