"""What really happens to a federation: killed servers and sites, pulled cables, strangers, other people's code.

Each test has a cluster of real processes of its own (tests/deployment/cluster.py); marked `deployment`.
"""

from __future__ import annotations

import re
import shutil
import time

import pytest
from deployment.cluster import Cluster, namespaces_work
from deployment.processes import wait_until

from fedskew.ops.credentials import new_authority

pytestmark = pytest.mark.deployment
PATIENCE = 900  # seconds for anything that takes one: CI machines are slow when others use them


def test_a_killed_superlink_and_serverapp_end_in_the_same_model(tmp_path):
    """SIGKILL in mid-training of the first round, right after a round was saved, and in mid-training of the last."""
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start()
        assert cluster.run(name="undisturbed").wait(PATIENCE) == 0, cluster.jobs["undisturbed"].tail()

        run = cluster.run(name="disturbed")
        for finished, training in ((1, True), (2, False), (3, True)):
            wait_until(lambda n=finished: len(cluster.records("disturbed")) == n, PATIENCE)
            if training:
                wait_until(lambda: cluster.task_seconds("site-a") > 0.5, PATIENCE, every=0.05)
            cluster.jobs["superlink"].kill(children=True)
            assert run.process.poll() is None, "the supervisor waits for the SuperLink"
            cluster.start_superlink()
        assert run.wait(PATIENCE) == 0, run.tail()
        assert run.text().count("goes on in") == 3

        one, other = (cluster.run_folder(name) for name in ("undisturbed", "disturbed"))
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
        for left, right in zip(cluster.records("undisturbed"), cluster.records("disturbed"), strict=True):
            assert {key: left[key] for key in ("round", "accuracy", "parameters", "train_loss")} == {
                key: right[key] for key in ("round", "accuracy", "parameters", "train_loss")
            }


@pytest.mark.skipif(bool(namespaces_work()), reason=f"sites as network namespaces: {namespaces_work()}")
def test_a_killed_site_and_a_cut_one_are_named_and_rejoin(tmp_path):
    """SIGKILL of site-b's SuperNode in mid-training, then site-c's cable out for more than a minute."""
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start()
        run = cluster.run("federation.rounds=4 federation.join-deadline=240 train.local-epochs=20")
        wait_until(lambda: cluster.task_seconds("site-b") > 1, PATIENCE)
        cluster.jobs["site-b"].kill()
        killed = time.monotonic()
        wait_until(lambda: len(cluster.records()) == 2, PATIENCE)
        first = cluster.records()[1]
        assert set(first["failed"]) == {"site-b"}, first["failed"]
        assert first["clients_ok"] == 2
        assert time.monotonic() - killed < 240, "the round did not wait for its deadline of 300 s"

        cluster.restart_site("site-b")
        wait_until(lambda: cluster.task_seconds("site-c") > 1, PATIENCE)
        cluster.cut("site-c")
        wait_until(lambda: len(cluster.records()) == 3, PATIENCE)
        cluster.mend("site-c")
        second = cluster.records()[2]
        assert set(second["failed"]) == {"site-c"}, second["failed"]
        assert "site-b" in second["nodes"], "it takes part again"

        assert run.wait(PATIENCE) == 0, run.tail()
        last = cluster.records()[-1]
        assert (last["round"], last["clients_ok"], last["failed"]) == (4, 3, {})


@pytest.mark.skipif(bool(namespaces_work()), reason=f"sites as network namespaces: {namespaces_work()}")
def test_a_site_on_a_slow_line_takes_part(tmp_path):
    """2.3 MB at half a Mbit/s, in smaller parts as docs/deployment.md says: Flower gives a request 30 seconds."""
    with Cluster(tmp_path / "cluster", sites=2) as cluster:
        cluster.environment |= {
            "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": "524288",
            "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES": "1",
            "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS": "1",
        }
        cluster.start()
        cluster.slow("site-b", "500kbit")
        run = cluster.run("model.name=swin_mini_patch4_window4_64 federation.rounds=1 federation.min-nodes=2")
        assert run.wait(PATIENCE) == 0, run.tail()
        last = cluster.records()[-1]
        assert set(last["nodes"]) == set(cluster.sites), last["failed"]
        assert last["seconds"] > 2 * last["bytes_up"] / 2 * 8 / 500e3, "its line was as slow as that"


def test_a_site_is_added_and_another_removed_while_a_run_is_on(tmp_path):
    with Cluster(tmp_path / "cluster", sites=4) as cluster:
        cluster.start_superlink()
        if cluster.has_proxy:
            cluster.start_proxy()
        *first, late = cluster.sites
        for site in first:
            cluster.register(site)
            cluster.start_site(site)
        run = cluster.run("federation.rounds=12")
        wait_until(lambda: len(cluster.records()) == 2, PATIENCE)
        cluster.register(late)
        cluster.start_site(late)
        wait_until(lambda: late in cluster.records()[-1]["nodes"], PATIENCE)
        assert cluster.records()[-1]["clients_ok"] == 4, "from the round after it came"

        node_id = re.search(r"SuperNode ID: (\d+)", cluster.jobs[first[0]].text())[1]
        done = cluster.flwr("supernode", "unregister", node_id, "hospital")
        assert done.returncode == 0, done.stdout + done.stderr
        assert run.wait(PATIENCE) == 0, run.tail()
        last = cluster.records()[-1]
        assert (last["round"], set(last["nodes"])) == (12, {*first[1:], late})
        assert not last["kept_model"]


