"""What is left of a run: model files that carry their architecture, the paper's table, metrics on any data."""

import json
import shutil

import numpy as np
import pytest
import torch
from builders import architecture, left, lively_model, tiny_config
from safetensors.torch import save_file

from fedskew.config import to_yaml
from fedskew.metrics import Predictions
from fedskew.model.modelfile import ModelFileError, encode_model, load_model
from fedskew.runs.folder import RunFolderError
from fedskew.runs.predictions import encode_predictions, read_predictions
from fedskew.tools.compare import comparison, read_run, read_runs, run_labels, to_console, to_data, to_markdown
from fedskew.tools.evaluate import evaluate_run
from fedskew.tools.fairness import different_settings, warnings_of
from fedskew.tools.pairing import paired_comparison
from fedskew.tools.plot import plot_runs

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
    other = left(ARCH, 0, 0, heads=(1,), hidden=8)
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_model(other, lively_model(ARCH).state_dict()))
    with pytest.raises(ModelFileError, match="do not fit"):
        load_model(path)
    path.write_bytes(encode_model(ARCH, lively_model(ARCH).state_dict()))
    assert load_model(path).architecture == ARCH


def test_compare_gives_values_and_percentages_of_the_first_run(dense_run, finished_run):
    table = comparison([read_run(dense_run.path), read_run(finished_run.path)])
    assert table.header == ("", "dense s0 (round 2)", "skewness s0 (round 2)")
    rows = {row[0]: row[1:] for row in table.rows}
    dense, pruned = dense_run.records()[-1], finished_run.records()[-1]
    share = pruned["parameters"] / dense["parameters"]
    assert rows["Parameters (M)"] == ("0.080", f"{pruned['parameters'] / 1e6:.3f} ({share:.1%})")
    assert rows["Accuracy"] == (
        f"{dense['accuracy']:.3f}",
        f"{pruned['accuracy']:.3f} ({pruned['accuracy'] - dense['accuracy']:+.3f})",
    )
    assert rows["Model file (MB)"][0] == f"{dense['model_bytes'] / 1e6:.2f}"
    assert rows["Memory footprint (MiB)"][0] == f"{dense['memory_bytes'] / 1024 / 1024:.2f}"
    assert rows["Sent to nodes (MB)"][0] == f"{dense['bytes_down_total'] / 1e6:.1f}"
    assert rows["Expected calibration error"][0] == f"{dense['expected_calibration_error']:.3f}"
    assert rows["Specificity at 90 % sensitivity to mel"][0] == f"{dense['melanoma_specificity']:.3f}"
    for name, count in dense["support"].items():
        assert rows[f"Recall {name} (n={count})"][0] == f"{dense['recall'][name]:.3f}"
        assert rows[f"AUROC {name} (n={count})"][0] == f"{dense['auroc'][name]:.3f}"
    for text in (to_markdown(table), to_console(table)):
        assert all(row[0] in text for row in table.rows)
    assert to_markdown(table).splitlines()[1] == "|---|---|---|"


def test_compare_takes_the_best_round_if_asked(finished_run):
    best = json.loads((finished_run.path / "summary.json").read_text())["best"]
    found = read_run(finished_run.path, best=True)
    assert found.record["round"] == best["round"]
    assert found.model == finished_run.path / "best"


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


def test_evaluating_writes_the_predictions_that_the_run_has_saved(finished_run, generated, tmp_path):
    evaluate_run(finished_run.path, generated, everything=False, predictions=tmp_path / "again.npz")
    evaluate_run(finished_run.path, generated, everything=False, best=True, predictions=tmp_path / "best.npz")
    for saved, again in (("predictions.npz", "again.npz"), ("best/predictions.npz", "best.npz")):
        one, two = read_predictions(finished_run.path / saved), read_predictions(tmp_path / again)
        assert one.round_number == two.round_number
        assert one.images.tolist() == two.images.tolist()
        np.testing.assert_allclose(one.probabilities, two.probabilities, rtol=1e-5)
    shutil.copy(finished_run.path / "model.safetensors", tmp_path / "model.safetensors")
    evaluate_run(tmp_path / "model.safetensors", generated, everything=True, predictions=tmp_path / "bare.npz")
    assert read_predictions(tmp_path / "bare.npz").round_number == -1, "of no run"


@pytest.fixture
def folder_of(tmp_path):
    """Make a run folder by hand: records of given recalls, configuration and predictions."""

    def make(name, *, seed=0, rounds=2, nodes=3, recall=None, labels=(0, 1, 1, 0), right=4, config=True, last=None):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        accuracy = min(1.0, right / (4 if labels is None else len(labels)))
        lines = [
            {"round": number, "accuracy": accuracy, "recall": recall or {"nv": 1.0, "mel": 0.5}, "macs": 2e9,
             "memory_bytes": 2**21, "support": {"nv": 2, "mel": 2},
             "nodes": {f"node-{i}": {} for i in range(nodes if number else 0)}, "failed": {}}
            for number in range(rounds + 1)
        ]  # fmt: skip
        lines[-1] |= last or {}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if config:
            (folder / "config.yaml").write_text(to_yaml(tiny_config(run={"seed": seed})))
        if labels is not None:
            labels = np.array(labels)
            choice = np.where(np.arange(len(labels)) < right, labels, 1 - labels)
            images = np.array([f"image{i}-{len(labels)}" for i in range(len(labels))])
            found = Predictions(images, images, labels, ("nv", "mel"), np.eye(2, dtype=np.float32)[choice], rounds)
            (folder / "predictions.npz").write_bytes(encode_predictions(found))
        return folder

    return make


