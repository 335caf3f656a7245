"""Node keys and registration, against a server that answers as told and against a real SuperLink."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from deployment.processes import free_port
from flwr.proto.fleet_pb2 import ActivateNodeResponse
from tls_server import Pki, only, real_superlink, serving, statuses

from fedskew.ops.check_network import Endpoint, check_superlink
from fedskew.ops.check_node import check_node_key, check_nodes, check_registered
from fedskew.ops.credentials import (
    node_key_pair,
)
from fedskew.ops.doctor import Data, Server, diagnose_coordinator, diagnose_site
from fedskew.ops.findings import FAIL, OK, WARN


@pytest.fixture
def pki(tmp_path):
    return Pki(tmp_path)


@pytest.fixture(scope="module")
def superlink(tmp_path_factory):
    with real_superlink(tmp_path_factory.mktemp("superlink")) as found:
        yield found


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "node.key"
    path.write_bytes(node_key_pair("site-a")[0])
    path.chmod(0o600)
    return path


needs_ssh_keygen = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")


@needs_ssh_keygen
def test_a_good_key_shows_the_fingerprint_that_ssh_keygen_shows(key_file):
    found = only(check_node_key(key_file), "node key")
    assert found.status == OK
    shown = subprocess.run(["ssh-keygen", "-lf", str(key_file)], capture_output=True, text=True, check=True).stdout
    assert shown.split()[1] in found.message


def test_faulty_keys(key_file, tmp_path):
    key = ec.generate_private_key(ec.SECP384R1())
    ssh, public = PrivateFormat.OpenSSH, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    faulty = {
        "is a public key": public,
        "in another PEM form": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "is a Ed25519 key": ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, ssh, NoEncryption()),
        "is no private key": b"hello",
    }
    for message, content in faulty.items():
        key_file.write_bytes(content)
        found = only(check_node_key(key_file), "node key")
        assert message in found.message
        assert found.remedy
    assert "ssh-keygen -t ecdsa" in only(check_node_key(tmp_path / "absent"), "node key").remedy


@needs_ssh_keygen
def test_a_key_with_a_passphrase(key_file):
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(key_file)], check=True, capture_output=True)
    found = only(check_node_key(key_file), "node key")
    assert "protected by a passphrase" in found.message
    assert "ssh-keygen -p -N ''" in found.remedy


@needs_ssh_keygen
def test_a_key_that_ssh_keygen_made(tmp_path):
    words = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(tmp_path / "own.key")]
    subprocess.run(words, check=True)
    assert only(check_node_key(tmp_path / "own.key"), "node key").status == OK


def test_a_key_that_others_may_read(key_file):
    key_file.chmod(0o640)
    found = only(check_node_key(key_file), "node key")
    assert "mode 0640" in found.message
    assert found.remedy == f"chmod 600 {key_file}"


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            412,
            b'{"code":2004,"detail":"Failed."}',
            "it is not registered, or a SuperNode elsewhere",
        ),
        (401, b'{"detail":"Invalid SuperNode authentication"}', "does not accept this site's signature"),
        (403, b"<html>", "fleet routes are not reachable here: status 403"),
    ],
)
def test_registration_that_is_refused(pki, key_file, status, body, message):
    with serving(pki.server(), posts={"/v1/fleet/activate-node": (status, body)}) as server:
        (found,) = check_registered(Endpoint("127.0.0.1", server.server_port, pki.roots), key_file)
    assert found.status == FAIL
    assert message in found.message


def test_a_registered_key_is_let_in_and_out_again(pki, key_file):
    posts = {
        "/v1/fleet/activate-node": (200, ActivateNodeResponse(node_id=42).SerializeToString()),
        "/v1/fleet/deactivate-node": (200, b""),
    }
    with serving(pki.server(), posts=posts) as server:
        (found,) = check_registered(Endpoint("127.0.0.1", server.server_port, pki.roots), key_file)
    assert (found.status, found.message) == (OK, "the SuperLink knows this key: node 42")
    assert server.asked == list(posts)


SUPERNODE = """
import sys, http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[2]))
        self.end_headers()
        self.wfile.write(sys.argv[3].encode())
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1].partition("=")[2])), Answer)
print("up", flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize(
    ("status", "body", "judged", "message"),
    [
        (200, '{"seconds-since-contact": 2.6}', OK, "the coordinator answered the SuperNode of process {pid} 3 s ago"),
        (503, '{"seconds-since-contact": 312.0}', FAIL, "last answered the SuperNode of process {pid} 312 s ago"),
        (503, '{"seconds-since-contact": null}', FAIL, "process {pid} was never in contact"),
        (200, "", WARN, "is plain flower-supernode"),
        (200, "<html>", FAIL, "does not answer on port {port}"),
    ],
)
def test_a_running_supernode_is_not_disturbed_but_asked_for_its_contact(pki, key_file, status, body, judged, message):
    port = free_port()
    words = [sys.executable, "-c", SUPERNODE, "flower-supernode", str(status), body]
    words += ["--auth-supernode-private-key", key_file.name, f"--port={port}"]
    with subprocess.Popen(words, cwd=key_file.parent, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        asked, contact = check_registered(Endpoint("127.0.0.1", 1, pki.roots), key_file)
        process.kill()
    assert (asked.subject, asked.status) == ("registration", OK)
    assert f"process {process.pid}" in asked.message
    assert (contact.subject, contact.status) == ("contact", judged)
    assert message.format(pid=process.pid, port=port) in contact.message


def test_a_real_superlink_tells_registered_from_unknown_keys(superlink):
    endpoint, pki = superlink
    assert statuses(check_superlink(endpoint, clock=True, public=False))["SuperLink"] == OK
    assert only(check_superlink(endpoint, clock=True, public=True), "control routes").status == FAIL
    for _ in range(2):  # it lets go of the key each time
        assert only(check_registered(endpoint, pki / "site-a" / "node.key"), "registration").status == OK
    assert only(check_registered(endpoint, pki / "site-b" / "node.key"), "registration").status == FAIL


def test_the_coordinator_sees_its_sites(superlink):
    endpoint, pki = superlink
    (found,) = check_nodes(endpoint)
    assert (found.subject, found.status) == ("site", WARN)
    assert "site-a is registered with key SHA256:" in found.message
    shown = only(check_node_key(pki / "site-a" / "node.key"), "node key").message
    assert found.message.split("SHA256:")[1][:7] in shown, "both sides can compare the key"


def test_a_coordinator_from_end_to_end(superlink, monkeypatch):
    endpoint, pki = superlink
    server = Server(pki / "coordinator" / "server.pem", hosts=("localhost",))
    found = diagnose_coordinator(endpoint, endpoint, server, Data(), "")
    assert only(found, "server certificate").status == OK
    assert only(found, "site").status == WARN
    assert only(found, "public control routes").status == FAIL
    assert "public TCP" not in statuses(found) or only(found, "public TCP").status == OK


def test_a_site_from_end_to_end(pki, key_file, generated, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (tmp_path / "policy.yaml").write_text("app-hashes: ['" + 64 * "a" + "']")
    (tmp_path / "policy.yaml").chmod(0o644)
    names = {"policy": "policy.yaml", "audit-log": "audit.jsonl"}
    config = {"data-dir": str(generated)} | {key: str(tmp_path / name) for key, name in names.items()}
    posts = {"/v1/fleet/activate-node": (200, b""), "/v1/fleet/deactivate-node": (200, b"")}
    with serving(pki.server(), posts=posts) as server:
        endpoint = Endpoint("127.0.0.1", server.server_port, pki.roots)
        found = diagnose_site(endpoint, key_file, Data(generated), config)
    machine = {"CUDA", "memory", "cache disk", "audit disk"}
    assert {finding.subject for finding in found if finding.status != OK} <= machine
    assert {"python", "TLS", "clock", "registration", "classes", "policy", "audit log"} <= set(statuses(found))
