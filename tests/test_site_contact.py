"""A SuperNode keeps its contact over cut handshakes, says when it has none, and never lives on without its work."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import flwr.supernode.fleet_http_connection as connection
import httpx
import pytest
from deployment.processes import default_signals, free_port, wait_until
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from tls_server import Pki, serving

from fedskew.flower import FlowerError
from fedskew.ops.credentials import make_credentials
from fedskew.site.contact import HEALTH_KEY, Contact, watching

PATIENCE = 120
FLEET = "/v1/fleet/"


class Clock:
    """Seconds that a test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@contextlib.contextmanager
def hanging_up(after: float = 0.0):
    """A port that takes every connection and closes it, at once or after some seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    line = listener.accept()[0]
                    threading.Timer(after, line.close).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def failure(port: int, roots, timeout: float = 5.0) -> Exception:
    """What Flower's HTTP client raises there."""
    context = ssl.create_default_context(cafile=roots)
    with httpx.Client(verify=context, timeout=timeout) as client, pytest.raises(httpx.TransportError) as found:
        client.post(f"https://127.0.0.1:{port}{FLEET}pull-messages")
    return found.value


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Every way in which a request fails on its way, by name."""
    pki, stranger = Pki(tmp_path_factory.mktemp("pki")), Pki(tmp_path_factory.mktemp("stranger"))
    found = {}
    with hanging_up() as port:
        found["cut off"] = failure(port, pki.roots)
    with hanging_up(after=2) as port:
        found["timed out"] = failure(port, pki.roots, timeout=0.3)
    found["refused"] = failure(port, pki.roots)
    with serving(stranger.server()) as server:
        found["not trusted"] = failure(server.server_address[1], pki.roots)
    with serving() as server:
        found["plain text"] = failure(server.server_address[1], pki.roots)
    return found


@pytest.mark.parametrize("way", ["cut off", "timed out", "refused"])
def test_a_connection_that_is_lost_is_always_tried_again(failures, way):
    assert gives_up(failures[way], Contact()) is False


@pytest.mark.parametrize("way", ["not trusted", "plain text"])
def test_a_wrong_server_is_final_at_the_start_and_once_it_has_lasted(failures, way):
    clock = Clock()
    contact = Contact(clock)
    assert gives_up(failures[way], contact)
    contact.made()
    clock.now += 599
    assert not gives_up(failures[way], contact), "somebody between, for a while"
    clock.now += 2
    assert gives_up(failures[way], contact)


def test_flower_decides_on_answers_as_before():
    def answer(status):
        response = httpx.Response(status, request=httpx.Request("POST", "https://superlink"))
        return httpx.HTTPStatusError("", request=response.request, response=response)

    contact = Contact()
    contact.made()
    assert gives_up(answer(500), contact)
    assert not gives_up(answer(503), contact)


def gives_up(error: Exception, contact: Contact) -> bool:
    with watching(contact):
        return connection.make_simple_http_retry_invoker().should_giveup(error)


def test_contact_lasts_for_as_long_as_the_superlink_counts_on_a_node(capsys):
    clock = Clock()
    contact = Contact(clock)
    assert (contact.age, contact.is_kept) == (None, False)
    contact.made()
    clock.now += 59.5
    assert (contact.age, contact.is_kept) == (59.5, True)
    clock.now += 0.5
    assert not contact.is_kept
    for word in ("cable", "port", "cable", "port", None, "cable"):
        contact.missed(OSError(word)) if word else contact.made()
    assert capsys.readouterr().out.splitlines() == [
        f"fedskew site: no contact with the coordinator: OSError: {word}" for word in ("cable", "port", "cable")
    ], "each once in an outage"


def test_systemd_is_told(monkeypatch, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        contact = Contact()
        contact.made()
        contact.made()
        contact.missed(OSError("cable\npulled"))
        systemd.settimeout(1)
        assert systemd.recv(999) == b"STATUS=in contact with the coordinator"
        said = systemd.recv(999).decode()
        assert said.startswith("STATUS=no contact with the coordinator since ")
        assert said.endswith(": OSError: cable pulled")


def test_another_flower_is_not_started_unwatched(monkeypatch):
    monkeypatch.delattr(connection, "HeartbeatSender")
    lacking = r"has no flwr\.supernode\.fleet_http_connection\.HeartbeatSender"
    with pytest.raises(FlowerError, match=lacking), watching(Contact()):
        pass
    assert connection.make_simple_http_retry_invoker.__module__ == "flwr.supercore.retry.http_retry"


@contextlib.contextmanager
def site(folder, roots=b"", **answers):
    """`fedskew site` against a SuperLink that gives these answers; (process, its /health, the server)."""
    pki = Pki(folder)
    key = make_credentials(folder / "keys", hosts=["localhost"], sites=["site-a"]).out / "site-a" / "node.key"
    good = {
        "activate-node": ActivateNodeResponse(node_id=7),
        "send-node-heartbeat": SendNodeHeartbeatResponse(success=True),
        "pull-messages": PullMessagesResponse(),
        "deactivate-node": ActivateNodeResponse(),
    }
    posts = {FLEET + route: (200, message.SerializeToString()) for route, message in good.items()}
    posts |= {FLEET + route.replace("_", "-"): answer for route, answer in answers.items()}
    with serving(pki.server(), posts=posts) as server:
        pki.roots.write_bytes(roots or pki.authority.pem)
        port = free_port()
        command = [sys.executable, "-c", "from fedskew.cli.main import app; app()", "site", "--port", str(port)]
        command += ["--superlink", f"127.0.0.1:{server.server_address[1]}", "--root-certificates", str(pki.roots)]
        command += ["--auth-supernode-private-key", str(key), "--node-config", f"data-dir='{folder}'"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, preexec_fn=default_signals, start_new_session=True
            )
        try:
            yield process, lambda: health(port), server
        finally:
            process.kill()
            process.wait(10)


def health(port: int) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


NO = (200, SendNodeHeartbeatResponse(success=False).SerializeToString())


def never():
    time.sleep(PATIENCE)
    return 200, b""


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"pull_messages": (500, b"broken")}, "500"),
        ({"send_node_heartbeat": NO, "deactivate_node": never}, "this SuperNode ends: its heartbeats stopped"),
        ({"pull_messages": (401, b"")}, "this SuperNode ends: the SuperLink refuses its key"),
        ({"roots": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, "ssl.SSLError: no start line"),
    ],
    ids=["its-loop-broke", "its-heartbeats-broke-and-cleaning-up-hangs", "its-key-is-refused", "its-ca-is-none"],
)
def test_when_its_work_ends_the_process_ends_with_an_error(tmp_path, answers, words):
    """On Flower's own: the third ends with 0 as if it had been told to, the others live on for good."""
    with site(tmp_path, **answers) as (process, _, _):
        assert process.wait(PATIENCE) == 1
    assert words in (tmp_path / "log").read_text()


def test_health_is_contact_and_a_signal_ends_it_without_an_error(tmp_path):
    with site(tmp_path, activate_node=(503, b"")) as (process, health, server):
        wait_until(lambda: health()[0], PATIENCE)
        assert health() == (503, {HEALTH_KEY: None}), "its API answers, its coordinator never did"
        server.posts[FLEET + "activate-node"] = (200, ActivateNodeResponse(node_id=7).SerializeToString())
        wait_until(lambda: health()[0] == 200, PATIENCE)
        assert 0 <= health()[1][HEALTH_KEY] < 30
        for route in ("pull-messages", "send-node-heartbeat"):
            server.posts[FLEET + route] = (503, b"")
        time.sleep(4)  # more than the pause between two questions
        older = health()[1][HEALTH_KEY]
        wait_until(lambda: health()[1][HEALTH_KEY] > older + 1, PATIENCE)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
