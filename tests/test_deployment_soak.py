"""Twenty rounds of eight sites while everything happens that happens: the record says whose data is in which round.

Real processes that systemd's rule starts again, in network namespaces (tests/deployment/cluster.py). What the
coordinator's record says is held against what the sites' own audit logs say, and against the faults that were made.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from deployment.cluster import FEDSKEW, Cluster, namespaces_work
from deployment.oracle import answered, contacts, line_hash
from deployment.processes import wait_until
from deployment.warm import SOCKET, server_command, warm_commands
from safetensors.numpy import load_file

from fedskew.site.audit import verify_audit

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(bool(namespaces_work()), reason=f"sites as network namespaces: {namespaces_work()}"),
]
PATIENCE = 1800  # seconds for anything that takes one: CI machines are slow when others use them
ROUNDS = 20
STEADY, KILLED, DEAD, CUT, SLOW, HOSTILE = "site-a", "site-c", "site-d", "site-e", "site-f", "site-h"
HOSTILE_FILES = Path(__file__).with_name("deployment") / "hostile_site"
REVERSED = (5, 15)  # rounds in which the hostile site sends what no bound on norms can tell; in the others 1e30
EXAMPLES = 2**28  # that it claims then
# as in the preset `hospitals`, but for the times, and what a run of this size needs to be pruned a little
SETTINGS = (
    f"federation.rounds={ROUNDS} federation.min-nodes=6 federation.quorum=4 federation.join-deadline=120 "
    "train.warm-start-epochs=0 prune.interval=4 prune.min-parameters=0.5"
)
GRACE, MOST_GRACE = 20.0, 90.0  # seconds on a machine that does nothing else, and on any


@pytest.fixture(scope="module")
def soaked(tmp_path_factory):
    """The federation after its run."""
    folder = tmp_path_factory.mktemp("soak") / "cluster"
    with tempfile.TemporaryDirectory() as place, Cluster(folder, sites=8, restarting=True) as cluster:
        commands = warm_commands(Path(place) / "commands")
        cluster.spawn("warm", "coordinator", server_command(commands))
        cluster.environment |= {
            "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        }
        wait_until((commands / SOCKET).exists, PATIENCE)
        soak = Soak(cluster)
        soak.run()
        yield soak


class Soak:
    """A run and its faults.

    Attributes:
        ended: round → when (Unix seconds) its record was seen.
        explained: (round, site) of answers that cannot have come in time, as a fault of this test kept them.
        runs: Flower's runs, in order.
        crashed: rounds in which the server was killed.
        back: when (Unix seconds) the killed site that starts again first asked for a task.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ended: dict[int, float] = {}
        self.explained: set[tuple[int, str]] = set()
        self.crashed: list[int] = []
        self.killed_at = 0.0

    def run(self) -> None:
        """The whole story, round by round."""
        begun, cluster = time.monotonic(), self.cluster
        self.start()
        self.kill_two(3)
        self.freeze(4)
        self.crash_server(8)
        self.crash_proxy(10)
        self.cut(11)
        self.freeze(14)
        self.crash_server(15)
        self.freeze(17)
        self.wait_for(ROUNDS)
        assert self.job.wait(PATIENCE) == 0, self.job.tail()
        self.runs = [int(number) for number in re.findall(r"^run (\d+) ", self.job.text(), re.MULTILINE)]
        self.folder = cluster.run_folder()
        self.records = {record["round"]: record for record in cluster.records()}
        self.logs = {site: cluster.folder / site / "audit.jsonl" for site in cluster.sites}
        address = "10.77.0.13"
        self.back = next(moment for moment in contacts(cluster.wire_log, address) if moment > self.killed_at + 1)
        # it may start again in the midst of a round, too late for its answer to be waited for
        self.explained |= {(number, KILLED) for number in self.ended if number > 3 and not self.alive(number)}
        self.seconds = time.monotonic() - begun
        print(f"{self.seconds:.0f} s; {self.shown()}")

    def start(self) -> None:
        """Everything up, the run submitted."""
        cluster = self.cluster
        cluster.start_superlink()
        cluster.start_proxy()
        for site in cluster.sites:
            cluster.register(site)
            more = {}
            if site == HOSTILE:
                path = os.pathsep.join([str(HOSTILE_FILES), os.environ.get("PYTHONPATH", "")])
                more = {"PYTHONPATH": path, "FEDSKEW_TEST_REVERSED": " ".join(map(str, REVERSED))}
            cluster.start_site(site, environment=more)
        wait_until(lambda: all("SuperNode ID" in cluster.jobs[site].text() for site in cluster.sites), PATIENCE)
        grace = min(MOST_GRACE, GRACE * slowness())
        self.job = cluster.run(f"{SETTINGS} federation.grace={grace:.0f} federation.round-deadline={6 * grace:.0f}")

    def wait_for(self, number: int) -> None:
        """Until a round is on record."""
        wait_until(lambda: number in self.look() or self.job.process.poll() is not None, PATIENCE)
        assert number in self.ended, self.job.tail()

    def look(self) -> dict[int, float]:
        """Note the rounds that are on record by now."""
        for record in self.cluster.records():
            self.ended.setdefault(record["round"], time.time())
        return self.ended

    def wait_for_task(self, number: int, site: str) -> None:
        """Until a site works on its task of a round."""
        self.wait_for(number - 1)

        def works() -> bool:
            return any(task.create_time() > self.ended[number - 1] - 0.5 for task in self.tasks(site))

        wait_until(lambda: works() or number in self.look(), PATIENCE, every=0.05)

    def tasks(self, site: str) -> list[psutil.Process]:
        """The processes of a site's tasks: those in its network namespace."""
        place = os.readlink(f"/proc/{self.cluster.jobs[site].process.pid}/ns/net")
        found = []
        for process in self.cluster.below("warm"):
            with suppress(OSError, psutil.NoSuchProcess):
                if os.readlink(f"/proc/{process.pid}/ns/net") == place:
                    found.append(process)
        return found

    def kill(self, site: str) -> None:
        """SIGKILL to a SuperNode and all that it has started; what starts it again is left."""
        tasks = self.tasks(site)
        self.cluster.crash(site)
        for process in tasks:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def hold(self, number: int, site: str) -> list[psutil.Process]:
        """Stop what starts a site's tasks, once it has answered the round before: no task of this round begins."""
        log = self.cluster.folder / site / "audit.jsonl"
        wait_until(lambda: any(known == number - 1 for _, known in answered(log)), PATIENCE)
        held = self.cluster.below(site, "flower-superexec")
        for process in held:
            process.suspend()
        self.explained.add((number, site))
        self.wait_for(number - 1)
        return held

    def kill_two(self, number: int) -> None:
        """SIGKILL to two SuperNodes with all their processes; one has a rule that starts it again."""
        self.hold(number, DEAD)
        self.wait_for_task(number, KILLED)
        self.kill(KILLED)
        self.killed_at = time.time()
        self.cluster.jobs[DEAD].kill(children=True)
        self.explained.add((number, KILLED))

    def freeze(self, number: int) -> None:
        """A site that hangs until the round is over, and answers then."""
        held = self.hold(number, SLOW)
        self.wait_for(number)
        for process in held:
            process.resume()

    def cut(self, number: int) -> None:
        """A site's cable out before it can answer; in again when the next round is over."""
        held = self.hold(number, CUT)
        self.cluster.cut(CUT)
        for process in held:
            process.resume()
        self.explained |= {(number + 1, CUT), (number + 2, CUT)}  # when it is back, it needs a moment
        self.wait_for(number + 1)
        self.cluster.mend(CUT)

    def crash_server(self, number: int) -> None:
        """SIGKILL to SuperLink and ServerApp while sites work."""
        self.wait_for_task(number, STEADY)
        self.cluster.crash("superlink")
        self.crashed.append(number)

    def crash_proxy(self, number: int) -> None:
        """SIGKILL to nginx while sites work."""
        self.wait_for_task(number, STEADY)
        self.cluster.crash("proxy")

    def run_of(self, number: int) -> int:
        """Flower's run that finished a round, from the faults alone."""
        return self.runs[sum(number >= crashed for crashed in self.crashed)]

    def alive(self, number: int) -> bool:
        """Whether the killed site was back before a round began."""
        return self.ended[number - 1] > self.back + 2

    def answered(self, number: int) -> set[str]:
        """Sites whose own log says that they answered a round, to the server that finished it."""
        return {site for site, log in self.logs.items() if (self.run_of(number), number) in answered(log)}

    def shown(self, *options: str) -> str:
        """What `fedskew participation` prints."""
        words = [*FEDSKEW, "participation", str(self.folder), *options]
        environment = os.environ | {"COLUMNS": "80"}
        return subprocess.run(words, env=environment, text=True, capture_output=True, check=True).stdout


