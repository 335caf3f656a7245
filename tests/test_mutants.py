"""The rooms of `make mutants` name files and tests that there are."""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("mutants", ROOT / "scripts" / "mutants.py")
mutants = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mutants)


@pytest.mark.parametrize("room", mutants.ROOMS)
def test_a_room_has_its_files_and_its_tests(room):
    patterns, tests = mutants.ROOMS[room]
    assert all(list(ROOT.glob(pattern)) for pattern in patterns)
    assert [name for name in tests if not (ROOT / "tests" / f"test_{name}.py").is_file()] == []


def test_the_copy_holds_all_that_a_bundle_is_made_of():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert {pattern.partition("/")[0] for pattern in settings["fab-include"]} <= set(mutants.COPIED)


KNOWN = {
    "a.x_f__mutmut_1": "killed",
    "a.x_f__mutmut_2": "survived",
    "a.x_g__mutmut_1": "timeout",
    "a.x_h__mutmut_1": "no tests",
    "a.x_i__mutmut_1": "not checked",
}


def test_a_report_counts_what_was_noticed_and_names_the_rest(capsys):
    assert mutants.report(KNOWN) == 1
    assert capsys.readouterr().out.splitlines() == [
        "a.x_f__mutmut_2: survived",
        "a.x_h__mutmut_1: no tests",
        "2 of 4 mutants are noticed (50.0%; as a sample: 95 % interval 15.0% to 85.0%), 1 not tried yet",
    ]


def test_fates_are_those_on_record_of_the_mutants_that_there_are(monkeypatch, tmp_path):
    said = "".join(f"    {name}: not checked\n" for name in KNOWN)
    monkeypatch.setattr(mutants, "mutmut", lambda *_, **__: type("Done", (), {"stdout": said}))
    tried = [json.dumps(pair) + "\n" for pair in KNOWN.items() if pair[1] != "not checked"]
    assert set(mutants.fates(tmp_path).values()) == {"not checked"}
    (tmp_path / mutants.FATES).write_text("".join(tried))
    assert mutants.fates(tmp_path) == KNOWN


CODE = """
import os
from mutmut.state import state

def f(x):
    active = os.environ.get("MUTANT_UNDER_TEST", "")
    if active == "stats":
        state()._stats.add("code.x_f")
    while active == "code.x_f__mutmut_3":
        pass
    return x - 1 if active == "code.x_f__mutmut_1" else x + 1
"""
TESTS = """
from code_ import f

def test_nothing():
    pass

def test_sum():
    assert f(1) == 2
"""


def test_every_mutant_meets_the_tests_that_reach_it_in_a_fork(tmp_path):
    (tmp_path / "code_.py").write_text(CODE)
    (tmp_path / "test_code.py").write_text(TESTS)
    names = [*(f"code.x_f__mutmut_{number}" for number in (1, 2, 3)), "code.x_g__mutmut_1"]
    job = {"names": names, "longest": 9.0, "patience": 0, "learned": str(tmp_path / "learned"),
           "fates": str(tmp_path / "fates")}  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "pytest", "-q", "-s", "--rootdir=.", "-p", "fork_mutants", "test_code.py"]
    there = os.environ | {"MUTANTS": str(tmp_path / "job.json"), "PYTHONPATH": str(ROOT / "scripts")}
    subprocess.run(command, cwd=tmp_path, env=there, check=True, capture_output=True)
    fates = [json.loads(line) for line in (tmp_path / "fates").read_text().splitlines()]
    assert fates == [[names[0], "killed"], [names[1], "survived"], [names[2], "timeout"], [names[3], "no tests"]]
    learned = json.loads((tmp_path / "learned").read_text())
    assert {test: reached for test, (_, reached) in learned.items()} == {
        "test_code.py::test_nothing": [],
        "test_code.py::test_sum": ["code.x_f"],
    }


def test_a_sample_is_drawn_again_by_its_seed_and_from_all():
    names = [f"m{number}" for number in range(50)]
    assert mutants.sample(names, 10, 1) == mutants.sample(reversed(names), 10, 1)
    assert mutants.sample(names, 10, 1) != mutants.sample(names, 10, 2)
    assert len(mutants.sample(names, 10, 1)) == 10
    assert mutants.sample(names, 80, 1) == mutants.sample(names, None, 1)
    assert set(mutants.sample(names, 80, 1)) == set(names)
    assert mutants.sample(names, 20, 1)[:10] != sorted(mutants.sample(names, 20, 1))[:10], (
        "those tried first are a sample too"
    )
    assert set().union(*(mutants.sample(names, 10, seed) for seed in range(40))) == set(names)


@pytest.mark.parametrize(("hits", "tries"), [(76, 80), (0, 7), (7, 7), (1, 3)])
def test_the_interval_is_wilsons(hits, tries):
    expected = binomtest(hits, tries).proportion_ci(0.95, method="wilson")
    assert mutants.wilson(hits, tries) == pytest.approx((expected.low, expected.high), abs=1e-6)
