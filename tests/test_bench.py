"""`fedskew bench`: every model in a process of its own, and the figures are those of that model."""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import pytest
from builders import architecture, lively_model
from onnx import TensorProto, helper
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.export import bench as benching
from fedskew.export.bench import BenchError, bench, bench_text, model_names
from fedskew.export.graph import to_onnx
from fedskew.model.modelfile import encode_model
from fedskew.runs.folder import RunFolderError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small model in PyTorch, the same as ONNX, and one with four times the tokens."""
    folder = tmp_path_factory.mktemp("models")
    small, large = architecture(32, stages=1), architecture(128, stages=1)
    model = lively_model(small)
    (folder / "model.safetensors").write_bytes(encode_model(small, model.state_dict()))
    onnx.save(to_onnx(model), folder / "small.onnx")
    onnx.save(to_onnx(lively_model(large)), folder / "large.onnx")
    return folder


@pytest.fixture(scope="module")
def rows(files):
    return bench(model_names([files / "small.onnx", files / "large.onnx", files / "model.safetensors"]), rounds=3,
                 threads=(1, 4096))  # fmt: skip


def test_a_row_for_each_model_and_thread_count_that_there_are_cores_for(rows, files):
    assert [row["model"] for row in rows] == [str(files / name) for name in
                                              ("small.onnx", "large.onnx", "model.safetensors")]  # fmt: skip
    assert {row["threads"] for row in rows} == {1}
    assert "not measured with 4096 threads: there are" in bench_text(rows, (1, 4096))


def test_figures_are_those_of_the_model(rows, files):
    small, large, torch = rows
    assert small["ratio"] == small["ratio_16"] == 1
    assert large["ratio"] > 3, "sixteen times the tokens"
    assert large["ratio_16"] > 3
    assert large["images_s"] < small["images_s"]
    for row in rows:
        assert row["file_bytes"] == benching.model_file(files / row["model"]).stat().st_size
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p95_ms"]
        assert row["library_bytes"] <= row["memory_bytes"] <= row["memory_16_bytes"]
        assert row["startup_cpu_s"] > 0
    assert torch["memory_bytes"] > 2 * small["memory_bytes"], "PyTorch is in it, and in the other is not"
    assert torch["startup_cpu_s"] > 2 * small["startup_cpu_s"]


def test_an_onnx_file_is_measured_without_torch(files):
    code = (
        "import sys; from pathlib import Path; from fedskew.export.bench_worker import of_onnx\n"
        f"of_onnx(Path({str(files / 'small.onnx')!r}), 1)(2)()\n"
        "print(sorted(name for name in ('torch', 'onnx', 'timm', 'scipy') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_cannot_be_measured_is_named_and_no_process_is_left(files, tmp_path):
    strange = tmp_path / "strange.onnx"
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "strange", [value], [other])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), strange)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no onnx")
    empty = tmp_path / "model.safetensors"
    empty.write_bytes(b"")
    for file, words in ((strange, "inputs"), (broken, "INVALID"), (empty, "cannot be read as a model")):
        with pytest.raises(BenchError, match=words) as error:
            bench(model_names([files / "small.onnx", file]), rounds=1, threads=(1,))
        assert str(error.value).startswith(f"{file} cannot be measured: ")
        assert len(str(error.value).splitlines()) == 1


def test_a_model_is_given_once_and_has_to_be_there(files, tmp_path):
    with pytest.raises(BenchError, match=r"is given twice"):
        model_names([files / "small.onnx", files / "small.onnx"])
    with pytest.raises(RunFolderError, match=r"neither a model file nor a run folder"):
        model_names([tmp_path])


def test_the_command(files):
    found = CliRunner().invoke(app, ["bench", str(files / "small.onnx"), "--rounds", "1", "--json"])
    assert found.exit_code == 0, found.output
    (row, *_) = json.loads(found.stdout)
    assert row["model"] == str(files / "small.onnx")
    table = bench_text([row])
    assert f"{row['p50_ms']:.2f}" in table
    assert "median over the rounds of the fastest calls" in table
