"""What `make mutants` does: wrong lines put into a room's code one at a time, and which of them no test notices.

    python scripts/mutants.py pruning              every mutant of a room; the same command goes on where it stopped
    python scripts/mutants.py pruning --sample 80 --seed 1   80 of them, drawn at random: minutes, and an interval
    python scripts/mutants.py pruning --results    what is known so far (with --sample: of that sample)
    python scripts/mutants.py pruning --show NAME  one of them as a difference

In a copy of the last commit below build/mutants. mutmut makes the mutants; `fork_mutants.py` learns which test reaches
which function (once: it stays beside the copy) and runs, for each mutant, the tests that reach it until one fails.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
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
        ("training", "learning", "recipe", "open_data", "judging", "best_round", "parts", "data_splits", "simulation",
         "who_trains", "precision", "baselines", "central"),
    ),
    "federation": (
        ("fedskew/federation/*",),
        ("aggregate", "bounds", "checks", "weights", "bad_replies", "selection", "seal", "roll_call", "phase",
         "hostile_sites", "participation", "recipe", "simulation", "best_round", "who_trains"),
    ),
    "data": (
        ("fedskew/data/splits.py", "fedskew/data/partitions.py", "fedskew/data/units.py", "fedskew/data/duplicates.py"),
        ("data_splits", "data_golden", "data_duplicates", "data_names", "parts"),
    ),
    "site": (
        ("fedskew/site/*",),
        ("site_accounting", "site_audit", "site_egress", "site_gate", "site_guard", "site_ledger", "site_limits",
         "site_policy", "site_contact", "site_mod"),
    ),
}  # fmt: skip
COPIED = ("conf", "docs", "benchmarks", "plugins", "LICENSE", "clientapp.py", "serverapp.py", "fedskew")
LINE = re.compile(r"^\s*(?P<name>\S+): (?P<fate>.+)$")
# what `mutmut run` begins with; on its own it gives the names that a sample is drawn from
MAKE = """
from pathlib import Path
from mutmut.__main__ import copy_also_copy_files, copy_src_dir, create_mutants
Path("mutants").mkdir(exist_ok=True)
copy_src_dir()
copy_also_copy_files()
create_mutants(1)
"""
PATIENCE = 5  # times the seconds of its tests, and of one more, that a mutant may take: beyond, it is noticed as a loop
FATES = "fates.jsonl"  # a mutant and what became of it a line, of the commit that the copy is of
NOTICED = ("killed", "timeout", "suspicious", "segfault")


def main() -> int:
    """Run or show; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--results", action="store_true", help="what is known so far")
    parser.add_argument("--show", metavar="NAME", help="the difference that a mutant is")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants, drawn at random from all of the room")
    parser.add_argument("--seed", type=int, default=0, help="of the sample: the same commit and seed draw the same")
    parser.add_argument("--at-most", type=int, metavar="N", help="try N mutants and stop; the same command goes on")
    parser.add_argument("--quick", type=float, default=math.inf, metavar="SECONDS",
                        help="leave out tests that take longer: fewer mutants are noticed, but soon")  # fmt: skip
    given = parser.parse_args()
    place = ROOT / "build" / "mutants" / given.room
    if given.show:
        return mutmut(place, "show", given.show).returncode
    if not given.results:
        prepare(place, ROOMS[given.room][0])
    known = fates(place)
    drawn = sample(known, given.sample, given.seed)
    left = [name for name in drawn if known[name] == "not checked"][: given.at_most]
    if left and not given.results:
        try_out(place, ROOMS[given.room][1], left, given.quick)
    known = fates(place)
    return report({name: known[name] for name in drawn})


