"""The way to the SuperLink, step by step: name, port, TLS, health, clock, and what must not be reachable."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509

from fedskew.errors import FedskewError
from fedskew.ops.check_tls import check_roots, client_context, describe, expiry, explain
from fedskew.ops.findings import Finding, exit_code, fail, ok, warn

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIMEOUT = 5.0  # seconds for each step
# Flower refuses a signed request that is more than 5 s early or 305 s late (flwr.common.constant)
AHEAD_FAIL, AHEAD_WARN, BEHIND_FAIL, BEHIND_WARN = 5.0, 2.0, 300.0, 60.0
CONTROL = "/v1/control/list-nodes"  # reads only; an empty body is a whole request
PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}


class AddressError(FedskewError, ValueError):
    """An address that is not host:port; says how it should look."""


@dataclass(frozen=True)
class Endpoint:
    """Where a SuperLink (or the proxy before it) listens, and how it is to be trusted."""

    host: str
    port: int
    roots: Path | None = None
    insecure: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Health:
    """The answer to `GET /health`; `ahead` is this machine's clock minus the server's in seconds, None if unknown."""

    status: int
    ahead: float | None
    text: str = ""


def parse_address(text: str, roots: Path | None = None, *, insecure: bool = False) -> Endpoint:
    """`host:port` as Flower takes it.

    Raises:
        AddressError: a scheme or path is given, or the port is missing.
    """
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})", text)
    if not match or not 0 < int(match.group(2)) < 65536:
        hint = "leave out https:// and any path" if "/" in text else "add the port, e.g. fl.example.org:8443"
        raise AddressError(f"--superlink {text!r} is not host:port; {hint}")
    return Endpoint(match.group(1).strip("[]"), int(match.group(2)), roots, insecure)


def check_superlink(endpoint: Endpoint, *, clock: bool, public: bool) -> list[Finding]:
    """Every step on the way, up to the first that fails.

    Args:
        clock: compare the clocks (or say that they cannot be compared).
        public: sites reach this address, so the control routes must be closed there.
    """
    found = [*_check_proxy(endpoint), *check_roots(endpoint.roots)]
    reached = _check_name(endpoint) or _check_port(endpoint)
    found += reached
    if exit_code(reached) == 0:
        found += _check_plain(endpoint) if endpoint.insecure else _check_tls(endpoint)
    if exit_code(found):
        return found + ([_unknown_clock("there is no trusted connection")] if clock else [])
    health = _get_health(endpoint)
    found += [*_judge_health(endpoint, health), *(_judge_clock(health) if clock else [])]
    return found + (_check_control(endpoint) if public and health.status == 200 else [])


def _check_proxy(endpoint: Endpoint) -> list[Finding]:
    variables = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    found = [f"{name}={os.environ[name]}" for name in variables if os.environ.get(name)]
    exempt = os.environ.get("NO_PROXY", os.environ.get("no_proxy", ""))
    if not found or any(part.strip().lstrip(".") in (endpoint.host, "*") for part in exempt.split(",")):
        return []
    return [
        warn(
            "HTTP proxy",
            f"{found[0]} is set: Flower will go through it, this check goes directly",
            f"if the SuperLink is reached directly, put {endpoint.host} into NO_PROXY",
        )
    ]


def _check_name(endpoint: Endpoint) -> list[Finding]:
    """A finding only if the name does not resolve; `_check_port` names the address otherwise."""
    try:
        socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        remedy = "check the spelling with the coordinator, and this machine's DNS server (/etc/resolv.conf)"
        return [fail("DNS", f"{endpoint.host} cannot be resolved: {error}", remedy)]
    return []


def _check_port(endpoint: Endpoint) -> list[Finding]:
    start = time.perf_counter()
    try:
        with socket.create_connection((endpoint.host, endpoint.port), TIMEOUT) as connection:
            address, milliseconds = connection.getpeername()[0], (time.perf_counter() - start) * 1000
    except TimeoutError:
        remedy = (
            f"open port {endpoint.port} outwards to {endpoint.host} in this site's firewall, inwards at the coordinator"
        )
        return [
            fail("TCP", f"{endpoint} does not answer within {TIMEOUT:.0f} s: packets are dropped on the way", remedy)
        ]
    except ConnectionRefusedError:
        loopback = "" if endpoint.host in LOOPBACK else "; it must not listen on 127.0.0.1 only"
        remedy = f"start the SuperLink (or the proxy before it), check the port{loopback}"
        return [fail("TCP", f"{endpoint} refuses the connection: nothing listens there", remedy)]
    except OSError as error:
        return [fail("TCP", f"{endpoint} cannot be reached: {error}", "check this machine's network and routes")]
    named = "" if address == endpoint.host else f" ({address})"
    return [ok("TCP", f"{endpoint}{named} answers in {milliseconds:.0f} ms")]


def _check_tls(endpoint: Endpoint) -> list[Finding]:
    try:
        with _tls(endpoint, client_context(endpoint.roots)) as connection:
            certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
            version = connection.version()
    except ssl.SSLCertVerificationError as error:
        return [explain(error, _shown_certificate(endpoint), endpoint.host, endpoint.roots)]
    except OSError as error:  # ssl.SSLError and time-outs are some
        return [_no_tls(endpoint, error)]
    soon = expiry(certificate, "certificate")
    return [ok("TLS", f"{version}, certificate {describe(certificate)}"), *soon]


def _no_tls(endpoint: Endpoint, error: OSError) -> Finding:
    """Plain text, or something that is no HTTP server at all."""
    if _speaks_http(endpoint):
        return fail(
            "TLS",
            f"{endpoint} speaks plain text: anybody on the way could read and change the model",
            "the coordinator must start flower-superlink with --ssl-certfile, --ssl-keyfile and --ssl-ca-certfile, not "
            "with --insecure, or give the TLS port of the proxy; only for a demo on one machine: --insecure",
        )
    return fail("TLS", f"{endpoint} listens but does not speak TLS: {error}", "check the port: is it the SuperLink's?")


def _check_plain(endpoint: Endpoint) -> list[Finding]:
    unverified = ssl._create_unverified_context()  # only asks whether TLS is spoken
    try:
        with _tls(endpoint, unverified):
            return [fail("TLS", f"{endpoint} speaks TLS, but --insecure asks for plain text", "leave out --insecure")]
    except OSError:
        remedy = "for a demo on one machine only: without TLS there is no node authentication and no secrecy"
        return [warn("TLS", "plain text, as --insecure asks for", remedy)]


def _tls(endpoint: Endpoint, context: ssl.SSLContext) -> ssl.SSLSocket:
    connection = socket.create_connection((endpoint.host, endpoint.port), TIMEOUT)
    try:
        return context.wrap_socket(connection, server_hostname=endpoint.host)
    except BaseException:
        connection.close()
        raise


def _shown_certificate(endpoint: Endpoint) -> x509.Certificate | None:
    """What the server shows, trusted or not."""
    try:
        with _tls(endpoint, ssl._create_unverified_context()) as connection:
            return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError):
        return None  # the caller then explains without it


def _speaks_http(endpoint: Endpoint) -> bool:
    try:
        with socket.create_connection((endpoint.host, endpoint.port), TIMEOUT) as connection:
            connection.settimeout(TIMEOUT)
            connection.sendall(f"GET /health HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(5) == b"HTTP/"
    except OSError:
        return False


def _request(
    endpoint: Endpoint, method: str, path: str, headers: dict[str, str]
) -> tuple[http.client.HTTPResponse, float]:
    """The response, and this machine's time half-way between question and answer."""
    kind = http.client.HTTPConnection if endpoint.insecure else http.client.HTTPSConnection
    options = {} if endpoint.insecure else {"context": client_context(endpoint.roots)}
    connection = kind(endpoint.host, endpoint.port, timeout=TIMEOUT, **options)
    connection.connect()  # so that the time of the handshake does not count for the clock
    start = time.time()
    connection.request(method, path, headers=headers)
    return connection.getresponse(), (start + time.time()) / 2


