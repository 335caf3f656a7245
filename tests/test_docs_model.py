"""The lines of Python in docs/runs.md run as they stand, and give what the run itself recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from fedskew.cli.main import app
from fedskew.model.modelfile import load_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "runs.md"


def test_the_page_loads_a_model_and_predicts(finished_run, generated, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pruned").symlink_to(finished_run.path, target_is_directory=True)
    (tmp_path / "HAM10000").symlink_to(generated, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 162, "the architecture, 160 images, the metrics"
    test = json.loads((finished_run.path / "split.json").read_text())["ids"]["test"]
    assert set(test) < {line.split()[0] for line in lines[1:-1]}
    assert "images that were in the run's training" in lines[-1]


def test_the_model_takes_images_and_metadata(finished_run):
    model = load_model(finished_run.path / "model.safetensors")
    arch = model.architecture
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, arch.image_size, arch.image_size), torch.zeros(2, 3, dtype=torch.long))
    assert logits.shape == (2, len(arch.classes))


@pytest.mark.parametrize("command", ["run", "simulate", "compare", "evaluate", "plan", "focus", "options"])
def test_every_command_that_the_readme_names_for_programs_has_json(command):

    row = next(
        line for line in PAGE.parents[1].joinpath("README.md").read_text().splitlines() if "in a program" in line
    )
    assert f"`{command}`" in row
    assert any("--json" in parameter.opts for parameter in get_command(app).commands[command].params)
