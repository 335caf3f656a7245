"""A study: cells times seeds in their order, and all that is wrong with it said at once, before anything runs."""

import re
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from builders import MICRO

from fedskew.config import load_config
from fedskew.config.schema import RunConfig
from fedskew.sweeps.study import Given, StudyError, read_study

STUDIES = Path(__file__).resolve().parent.parent / "benchmarks" / "studies"
BASE = f"""\
preset: demo
set: model.name={MICRO} data.generated-images=160
"""


@pytest.fixture
def study(tmp_path):
    """Write a study and read it."""

    def read(text, given=None, base=BASE):
        path = tmp_path / "study.yaml"
        path.write_text(base + textwrap.dedent(text))
        return read_study(path, tmp_path / "out", given or Given())

    return read


def refused(study, text, base=BASE):
    with pytest.raises(StudyError) as error:
        study(text, base=base)
    return str(error.value)


def names(found):
    return [run.name for run in found.runs]


def test_every_cell_gets_the_first_seed_before_any_gets_the_second(study):
    text = "seeds: [3, 1]\ncells: {b: {}, a: {}, c: {seeds: [7]}}\n"
    found = study(text)
    assert names(found) == ["b-s3", "a-s3", "c-s7", "b-s1", "a-s1"]
    assert found.cells == ("b", "a", "c")
    assert names(study("order: cell\n" + text)) == ["b-s3", "b-s1", "a-s3", "a-s1", "c-s7"]


def test_a_priority_goes_before_the_order(study):
    text = "seeds: [0, 1]\ncells: {a: {priority: -1}, b: {}, c: {priority: 2}}\n"
    assert names(study(text)) == ["c-s0", "c-s1", "b-s0", "b-s1", "a-s0", "a-s1"]


def test_settings_add_up_and_the_later_wins(study, tmp_path):
    (tmp_path / "own.yaml").write_text("train: {lr: 0.5, batch-size: 3}\nfederation: {rounds: 5}\n")
    text = """\
    config: own.yaml
    cells:
      a: {set: federation.rounds=7 train.clip-norm=2.0}
      b: {set: [federation.rounds=8, prune.criterion=none], nodes: 1}
    """
    first, second = study(text, Given(overrides="train.clip-norm=9.0", nodes=6)).runs
    assert (first.config.train.lr, first.config.train.batch_size) == (0.5, 3)
    assert (first.config.federation.rounds, first.config.train.clip_norm) == (7, 9.0)
    assert (second.config.federation.rounds, second.config.prune.criterion) == (8, "none")
    assert (first.nodes, second.nodes) == (6, 1), "the command line wins over the study, not over a cell"
    assert first.config.model.name == MICRO
    assert first.config.preset == "demo"


def test_a_run_has_its_seed_name_and_folder(study, tmp_path):
    (run,) = study("seeds: [4]\ncells: {a: {}}\n").runs
    assert (run.config.run.seed, run.config.run.name) == (4, "a-s4")
    assert run.config.run.output_dir == str(tmp_path / "out")
    assert run.nodes == 4, "as many as fedskew simulate takes"


def test_threads_replace_only_torchs_choice(study):
    demo = load_config("demo")
    assert (demo.train.threads, demo.run.threads) == (1, 2)
    own, left = study("threads: 3\ncells: {a: {}, b: {set: train.threads=0 run.threads=0}}\n").runs
    assert (own.config.train.threads, own.config.run.threads) == (1, 2)
    assert (left.config.train.threads, left.config.run.threads) == (3, 3)


def test_the_data_set_is_found_beside_the_study_or_named_by_the_command_line(study, tmp_path):
    (tmp_path / "ham").mkdir()
    text = "data-dir: ham\ncells: {a: {}, b: {}}\n"
    first, _ = study(text).runs
    assert (first.config.data.dir, first.config.data.source) == (str(tmp_path / "ham"), "folder")
    (tmp_path / "other").mkdir()
    first, _ = study(text, Given(data_dir=str(tmp_path / "other"))).runs
    assert first.config.data.dir == str(tmp_path / "other")