def test_strangers_are_refused_while_training_works(tmp_path):
    """From a host on a site's network: wrong keys, wrong certificates, plain text, the control routes."""
    with Cluster(tmp_path / "cluster", sites=4) as cluster:
        cluster.start_superlink()
        if cluster.has_proxy:
            cluster.start_proxy()
        for site in cluster.sites[:3]:
            cluster.register(site)
            cluster.start_site(site)
        run = cluster.run("federation.rounds=2")
        attacker, pki = cluster.sites[3], tmp_path / "cluster" / "pki"

        wait_until(lambda: "SuperNode ID" in cluster.jobs["site-b"].text(), PATIENCE)
        for key in (attacker, "site-b"):  # not registered; another's who is online
            assert "code: 2004" in _refused(cluster, attacker, cluster.site_command(attacker, key=key))
        command = cluster.site_command(attacker)
        ca = command.index("--root-certificates")
        assert "CERTIFICATE_VERIFY_FAILED" in _refused(cluster, attacker, [*command[:ca], *command[ca + 2 :]])
        other = tmp_path / "other-ca.crt"
        other.write_bytes(new_authority().pem)
        command[ca + 1] = str(other)
        assert "CERTIFICATE_VERIFY_FAILED" in _refused(cluster, attacker, command)
        key = command.index("--auth-supernode-private-key")
        plain = command[:ca] + command[ca + 2 : key] + command[key + 2 :]
        assert _plain_text_is_refused(cluster, attacker, [*plain, "--insecure"])

        if cluster.has_proxy:
            for words in (
                ("run", str(cluster.app), "public"),
                ("supernode", "register", str(pki / "coordinator" / f"{attacker}.pub"), "public"),
                ("supernode", "list", "public"),
                ("list", "public"),
                ("stop", "1", "public"),
            ):
                done = cluster.flwr(*words, place=attacker)
                assert "403" in done.stdout + done.stderr, (words, done.stdout, done.stderr)
        if cluster.prefix:
            done = cluster.flwr("list", "hospital", place=attacker)
            assert done.returncode, "the SuperLink's own port cannot be reached from a site"
        assert run.wait(PATIENCE) == 0, run.tail()
        assert all(record["clients_ok"] == 3 for record in cluster.records()[1:])
        assert attacker not in cluster.flwr("supernode", "list", "hospital").stdout


def test_a_tampered_bundle_is_not_run_by_sites_that_pin_the_hash(tmp_path):
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start()
        evil = tmp_path / "evil"
        shutil.copytree(cluster.app, evil)
        with (evil / "clientapp.py").open("a") as file:
            file.write(
                "\nimport os, pathlib\npathlib.Path(os.environ['FEDSKEW_HOME']).mkdir(parents=True, exist_ok=True)"
                "\npathlib.Path(os.environ['FEDSKEW_HOME'], 'stolen').write_text('ran')\n"
            )
        settings = "federation.rounds=1 federation.max-missed-rounds=1"
        assert cluster.run(settings, name="tampered", app=evil).wait(PATIENCE) == 3, "ended before its last round"
        (record,) = cluster.records("tampered")[1:]
        assert record["kept_model"]
        assert set(record["failed"]) == set(cluster.sites)
        assert all("could not be verified" in reason for reason in record["failed"].values())
        assert not list((tmp_path / "cluster").glob("*/fedskew/stolen"))
        assert not list((tmp_path / "cluster").glob("site-*/tmp/fedskew-site-*/apps/*")), "nothing was unpacked"

        assert cluster.run(settings, name="good").wait(PATIENCE) == 0, "the same processes run the pinned one"
        assert cluster.records("good")[-1]["clients_ok"] == 3


def _plain_text_is_refused(cluster: Cluster, place: str, command: list[str]) -> bool:
    """nginx says so and the SuperNode ends; the SuperLink itself hangs up, and it goes on trying."""
    if cluster.has_proxy:
        return "400" in _refused(cluster, place, command)
    job = cluster.spawn("plain", place, command)
    wait_until(lambda: job.text().count("Connection attempt failed") >= 3, PATIENCE)
    job.kill(children=True)
    return "SuperNode ID:" not in job.text()


def _refused(cluster: Cluster, place: str, command: list[str]) -> str:
    """Start a SuperNode that must not get in; what it printed."""
    job = cluster.spawn("refused", place, command)
    try:
        assert job.wait(PATIENCE / 5) != 0
    finally:
        if job.process.poll() is None:
            job.kill(children=True)
    return job.text()
