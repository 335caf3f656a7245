"""The rooms of `make mutants` name files and tests that there are."""

import importlib.util
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


def test_what_mutmut_says_is_read(monkeypatch):
    said = "".join(f"    {name}: {fate}\n" for name, fate in KNOWN.items())
    monkeypatch.setattr(mutants, "mutmut", lambda *_, **__: type("Done", (), {"stdout": said}))
    assert mutants.fates(ROOT) == KNOWN


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
