"""What the tests of the operators' commands share: an HTTP(S) server that answers as told, a real SuperLink."""

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedskew.ops import check_network, check_node
from fedskew.ops.check_network import Endpoint
from fedskew.ops.credentials import _alternative_name, make_credentials, new_authority, server_certificate

NAMES = ("localhost", "127.0.0.1")


def only(findings, subject):
    """The one finding of a subject."""
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


def statuses(findings):
    return {finding.subject: finding.status for finding in findings}


class Answers(BaseHTTPRequestHandler):
    """What a SuperLink behind a proxy answers; the server's attributes change it."""

    def do_GET(self):
        self.answer(self.server.health if self.path == "/health" else 404)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        answer = self.server.posts.get(self.path, (403, b"<html>Forbidden</html>"))
        self.server.asked.append(self.path)
        status, body = answer() if callable(answer) else answer
        self.answer(status, body)

    def answer(self, status, body=b""):
        self.send_response_only(status)
        if self.server.clock is not None:
            self.send_header("Date", formatdate(time.time() - self.server.clock, usegmt=True))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Keep the test's output clean."""


class Quiet(ThreadingHTTPServer):
    """A server that does not print what clients that distrust it leave behind."""

    daemon_threads = True

    def handle_error(self, *_):
        pass


@contextlib.contextmanager
def serving(context=None, *, health=200, clock=0.0, posts=None):
    """An HTTP(S) server on a free port of 127.0.0.1."""
    server = Quiet(("127.0.0.1", 0), Answers)
    server.health, server.clock, server.posts, server.asked = health, clock, posts or {}, []
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Pki:
    """A CA and the TLS settings of servers that it vouches for, in a folder."""

    def __init__(self, folder):
        self.authority = new_authority()
        self.roots, self.certificate, self.key = folder / "ca.crt", folder / "server.pem", folder / "server.key"
        self.roots.write_bytes(self.authority.pem)

    def server(self, names=NAMES, days=90.0, issuer=None):
        """Settings of a server whose certificate is for these names, valid for (or expired since) some days."""
        alternatives = [_alternative_name(name) for name in names]
        chain, key = server_certificate(issuer or self.authority, alternatives, days)
        self.certificate.write_bytes(chain)
        self.key.write_bytes(key)
        self.key.chmod(0o600)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


@contextlib.contextmanager
def real_superlink(folder):
    """A real SuperLink with TLS and node authentication that knows site-a; (endpoint, folder of credentials)."""
    pki = make_credentials(folder / "pki", hosts=["localhost"], sites=["site-a", "site-b"]).out
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server, scripts = pki / "coordinator", Path(sys.executable).parent
    command = [scripts / "flower-superlink", "--port", str(port), "--enable-supernode-auth"]
    command += ["--ssl-ca-certfile", server / "ca.crt", "--ssl-certfile", server / "server.pem"]
    command += ["--ssl-keyfile", server / "server.key"]
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "FLWR_HOME": str(folder)}
    endpoint = Endpoint("127.0.0.1", port, server / "ca.crt")
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            deadline = time.monotonic() + 60
            while check_network._get_health(endpoint).status != 200:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
            with ControlHttpClient.from_server_address(str(endpoint), False, str(endpoint.roots), []) as client:
                key = check_node._load((pki / "site-a" / "node.key").read_bytes()).public_key()
                client.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key), name="site-a"))
            yield endpoint, pki
        finally:
            os.killpg(process.pid, 15)