def test_a_table_says_what_the_dangerous_classes_lose(folder_of):
    one = {"akiec": 0.5, "bcc": 0.6, "bkl": 0.7, "df": 0.4, "mel": 0.8, "nv": 0.9, "vasc": 0.3}
    two, three = one | {"mel": 0.5, "nv": 0.7}, one | {"mel": 0.5, "nv": 1.0}
    runs = read_runs([folder_of(str(i), recall=recall) for i, recall in enumerate((one, two, three))])
    rows = {row[0]: row[1:] for row in comparison(runs).rows}
    found = rows["Recall lost, dangerous / harmless"]
    assert found == ("-", "2.00 (+0.100 / +0.050)", "- (+0.100 / -0.025)")
    assert rows["Recall mel (n=2)"] == ("0.800", "0.500 (-0.300)", "0.500 (-0.300)")
    assert rows["Recall vasc"] == ("0.300", "0.300 (+0.000)", "0.300 (+0.000)")


def test_records_of_earlier_versions_are_still_compared(dense_run, tmp_path):
    new = {"auroc", "support", "held_back", "selection", "expected_calibration_error", "melanoma_specificity"}
    lines = [{key: value for key, value in r.items() if key not in new} for r in dense_run.records()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = read_runs([tmp_path, dense_run.path])
    rows = {row[0]: row[1:] for row in comparison(runs).rows}
    assert rows["Recall mel"][0] == f"{lines[-1]['recall']['mel']:.3f}"
    assert rows["Expected calibration error"][0] == "-"
    table, reasons = paired_comparison(runs)
    assert table is None
    assert "fedskew evaluate" in reasons[0]
    with pytest.raises(RunFolderError, match="none is the best"):
        read_run(tmp_path, best=True)


def test_runs_that_cannot_be_told_apart_get_the_names_of_their_folders(folder_of):
    paths = [folder_of("plain"), folder_of("other", seed=1), folder_of("again"), folder_of("bare", config=False)]
    assert run_labels(paths) == ["skewness s0, plain", "skewness s1", "skewness s0, again", "bare"]
    twins = [folder_of("a/run"), folder_of("b/run")]
    assert run_labels(twins) == [f"skewness s0, {path}" for path in twins]
    assert read_runs(paths)[0].name == "skewness s0, plain (round 2)"


def test_the_last_evaluated_round_is_compared(folder_of):
    path = folder_of("run", last={"accuracy": None, "recall": None})
    found = read_run(path)
    assert (found.record["round"], found.rounds) == (1, 2)
    _, reasons = paired_comparison([found, found])
    assert "are of round 2, its metrics of round 1" in reasons[0]


def test_pairs_are_compared_with_intervals_over_lesions(folder_of):
    labels = [0, 1] * 30
    runs = read_runs([folder_of("first", labels=labels, right=60), folder_of("same", labels=labels, right=60),
                      folder_of("worse", labels=labels, right=20)])  # fmt: skip
    table, reasons = paired_comparison(runs)
    assert not reasons
    assert table.header == ("difference to skewness s0, first (round 2)", *(run.name for run in runs[1:]))
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["Accuracy", "Balanced accuracy", "Macro F1", "Macro AUROC",
                          "Recall nv (30 images of 30 lesions)", "Recall mel (30 images of 30 lesions)"]  # fmt: skip
    assert rows["Accuracy"][0] == "+0.000 [+0.000, +0.000], no difference seen"
    assert rows["Accuracy"][1].startswith("-0.667 [-0.7")
    assert "no difference" not in rows["Accuracy"][1]


def test_a_run_on_another_test_set_gets_no_pairs_and_the_others_do(folder_of):
    runs = read_runs([folder_of("first"), folder_of("same"), folder_of("longer", labels=(0, 1, 1, 0, 0))])
    table, reasons = paired_comparison(runs)
    assert len(table.header) == 2
    assert len(reasons) == 1
    assert "and skewness s0, longer (round 2): the test sets differ in their images" in reasons[0]
    assert any("test sets differ" in line and "5 images" in line for line in warnings_of(runs))


def test_what_makes_a_comparison_unfair_is_named(folder_of):
    plain = folder_of("plain")
    assert warnings_of(read_runs([plain, folder_of("same")])) == []
    lines = warnings_of(read_runs([plain, folder_of("other", seed=7, nodes=5, rounds=3)]))
    assert [line.split(" differ: ")[0] for line in lines] == [
        "the numbers of nodes",
        "the seeds",
        "the finished rounds",
    ]
    assert lines[0].endswith("skewness s0 (round 2): 3, skewness s7 (round 3): 5")
    lines = warnings_of(read_runs([plain, folder_of("bare", config=False, labels=None)]))
    assert lines == [], "what a folder does not tell is not said to differ"


def test_every_setting_that_differs_is_named_with_both_values(folder_of):
    """Runs of another learning rate, augmentation or aggregation were compared without a word."""
    first, second, dense = (folder_of(name) for name in ("first", "second", "dense"))
    changed = {"train": {"lr": 0.5, "threads": 2}, "prune": {"share": 0.7}, "run": {"name": "x", "threads": 2}}
    (second / "config.yaml").write_text(to_yaml(tiny_config(**changed, data={"dir": "/elsewhere"})))
    (dense / "config.yaml").write_text(to_yaml(tiny_config(prune={"criterion": "none", "share": 0.1})))
    runs = read_runs([first, second])
    assert different_settings(runs) == {"train.lr": [0.001, 0.5], "prune.share": [0.3, 0.7]}
    lines = warnings_of(runs)
    assert lines[0] == "the settings differ (skewness s0, first (round 2) | skewness s0, second (round 2)):"
    assert lines[1:] == ["  train.lr: 0.001 | 0.5", "  prune.share: 0.3 | 0.7"]
    assert different_settings(read_runs([first, dense])) == {}, "a run without pruning has no setting of it"
    three = different_settings(read_runs([first, second, dense]))
    assert three == {"train.lr": [0.001, 0.5, 0.001], "prune.share": [0.3, 0.7, None]}


def test_a_run_whose_pruning_removed_nothing_is_named(folder_of):
    """Its column is called by its criterion, and it is a dense run."""
    whole = folder_of("whole", last={"parameters": 10, "dense_parameters": 10})
    dense = folder_of("dense", last={"parameters": 10, "dense_parameters": 10})
    (dense / "config.yaml").write_text(to_yaml(tiny_config(prune={"criterion": "none"})))
    pruned = folder_of("pruned", last={"parameters": 9, "dense_parameters": 10})
    told = [line for line in warnings_of(read_runs([whole, dense, pruned])) if "removed nothing" in line]
    assert told == ["skewness s0, whole (round 2): pruning has removed nothing, its model is the dense one"]


def test_a_run_that_is_unfinished_or_kept_old_models_is_named(folder_of):
    whole = folder_of("whole")
    (whole / "config.yaml").write_text(to_yaml(tiny_config(federation={"rounds": 2})))
    early = folder_of("early", last={"kept_model": True, "rolled_back": "its loss"})
    (early / "config.yaml").write_text(to_yaml(tiny_config(federation={"rounds": 40})))
    below = folder_of("below", last={"kept_model": True, "rolled_back": None})
    names = [f"skewness s0, {name} (round 2)" for name in ("early", "below")]
    runs = read_runs([whole, early, below])
    assert warnings_of(runs) == [
        f"{names[0]} is unfinished: 2 of 40 rounds",
        f"{names[0]}: 1 of 2 rounds rolled back, the model before was kept",
        f"{names[1]}: 1 of 2 rounds below quorum, the model before was kept",
    ]
    told = to_data(runs)["runs"]
    assert [(run["finished_rounds"], run["rounds"]) for run in told] == [(2, 2), (2, 40), (2, 2)]
    assert [(run["rounds_rolled_back"], run["rounds_below_quorum"]) for run in told] == [(0, 0), (1, 0), (0, 1)]


def test_the_test_set_is_known_from_the_split_where_there_are_no_predictions(folder_of):
    first, second = folder_of("first"), folder_of("second", labels=None)
    ids = [f"image{i}-4" for i in range(4)]
    (second / "split.json").write_text(json.dumps({"ids": {"test": ids}}))
    assert warnings_of(read_runs([first, second])) == []
    (second / "split.json").write_text(json.dumps({"ids": {"test": ids[::-1]}}))
    assert "the test sets differ" in warnings_of(read_runs([first, second]))[0]


def test_a_plot_copes_with_rounds_without_evaluation(folder_of, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    more = {"balanced_accuracy": 0.5, "parameters": 5, "dense_parameters": 10, "dense_macs": 4e9, "bytes_down_total": 1}
    path = folder_of("run", rounds=3)
    lines = [json.loads(line) | more for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines[1]["balanced_accuracy"] = None
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyplot, "close", lambda figure=None: drawn.append(figure) if figure is not None else None)
        plot_runs([path, path], tmp_path / "runs.png")
    accuracy, parameters = drawn[0].axes[:2]
    assert accuracy.lines[0].get_xdata().tolist() == [0, 2, 3]
    assert [tick for tick in accuracy.get_xticks() if tick % 1] == [], "there is no round 0.5"
    assert parameters.lines[0].get_xdata().tolist() == [0, 1, 2, 3]
    assert (tmp_path / "runs.png").stat().st_size > 0