def _get_health(endpoint: Endpoint) -> Health:
    try:
        response, here = _request(endpoint, "GET", "/health", {})
        date = response.getheader("Date")
        response.read(65536)
    except (OSError, http.client.HTTPException) as error:
        return Health(0, None, f"{type(error).__name__}: {error}")
    try:
        # the header has whole seconds, cut off
        ahead = here - (parsedate_to_datetime(date).timestamp() + 0.5) if date else None
    except ValueError:
        ahead = None
    return Health(response.status, ahead)


def _judge_health(endpoint: Endpoint, health: Health) -> list[Finding]:
    subject = "SuperLink"
    if health.status == 200:
        return [ok(subject, f"http{'' if endpoint.insecure else 's'}://{endpoint}/health answers")]
    if health.status in (502, 503, 504):
        remedy = "tell the coordinator: flower-superlink is not running, or the proxy does not trust its certificate"
        return [fail(subject, f"the proxy answers, the SuperLink behind it does not (status {health.status})", remedy)]
    what = f"status {health.status} for /health" if health.status else health.text
    return [
        fail(subject, f"{endpoint} is no Flower SuperLink of version 1.41 or newer: {what}", "check address and port")
    ]


def _judge_clock(health: Health) -> list[Finding]:
    if health.ahead is None:
        return [_unknown_clock("the answer holds no date")]
    seconds = abs(health.ahead)
    way = "ahead of" if health.ahead > 0 else "behind"
    text = f"{seconds:.0f} s {way} the SuperLink's" if seconds >= 1.5 else "less than 2 s off the SuperLink's"
    remedy = "set the time by NTP on both machines (timedatectl set-ntp true)"
    fail_at, warn_at = (AHEAD_FAIL, AHEAD_WARN) if health.ahead > 0 else (BEHIND_FAIL, BEHIND_WARN)
    if seconds > fail_at:
        refused = f"; the SuperLink refuses this site's signed requests above {fail_at:.0f} s"
        return [fail("clock", text + refused, remedy)]
    return [warn("clock", text, remedy) if seconds > warn_at else ok("clock", text)]


def _unknown_clock(why: str) -> Finding:
    return warn("clock", f"cannot be compared with the SuperLink's: {why}", "mend that first")


def _check_control(endpoint: Endpoint) -> list[Finding]:
    """Whether whoever reaches this address may list, and so also register, nodes and start runs."""
    subject = "control routes"
    try:
        response, _ = _request(endpoint, "POST", CONTROL, PROTOBUF)
        body = response.read(65536)
    except (OSError, http.client.HTTPException) as error:
        return [warn(subject, f"cannot be tested: {error}", "try again")]
    if response.status != 200 and not (b'"code"' in body and response.status not in (401, 403)):
        return [ok(subject, f"closed at this address (status {response.status})")]
    return [
        fail(
            subject,
            f"open at {endpoint}: whoever reaches it can start runs, that is, run code of their own on every site",
            "the coordinator must let sites reach only the fleet routes and /health (a reverse proxy does); until then "
            "pin the app in each site's policy (app-hashes)",
        )
    ]