def test_all_that_is_wrong_is_said_at_once_by_cell(study):
    told = refused(
        study,
        """\
        seeds: [0, 0]
        treads: 2
        cells:
          typo: {preset: demoo}
          key: {sets: a=b}
          number: {nodes: 0}
          setting: {set: train.lrr=1}
          value: {set: federation.rounds=-1}
          words: [1]
          bad/name: {}
          seed: {set: run.seed=3}
          model: {set: model.name=swin_huge}
          group: {set: prune.mlp-group=7}
          data: {data-dir: /nowhere/ham}
          good: {}
        """,
    )
    expected = {
        "the study: seeds must be": "different whole numbers",
        "the study: unknown key 'treads'": "did you mean threads?",
        "cell typo: unknown preset 'demoo'": "did you mean demo?",
        "cell key: unknown key 'sets'": "did you mean set?",
        "cell number: nodes must be": "at least 1, found 0",
        "cell setting: set=": "did you mean train.lr?",
        "cell value: ": "federation.rounds is -1",
        "cell words: must hold keys": "found [1]",
        "cell bad/name: a cell's name": "folder's name",
        "cell seed: run.seed cannot be set": "comes from seeds",
        "cell model: model.name 'swin_huge'": "is no name of a Swin v1",
        "cell group: prune.mlp-group 7": "does not divide",
        "cell data: its data set /nowhere/ham": "does not exist",
    }
    lines = told.splitlines()[1:]
    for start, end in expected.items():
        (line,) = [line for line in lines if line.strip().startswith(start)]
        assert end in line
    assert len(lines) == len(expected), told
    assert "good" not in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cells: {}\n", "cells must name at least one cell"),
        ("seeds: [1]\n", "cells must name at least one cell"),
        ("cells: {a: {set: x}, a: {}}\n", "'a' is there twice"),
        ("cells: {a: {seeds: []}}\n", "cell a: seeds must be a list"),
        ("cells: {a: {seeds: 3}}\n", "cell a: seeds must be a list"),
        ("cells: {a: {set: {b: c}}}\n", "cell a: set must be section.key=value"),
        ("order: size\ncells: {a: {}}\n", "order must be one of seed, cell"),
        ("cells: {a: {priority: high}}\n", "priority must be a whole number"),
        ("cells: [\n", "cannot be read as YAML"),
    ],
)
def test_what_is_no_study_is_refused(study, text, words):
    assert words in refused(study, text)


def test_no_settings_to_start_from_and_no_file(study, tmp_path):
    assert "cell a: no settings to start from" in refused(study, "cells: {a: {}}\n", base="")
    assert "cell a: no data set: give data-dir" in refused(study, "cells: {a: {preset: paper}}\n", base="")
    assert "is no study" in refused(study, "- 1\n", base="")
    with pytest.raises(StudyError, match="there is no study"):
        read_study(tmp_path / "other.yaml", tmp_path)


@pytest.mark.parametrize("name", ["targets", "sites", "dirichlet", "recipe", "swin-t-224", "criteria", "ablations"])
def test_the_studies_that_come_with_the_code_are_valid(name, tmp_path):
    found = read_study(STUDIES / f"{name}.yaml", tmp_path / "out", Given(data_dir=str(tmp_path)))
    without_run = [(run.nodes, replace(run.config, run=RunConfig())) for run in found.runs]
    assert len({str(settings) for settings in without_run}) == len(found.cells), "no two cells are the same run"


def test_the_study_of_the_documentation_can_be_run_as_it_stands(tmp_path):
    page = (STUDIES.parent.parent / "docs" / "runs.md").read_text(encoding="utf-8")
    (tmp_path / "study.yaml").write_text(re.search(r"```yaml study\.yaml\n(.*?)```", page, re.DOTALL)[1])
    found = read_study(tmp_path / "study.yaml", tmp_path / "out", Given(data_dir=str(tmp_path)))
    assert names(found)[:5] == ["dense-s0", "pruned-s0", "deeper-s0", "pooled-s0", "dense-s1"]
    assert len(found.runs) == 12
    assert [run.nodes for run in found.runs[:4]] == [6, 6, 6, 1]
    assert {run.config.prune.last_round for run in found.runs} == {8}