def prepare(place: Path, patterns: Sequence[str]) -> None:
    """A copy of this commit, unless it is there already (one of another commit is replaced), with its mutants."""
    commit = git("rev-parse", "HEAD")
    mark = place / ".commit"
    if not mark.is_file() or mark.read_text() != commit:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as files:
            files.extractall(place, filter="data")
        mark.write_text(commit)
    lists = {"source_paths": ("fedskew",), "only_mutate": patterns, "also_copy": COPIED}
    text = "\n".join(f"{key}=\n" + "\n".join(f"    {value}" for value in values) for key, values in lists.items())
    (place / "setup.cfg").write_text(f"[mutmut]\n{text}\n", encoding="utf-8")
    subprocess.run([sys.executable, "-c", MAKE], cwd=place, env=environment(), stdout=subprocess.DEVNULL, check=True)


def try_out(place: Path, tests: Sequence[str], names: Sequence[str], longest: float) -> None:
    """Run the tests of each of these mutants; what tests reach is learned first, by running them all once."""
    job = {"names": names, "longest": longest, "patience": PATIENCE, "fates": str(place / FATES),
           "learned": str(place.with_suffix(".learned.json"))}  # fmt: skip
    (place / "job.json").write_text(json.dumps(job))
    there = environment() | {"MUTANTS": str(place / "job.json"), "PYTHONPATH": str(ROOT / "scripts")}
    options = ("--rootdir=.", "-q", "-s", "-p", "no:cacheprovider", "-p", "fork_mutants")
    command = [sys.executable, "-m", "pytest", *options]
    files = [f"tests/test_{name}.py" for name in tests]
    subprocess.run([*command, *files], cwd=place / "mutants", env=there, stdout=subprocess.DEVNULL, check=False)


def fates(place: Path) -> dict[str, str]:
    """Every mutant of the room, by name, and what became of it."""
    shown = mutmut(place, "results", "--all", "true", capture=True).stdout
    names = [found["name"] for line in shown.splitlines() if (found := LINE.match(line))]
    told = (place / FATES).read_text().splitlines() if (place / FATES).is_file() else []
    return dict.fromkeys(names, "not checked") | dict(json.loads(line) for line in told)


def sample(names: Iterable[str], size: int | None, seed: int) -> list[str]:
    """`size` of the names, each as likely as any other, in an order by chance; all of them without a size."""
    every = sorted(names)
    return random.Random(seed).sample(every, len(every) if size is None else min(size, len(every)))


def report(known: dict[str, str]) -> int:
    """Print the counts, the share that was noticed with its interval, and the names of the others; 1 below 90 %."""
    counts = Counter(known.values())
    tried = len(known) - counts["not checked"]
    noticed = sum(counts[fate] for fate in NOTICED)
    for name, fate in sorted(known.items()):
        if fate not in (*NOTICED, "not checked"):
            print(f"{name}: {fate}")
    share = noticed / tried if tried else 0.0
    low, high = wilson(noticed, tried)
    interval = f"as a sample: 95 % interval {low:.1%} to {high:.1%}"
    print(f"{noticed} of {tried} mutants are noticed ({share:.1%}; {interval}), {counts['not checked']} not tried yet")
    return 0 if share >= 0.9 else 1


def wilson(hits: int, tries: int) -> tuple[float, float]:
    """Wilson's score interval at 95 % of a share of which `tries` draws are known."""
    if not tries:
        return 0.0, 1.0
    z, share = 1.959964, hits / tries
    centre = (share + z**2 / (2 * tries)) / (1 + z**2 / tries)
    half = z * math.sqrt(share * (1 - share) / tries + z**2 / (4 * tries**2)) / (1 + z**2 / tries)
    return centre - half, centre + half


def mutmut(place: Path, *words: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """mutmut beside this Python, in the copy; nothing of the checkout is imported."""
    program = str(Path(sys.executable).with_name("mutmut"))
    return subprocess.run(
        [program, *words], cwd=place, env=environment(), text=True, capture_output=capture, check=False
    )


def environment() -> dict[str, str]:
    """This process's, without the checkout's own code."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def git(*words: str) -> str:
    """What git says, stripped."""
    return subprocess.run(["git", *words], cwd=ROOT, text=True, capture_output=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
