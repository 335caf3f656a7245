"""Settings that contradict each other are refused at the start, those without effect named; what came of it is said."""

from __future__ import annotations

import json
import logging

import pytest
from builders import MICRO, run_here, tiny_config
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.config import ConfigError, load_config
from fedskew.config.load import preset_names
from fedskew.runs.report import learned_nothing, summary_text, warnings_of
from fedskew.runs.start_checks import check_combination, idle_settings
from fedskew.sweeps.study import StudyError, read_study


@pytest.mark.parametrize("method", ["l1-norm", "random"])
def test_the_sign_rule_is_refused_for_scores_without_a_sign(method, tmp_path):
    """Such a run removed nothing, and was compared as if it had."""
    with pytest.raises(ConfigError, match=rf"prune\.criterion={method} .*rule=match .*rule=share"):
        run_here(tiny_config(prune={"criterion": method}, run={"output_dir": str(tmp_path)}))
    assert not list(tmp_path.iterdir())
    for rule in ("match", "share"):
        check_combination(tiny_config(prune={"criterion": method, "rule": rule}))


def test_a_study_with_such_a_cell_is_refused_before_its_first_run(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(
        "preset: demo\ncells:\n  dense: {set: prune.criterion=none}\n  l1: {set: prune.criterion=l1-norm}\n"
    )
    with pytest.raises(StudyError, match=r"cell l1: prune.criterion=l1-norm"):
        read_study(file, tmp_path / "out")


def test_a_schedule_that_ends_before_it_begins_is_refused():
    with pytest.raises(ConfigError, match=r"first-round is 3 and prune.last-round 2"):
        check_combination(tiny_config(prune={"first_round": 3, "last_round": 2}))
    check_combination(tiny_config(prune={"first_round": 3, "last_round": 2, "criterion": "none"}))
    check_combination(tiny_config(prune={"first_round": 3, "last_round": 0}))
    check_combination(tiny_config(prune={"first_round": 3, "last_round": 3}))


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_without_contradictions_and_idle_settings(preset):
    config = load_config(preset)
    check_combination(config)
    assert list(idle_settings(config)) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data": {"alpha": 0.1}}, ["data.alpha=0.1 has no effect: data.partition is iid"]),
        ({"data": {"alpha": 0.1, "partition": "dirichlet"}}, []),
        ({"data": {"alpha": 0.5}}, []),
        ({"prune": {"share": 0.6}}, ["prune.share=0.6 has no effect: prune.rule is sign"]),
        ({"prune": {"share": 0.6, "rule": "share"}}, []),
        ({"prune": {"share": 0.6, "criterion": "none"}}, []),
        ({"prune": {"first_round": 3}}, ["nothing will be pruned: prune.first-round is 3"]),
        ({"prune": {"first_round": 2}}, []),
        ({"prune": {"last_round": 3}}, ["prune.last-round=3 has no effect: federation.rounds is 2"]),
        ({"prune": {"last_round": 2}}, []),
    ],
)
def test_a_setting_without_effect_is_named(overrides, words):
    found = list(idle_settings(tiny_config(**overrides)))
    assert len(found) == len(words), found
    assert all(line.startswith(word) for line, word in zip(found, words, strict=True)), found


@pytest.fixture(scope="module")
def unpruned(tmp_path_factory, generated):
    """A run of one round whose first pruning step would be that of round 3; all that it logged."""
    lines = []

    class Keeper(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    keeper, logger = Keeper(), logging.getLogger("flwr.fedskew")
    logger.addHandler(keeper)
    config = tiny_config(
        data={"alpha": 0.1}, prune={"first_round": 3}, federation={"rounds": 1},
        run={"output_dir": str(tmp_path_factory.mktemp("unpruned"))},
    )  # fmt: skip
    try:
        return run_here(config), lines
    finally:
        logger.removeHandler(keeper)


def test_a_run_says_at_its_start_what_has_no_effect(unpruned):
    said = "\n".join(unpruned[1])
    assert "data.alpha=0.1 has no effect" in said
    assert "nothing will be pruned" in said


def test_a_run_that_removed_nothing_says_so_at_its_end(unpruned, finished_run, dense_run):
    summary = json.loads((unpruned[0].path / "summary.json").read_text())
    text = " ".join(summary_text(summary, unpruned[0].path).split())
    assert "pruning by skewness removed nothing: there was no pruning step: this is the dense model" in text
    assert "after 1 round (" in text
    of_two = summary | {"pruning_steps": 2}
    assert "removed nothing in 2 steps" in warnings_of(of_two)[0]
    for run in (finished_run, dense_run):
        other = json.loads((run.path / "summary.json").read_text())
        assert warnings_of(other) == []
    assert json.loads((finished_run.path / "summary.json").read_text())["pruning_steps"] == 2


def test_a_run_whose_rounds_were_all_undone_has_no_best_round_and_fails(generated, tmp_path):
    """It ended like a success, and called a model best that no node had trained."""
    tiny = f"model.name={MICRO} data.generated-images=160 data.open=0.2 train.threads=1 run.threads=1"
    settings = f"{tiny} federation.rounds=2 federation.rollback=0 train.lr=1.0 train.clip-norm=0 prune.criterion=none"
    words = ["simulate", "--nodes", "2", "--name", "undone", "--output-dir", str(tmp_path), "--set", settings]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1, done.output
    summary = json.loads((tmp_path / "undone" / "summary.json").read_text())
    assert summary["rounds_rolled_back"] == 2, "the fixture: both rounds are undone"
    assert learned_nothing(summary)
    assert summary["best"]["chosen_by"] is None
    text = " ".join(done.stdout.split())
    assert "2 of 2 rounds rolled back" in text
    assert "best round: none" in text
    assert "no round's training was taken" in text
    records = [json.loads(line) for line in (tmp_path / "undone" / "metrics.jsonl").read_text().splitlines()]
    assert not any(record["selection"]["best"] for record in records)