def slowness() -> float:
    """How much longer than on an idle machine a process takes here and now."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, flwr.supernode.cli"], check=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
    return max(1.0, wall / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))


def test_the_run_ends_with_a_whole_model_that_is_smaller(soaked):
    assert sorted(soaked.records) == list(range(ROUNDS + 1))
    assert len((soaked.folder / "metrics.jsonl").read_text().splitlines()) == ROUNDS + 1, "each round once"
    last = soaked.records[ROUNDS]
    assert last["parameters"] < last["dense_parameters"]
    weights = load_file(soaked.folder / "model.safetensors")
    assert all(abs(array).max() < 100 for array in weights.values() if array.size)
    summary = json.loads((soaked.folder / "summary.json").read_text())
    assert (summary["rounds"], summary["stopped"]) == (ROUNDS, None)
    assert (summary["rounds_below_quorum"], summary["rounds_rolled_back"]) == (0, 0)
    assert soaked.job.text().count("goes on in") == len(soaked.crashed) == 2


def test_whose_data_is_in_which_round_is_what_the_sites_own_logs_say(soaked):
    """In is who answered by its own log, less the hostile site's 1e30, less those that this test kept from it."""
    found = json.loads(soaked.shown("--json"))
    assert found["sites"] == list(soaked.cluster.sites)
    for row in found["rounds"]:
        number = row["round"]
        inside = {site for site, share in row["sites"].items() if share["outcome"] == "in"}
        expected = soaked.answered(number) - (set() if number in REVERSED else {HOSTILE})
        kept_away = {site for site in expected - inside if (number, site) in soaked.explained}
        assert inside == expected - kept_away, (number, row)
        assert row["flower_run"] == soaked.run_of(number)
        assert set(row["sites"]) == set(found["sites"]), "nobody is forgotten, not even after a restart"


