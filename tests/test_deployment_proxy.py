"""The proxy's paths: what is not literally one of the open routes never reaches the SuperLink, however it is spelt.

nginx with the configuration that is shipped, before a server that writes down what it gets; marked `deployment`, which
is where nginx is installed.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from deployment.processes import free_port, user_name, wait_until
from tls_server import Answers, Pki, Quiet

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx and its stream module"),
]
PULL = "/v1/fleet/pull-messages"
CONTROL = "/v1/control/start-run"
OPEN = ("register-node", "unregister-node", "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages",
        "push-messages", "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received")  # fmt: skip
OTHER_SPELLINGS = (
    "/%68ealth", "//health", "/health/", "/health?", "/health?x=1", "/./health", "/x/../health", "/HEALTH", "/health;x",
    "/health%00", "/health%2f", "/health#x", "*", "health",
)  # fmt: skip
OTHER_PATHS = (
    CONTROL, "/v1/control/register-node", "/v1/runtime/pull-task-input", "/", "/v1/fleet/", "/v1/fleet", "/docs",
    "/openapi.json", f"/{PULL}", f"/.{PULL}", f"/x/..{PULL}", f"{PULL}/", f"{PULL}//", f"{PULL}?", f"{PULL}?a=/health",
    f"{PULL}%00", f"{PULL}%0a", f"{PULL}%20", f"{PULL};x", f"{PULL}.", f"{PULL}/..", f"{PULL}#x",
    "/V1/fleet/pull-messages",
    "/v1/fleet/Pull-Messages", "/v1//fleet/pull-messages", "/v1/./fleet/pull-messages", "/v1/fleet/./pull-messages",
    "/v1/fleet//pull-messages", "/v1/fleet/%2e/pull-messages", "/v1/fleet%2fpull-messages", "/v1%2ffleet/pull-messages",
    "/v1/fleet/pull%2dmessages", "/%761/fleet/pull-messages", "/v1/fleet/pull-message%73", "/v1\\fleet\\pull-messages",
    "/v1/fleet/../control/start-run", "/v1/fleet/..%2fcontrol/start-run", "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/%2e%2e%2fcontrol%2fstart-run", "/v1/fleet/pull-messages/../../control/start-run",
    f"{PULL}/%2e%2e/%2e%2e/control/start-run", "/v1/fleet/pull-messages/..;/..;/control/start-run",
    "/v1/control/..%2ffleet/pull-messages", "/v1/control/../fleet/pull-messages",
    "/v1/fleet/%252e%252e/control/start-run",
    "//v1/control/start-run", "/v1/%63ontrol/start-run", f"/health/..{CONTROL}", f"/health%2f..{CONTROL}",
)  # fmt: skip


class Recorder(Answers):
    """Answers everything with 200 and writes down the request lines."""

    def do_GET(self):
        self.server.asked.append(self.requestline)
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(200)

    do_POST = do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_TRACE = do_GET


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """nginx before a recording server; (ask, what the server got)."""
    folder = tmp_path_factory.mktemp("proxy")
    pki = Pki(folder)
    server = Quiet(("127.0.0.1", 0), Recorder)
    server.asked, server.clock = [], None
    server.socket = pki.server().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    text, port = (ROOT / "docker" / "nginx.conf").read_text(encoding="utf-8"), free_port()
    for old, new in (
        ("/tmp/", f"{folder}/"),
        ("superlink:8000", f"127.0.0.1:{server.server_address[1]}"),
        ("/pki/", f"{folder}/"),
        ("/dev/stdout", f"{folder}/wire.jsonl"),
        ("listen 8443;", f"listen 127.0.0.1:{port};"),
        ("127.0.0.1:8444", f"127.0.0.1:{free_port()}"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    command = ["nginx", "-c", folder / "nginx.conf", "-e", folder / "error.log"]
    command += ["-g", f"daemon off; user {user_name()};"]

    def ask(line: str, *headers: str, plain: bool = False) -> int:
        """The status of the answer to a request line, sent byte by byte as it stands."""
        context = ssl.create_default_context(cafile=pki.roots)
        words = [line, "Host: fleet", "Connection: close", "Content-Length: 0", *headers]
        with socket.create_connection(("127.0.0.1", port), 9) as raw:
            way = raw if plain else context.wrap_socket(raw, server_hostname="localhost")
            with way:
                way.sendall(("\r\n".join(words) + "\r\n\r\n").encode("latin-1"))
                return int(way.makefile("rb").readline().split()[1])

    def up() -> bool:
        with contextlib.suppress(OSError):
            return ask("GET /health HTTP/1.1") == 200
        return False

    threading.Thread(target=server.serve_forever, daemon=True).start()
    with subprocess.Popen(command) as process:
        try:
            wait_until(up, 60)
            yield ask, server.asked
        finally:
            process.terminate()
            server.shutdown()


def test_the_open_routes_are_passed_on_as_they_are(proxy):
    ask, got = proxy
    got.clear()
    wanted = ["GET /health", "HEAD /health", *(f"POST /v1/fleet/{route}" for route in OPEN)]
    assert [ask(f"{line} HTTP/1.1") for line in wanted] == [200] * len(wanted)
    assert got == [f"{line} HTTP/1.1" for line in wanted]


@pytest.mark.parametrize(
    "line",
    [
        *(f"GET {path} HTTP/1.1" for path in OTHER_SPELLINGS),
        *(f"POST {path} HTTP/1.1" for path in OTHER_PATHS),
        *(f"{method} {PULL} HTTP/1.1" for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "post")),
        *(f"{method} /health HTTP/1.1" for method in ("POST", "OPTIONS", "get")),
        f"POST http://superlink{CONTROL} HTTP/1.1",
        "CONNECT superlink:8000 HTTP/1.1",
        f"POST {PULL} {CONTROL} HTTP/1.1",
        f"POST {PULL}\tHTTP/1.1",
    ],
)
def test_every_other_spelling_is_refused_and_never_passed_on(proxy, line):
    ask, got = proxy
    got.clear()
    assert ask(line) in (400, 403, 405)
    assert got == []


def test_headers_that_name_another_path_change_nothing(proxy):
    ask, got = proxy
    got.clear()
    for header in ("X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-Forwarded-Prefix"):
        assert ask(f"POST {CONTROL} HTTP/1.1", f"{header}: {PULL}") == 403
        assert ask(f"POST {PULL} HTTP/1.1", f"{header}: {CONTROL}") == 200
    assert got == [f"POST {PULL} HTTP/1.1"] * 4


@pytest.mark.parametrize(
    "headers",
    [
        ("Transfer-Encoding: chunked",), ("Transfer-Encoding: xchunked",), ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), ("Content-Length: 7",), ("Content-Length : 7",),
        ("X: a\r\n Content-Length: 7",), ("X: a\0b",), ("Host: other",),
    ],
    ids=lambda headers: repr(headers)[:50],
)  # fmt: skip
def test_a_request_of_which_two_readings_are_possible_is_refused(proxy, headers):
    """Where proxy and SuperLink disagree on where a request ends, the next one is smuggled past the list of paths."""
    ask, got = proxy
    got.clear()
    assert ask(f"POST {PULL} HTTP/1.1", *headers) in (400, 501)
    assert got == []


def test_plain_text_is_refused(proxy):
    ask, got = proxy
    got.clear()
    assert ask(f"POST {PULL} HTTP/1.1", plain=True) == 400
    assert got == []
