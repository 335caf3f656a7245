"""What is left of a run: model files that carry their architecture, the paper's table, metrics on any data."""

import shutil

import pytest
import torch
from builders import architecture, lively_model
from safetensors.torch import save_file

from fedskew.architecture import BlockShape
from fedskew.runs.compare import comparison, read_run, to_console, to_markdown
from fedskew.runs.evaluation import evaluate_run
from fedskew.runs.folder import RunFolderError
from fedskew.runs.modelfile import ModelFileError, encode_model, load_model

ARCH = architecture(stages=1, depth=1)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "cannot be read"), (b"garbage" * 99, "cannot be read"), (None, "cannot be read")],
    ids=["empty", "garbage", "missing"],
)
def test_what_is_no_model_file_is_refused(tmp_path, content, words):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=words):
        load_model(path)


def test_a_safetensors_file_of_others_is_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match="not a fedskew model"):
        load_model(tmp_path / "model.safetensors")


def test_a_model_file_whose_parts_do_not_belong_together_is_refused(tmp_path):
    other = ARCH.with_blocks({(0, 0): BlockShape((1,), 8)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_model(other, lively_model(ARCH).state_dict()))
    with pytest.raises(ModelFileError, match="do not fit"):
        load_model(path)
    path.write_bytes(encode_model(ARCH, lively_model(ARCH).state_dict()))
    assert load_model(path).architecture == ARCH


def test_compare_gives_values_and_percentages_of_the_first_run(dense_run, finished_run):
    table = comparison([read_run(dense_run.path), read_run(finished_run.path)])
    assert table.header == ("", "none s0 (round 2)", "skewness s0 (round 2)")
    rows = {row[0]: row[1:] for row in table.rows}
    dense, pruned = dense_run.records()[-1], finished_run.records()[-1]
    share = pruned["parameters"] / dense["parameters"]
    assert rows["Parameters (M)"] == ("0.080", f"{pruned['parameters'] / 1e6:.3f} ({share:.1%})")
    assert rows["Accuracy"] == (
        f"{dense['accuracy']:.3f}",
        f"{pruned['accuracy']:.3f} ({pruned['accuracy'] - dense['accuracy']:+.3f})",
    )
    assert rows["Model file (MB)"][0] == f"{dense['model_bytes'] / 1e6:.2f}"
    assert len(table.rows) == 12
    for text in (to_markdown(table), to_console(table)):
        assert all(row[0] in text for row in table.rows)
    assert to_markdown(table).splitlines()[1] == "|---|---|---|"


def test_compare_takes_the_best_round_if_asked(finished_run):
    records = finished_run.records()
    best = max(records, key=lambda record: record["balanced_accuracy"])
    assert read_run(finished_run.path, best=True).record["round"] == best["round"]


@pytest.mark.parametrize("lines", [None, ""], ids=["no folder", "no round yet"])
def test_compare_names_a_folder_that_holds_no_run(tmp_path, lines):
    if lines is not None:
        (tmp_path / "metrics.jsonl").write_text(lines)
    with pytest.raises(RunFolderError, match=str(tmp_path)):
        read_run(tmp_path)


def test_evaluating_the_test_split_gives_the_recorded_metrics_again(finished_run, generated):
    found = evaluate_run(finished_run.path, generated, everything=False)
    last = finished_run.records()[-1]
    for key in ("accuracy", "balanced_accuracy", "recall", "examples", "parameters", "macs", "macs_total"):
        assert found[key] == last[key], key
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert (found["split"], found["skipped"]) == ("test", 0)


def test_evaluating_everything_or_the_best_or_a_bare_file(finished_run, generated, tmp_path):
    whole = evaluate_run(finished_run.path, generated, everything=True)
    assert (whole["examples"], whole["split"]) == (160, "all")
    best = evaluate_run(finished_run.path, generated, everything=False, best=True)
    assert best["model"].endswith("best/model.safetensors")
    shutil.copy(finished_run.path / "model.safetensors", tmp_path / "shared.safetensors")
    bare = evaluate_run(tmp_path / "shared.safetensors", generated, everything=True)
    assert bare["accuracy"] == whole["accuracy"]
    with pytest.raises(RunFolderError, match="neither a model file nor a run folder"):
        evaluate_run(tmp_path, generated, everything=True)