def test_an_answer_in_the_record_is_the_very_line_of_its_sites_log(soaked):
    """The coordinator was told length and last hash of the log with the answer that it took."""
    for number in range(1, ROUNDS + 1):
        record = soaked.records[number]
        inside = {site for site, outcome in record["participation"].items() if outcome == "in"}
        assert inside <= set(record["audit"]) == set(record["norms"])
        for site, anchor in record["audit"].items():
            log = soaked.logs[site]
            assert anchor["entries"] in answered(log)[soaked.run_of(number), number]
            assert anchor["sha256"] == line_hash(log, anchor["entries"])
    for log in soaked.logs.values():
        verify_audit(log)


def test_sites_that_were_killed_are_absent_for_as_long_as_they_were_dead(soaked):
    outcomes = {n: soaked.records[n]["participation"] for n in range(1, ROUNDS + 1)}
    assert {n for n in outcomes if outcomes[n][DEAD] == "in"} == {1, 2}
    dead = {3} | {n for n in outcomes if n > 3 and soaked.ended[n] < soaked.back}  # its task of round 3 died with it
    alive = {n for n in outcomes if soaked.alive(n)}
    assert len(alive) >= 5, "it came back in time"
    assert not any(outcomes[n][KILLED] == "in" for n in dead)
    assert all(outcomes[n][KILLED] == "in" for n in {1, 2} | alive)
    assert all(outcomes[n][site] in ("late", "missing") for site in (DEAD, KILLED) for n in dead)


def test_the_hostile_site_is_left_out_or_held_to_its_share_and_that_is_said(soaked):
    for number in range(1, ROUNDS + 1):
        record = soaked.records[number]
        if number not in REVERSED:
            assert record["participation"][HOSTILE] == "refused"
            assert "more than 3 x the median of the other nodes'" in record["failed"][HOSTILE]
            continue
        assert record["participation"][HOSTILE] == "in"
        honest = [weight for site, weight in record["weights"].items() if site != HOSTILE]
        assert record["weights"][HOSTILE] <= 3 * max(honest)
        assert record["limited"] == {HOSTILE: {"examples": EXAMPLES, "weight": record["weights"][HOSTILE]}}


def test_the_slow_site_is_late_where_it_hung_and_in_elsewhere(soaked):
    hung = {number for number, site in soaked.explained if site == SLOW}
    outcomes = {number: soaked.records[number]["participation"][SLOW] for number in range(1, ROUNDS + 1)}
    assert {number for number, outcome in outcomes.items() if outcome == "late"} == hung
    assert {number for number, outcome in outcomes.items() if outcome == "in"} == set(outcomes) - hung
    assert any(SLOW in soaked.answered(number) for number in hung), "its own log says that it answered: too late"


def test_nobody_is_accused_who_is_honest(soaked):
    """Answers that come late or twice, logs that grow over crashes: no stranger, no cut log."""
    for record in soaked.records.values():
        assert record["strangers"] == []
        assert not any("audit log" in note for notes in record["notes"].values() for note in notes)


def test_a_person_can_read_it(soaked):
    lines = soaked.shown().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["round", *soaked.cluster.sites]
    rows = [line.split() for line in lines[1 : lines.index("")]]
    shown = {}
    for span, *words in rows:
        first, _, last = span.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        shown |= {number: dict(zip(soaked.cluster.sites, words, strict=True)) for number in numbers}
    for number in range(1, ROUNDS + 1):
        record = soaked.records[number]
        stars = {site: "*" if site in record["limited"] else "" for site in record["participation"]}
        assert shown[number] == {site: word + stars[site] for site, word in record["participation"].items()}
