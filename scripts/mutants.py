"""What `make mutants` does: wrong lines put into a room's code one at a time, and which of them no test notices.

    python scripts/mutants.py pruning              every mutant of a room; the same command goes on where it stopped
    python scripts/mutants.py pruning --results    what is known so far
    python scripts/mutants.py pruning --show NAME  one of them as a difference

By mutmut, in a copy of the tracked files below build/mutants. A room takes hours on one core: for each mutant the tests
that reach it run once.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# room → patterns of the files to mutate, and the tests that are to notice: those that take seconds
ROOMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pruning": (
        ("fedskew/pruning/*",),
        ("decide", "skewness", "score", "schedule", "rollback", "observe", "blockwise", "pruned_equals_masked",
         "families", "recipe", "focus", "criteria", "budget"),
    ),
    "learning": (
        ("fedskew/learning/*", "fedskew/methods/*"),
        ("training", "learning", "recipe", "open_data", "judging", "best_round", "parts", "data_splits", "simulation"),
    ),
    "federation": (
        ("fedskew/federation/*",),
        ("aggregate", "bounds", "checks", "weights", "bad_replies", "selection", "seal", "roll_call", "phase",
         "hostile_sites", "participation", "recipe", "simulation"),
    ),
    "data": (
        ("fedskew/data/splits.py", "fedskew/data/partitions.py", "fedskew/data/units.py", "fedskew/data/duplicates.py"),
        ("data_splits", "data_golden", "data_duplicates", "data_names", "parts"),
    ),
    "site": (
        ("fedskew/site/*",),
        ("site_accounting", "site_audit", "site_egress", "site_gate", "site_guard", "site_ledger", "site_limits",
         "site_policy", "site_contact"),
    ),
}  # fmt: skip
COPIED = ("conf", "docs", "benchmarks", "clientapp.py", "serverapp.py", "fedskew")
LINE = re.compile(r"^\s*(?P<name>\S+): (?P<fate>.+)$")
NOTICED = ("killed", "timeout", "suspicious", "segfault")


def main() -> int:
    """Run or show; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--results", action="store_true", help="what is known so far")
    parser.add_argument("--show", metavar="NAME", help="the difference that a mutant is")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    given = parser.parse_args()
    place = ROOT / "build" / "mutants" / given.room
    if given.show:
        return mutmut(place, "show", given.show).returncode
    if not given.results:
        prepare(place, *ROOMS[given.room])
        mutmut(place, "run", "--max-children", str(given.jobs))
    return report(place)


def prepare(place: Path, patterns: tuple[str, ...], tests: tuple[str, ...]) -> None:
    """A copy of the tracked files of this commit, unless it is there already; a copy of another commit is replaced."""
    commit = git("rev-parse", "HEAD")
    mark = place / ".commit"
    if not mark.is_file() or mark.read_text() != commit:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for name in git("ls-files").splitlines():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / name)
        mark.write_text(commit)
    lists = {
        "source_paths": ("fedskew",),
        "only_mutate": patterns,
        "also_copy": COPIED,
        "pytest_add_cli_args": ("-q", "-p", "no:cacheprovider"),
        "pytest_add_cli_args_test_selection": [f"tests/test_{name}.py" for name in tests],
    }
    text = "\n".join(f"{key}=\n" + "\n".join(f"    {value}" for value in values) for key, values in lists.items())
    (place / "setup.cfg").write_text(f"[mutmut]\n{text}\n", encoding="utf-8")


def report(place: Path) -> int:
    """Print the counts, the share that was noticed, and the names of the others; 1 below 90 %."""
    shown = mutmut(place, "results", "--all", "true", capture=True).stdout
    fates = {found["name"]: found["fate"] for line in shown.splitlines() if (found := LINE.match(line))}
    counts = Counter(fates.values())
    tried = len(fates) - counts["not checked"]
    noticed = sum(counts[fate] for fate in NOTICED)
    for name, fate in sorted(fates.items()):
        if fate not in (*NOTICED, "not checked"):
            print(f"{name}: {fate}")
    share = noticed / tried if tried else 0.0
    print(f"{noticed} of {tried} mutants are noticed ({share:.1%}), {counts['not checked']} were not tried yet")
    return 0 if share >= 0.9 else 1


def mutmut(place: Path, *words: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """mutmut beside this Python, in the copy; nothing of the checkout is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = str(Path(sys.executable).with_name("mutmut"))
    return subprocess.run([program, *words], cwd=place, env=environment, text=True, capture_output=capture, check=False)


def git(*words: str) -> str:
    """What git says, stripped."""
    return subprocess.run(["git", *words], cwd=ROOT, text=True, capture_output=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
