"""The rooms of `make mutants` name files and tests that there are."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("mutants", ROOT / "scripts" / "mutants.py")
mutants = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mutants)


@pytest.mark.parametrize("room", mutants.ROOMS)
def test_a_room_has_its_files_and_its_tests(room):
    patterns, tests = mutants.ROOMS[room]
    assert all(list(ROOT.glob(pattern)) for pattern in patterns)
    assert [name for name in tests if not (ROOT / "tests" / f"test_{name}.py").is_file()] == []


def test_a_report_counts_what_was_noticed_and_names_the_rest(monkeypatch, capsys):
    said = "    a.x_f__mutmut_1: killed\n    a.x_f__mutmut_2: survived\n    a.x_g__mutmut_1: timeout\n"
    said += "    a.x_h__mutmut_1: no tests\n    a.x_i__mutmut_1: not checked\n"
    monkeypatch.setattr(mutants, "mutmut", lambda *_, **__: type("Done", (), {"stdout": said}))
    assert mutants.report(ROOT) == 1
    assert capsys.readouterr().out.splitlines() == [
        "a.x_f__mutmut_2: survived",
        "a.x_h__mutmut_1: no tests",
        "2 of 4 mutants are noticed (50.0%), 1 were not tried yet",
    ]
