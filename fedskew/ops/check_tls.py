"""Certificates: what a server shows, why it is not trusted, and the coordinator's own files."""

from __future__ import annotations

import shlex
import ssl
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from fedskew.ops.findings import Finding, fail, ok, warn

EXPIRES_SOON = 30  # days
EXPIRED, NOT_YET, WRONG_NAME, WRONG_ADDRESS = 10, 9, 62, 64  # OpenSSL's verification codes


def client_context(roots: Path | None) -> ssl.SSLContext:
    """The TLS settings with which Flower's client connects.

    Raises:
        OSError, ssl.SSLError: the file of root certificates cannot be read.
    """
    if roots is not None:
        return ssl.create_default_context(cafile=str(roots))
    import httpx

    return httpx.create_ssl_context()  # its own bundle of CAs, not the system's: Flower uses httpx


def check_roots(roots: Path | None) -> list[Finding]:
    """The file given as `--root-certificates`."""
    if roots is None:
        return []
    subject = "CA file"
    try:
        content = roots.read_bytes()
        certificates = x509.load_pem_x509_certificates(content)
    except OSError as error:
        return [
            fail(
                subject, f"{roots} cannot be read: {error.strerror}", "get ca.crt from the coordinator; check the path"
            )
        ]
    except ValueError:
        return [fail(subject, f"{roots} holds no certificate in PEM form", "get ca.crt from the coordinator")]
    found = []
    if b"PRIVATE KEY" in content:
        remedy = "tell the coordinator at once: a CA's key has left its place, new credentials are needed"
        found.append(fail(subject, f"{roots} holds a private key; a site needs ca.crt alone", remedy))
    for certificate in certificates:
        if not _is_authority(certificate):
            text = f"{_name(certificate)} in {roots} is no CA certificate"
            found.append(warn(subject, text, "give the CA's certificate (ca.crt), not the server's"))
        found += expiry(certificate, subject)
    return found or [ok(subject, f"{roots}: {', '.join(_name(certificate) for certificate in certificates)}")]


def check_server_files(certificate: Path, key: Path, roots: Path | None, hosts: Sequence[str]) -> list[Finding]:
    """The coordinator's certificate and key: readable, current, a pair, for the right names, trusted by the sites.

    Sites' trust is tested by a handshake in memory, so it is judged by the code that sites use.
    """
    subject = "server certificate"
    try:
        leaf, *issuers = x509.load_pem_x509_certificates(certificate.read_bytes())
    except (OSError, ValueError) as error:
        remedy = "name the PEM file of --ssl-certfile; `fedskew credentials` makes one for demos"
        return [fail(subject, f"{certificate} cannot be read: {error}", remedy)]
    found = [finding for part in (leaf, *issuers) for finding in expiry(part, subject)]
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        found += private_mode(key, "server key")
        server.load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError is one
        mismatch = "MISMATCH" in str(error)
        text = f"{key} does not belong to {certificate}" if mismatch else f"{key} cannot be used: {error}"
        remedy = "use the pair that was made together" if mismatch else "give the unencrypted PEM file of --ssl-keyfile"
        return [*found, fail("server key", text, remedy)]
    found += _trust(server, leaf, roots, tuple(dict.fromkeys((*hosts, "127.0.0.1"))))
    return found or [ok(subject, f"{certificate}: {describe(leaf)}")]


def _trust(server: ssl.SSLContext, leaf: x509.Certificate, roots: Path | None, hosts: Sequence[str]) -> list[Finding]:
    """What sites would object to when they connect under each of these names."""
    errors = {host: error for host in hosts if (error := _handshake(server, client_context(roots), host)) is not None}
    lacking = [host for host, error in errors.items() if error.verify_code in (WRONG_NAME, WRONG_ADDRESS)]
    known = (WRONG_NAME, WRONG_ADDRESS, EXPIRED, NOT_YET)  # the last two are told of already
    other = [error for error in errors.values() if error.verify_code not in known]
    found = [explain(other[0], leaf, hosts[0], roots)] if other else []
    if lacking:
        names = " ".join(f"--host {host}" for host in hosts if host != "127.0.0.1")
        text = f"it is valid for {_listed(alternative_names(leaf))}, not for {_listed(lacking)}"
        remedy = (
            f"have your CA make it anew with all names, or: fedskew credentials --out … {names} --force (127.0.0.1 "
        )
        found.append(fail("server certificate", text, remedy + "serves the proxy and `flwr run` on this machine)"))
    return found


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> ssl.SSLCertVerificationError | None:
    """Let a client meet a server in memory; returns the client's objection to the server's certificate."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)]
    for _ in range(10):  # a handshake takes three turns
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                continue  # the other one's turn
            except ssl.SSLCertVerificationError as error:
                return error
        if not sides:
            return None
    raise ssl.SSLError("client and server came to no end")


def explain(
    error: ssl.SSLCertVerificationError, shown: x509.Certificate | None, host: str, roots: Path | None
) -> Finding:
    """Why the certificate that a server shows is not trusted, and what to do."""
    subject = "certificate"
    if shown is None:
        return fail(subject, f"is not trusted: {error.verify_message}", "ask the coordinator for its certificate")
    if error.verify_code in (WRONG_NAME, WRONG_ADDRESS):
        names = _listed(alternative_names(shown))
        remedy = f"give one of these names with --superlink, or let the coordinator have a certificate made for {host}"
        return fail(subject, f"it is valid for {names}, but you connect to {host}", remedy)
    if error.verify_code in (EXPIRED, NOT_YET):
        clock = f"this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        late = expiry(shown, subject) or [fail(subject, error.verify_message, "")]
        return fail(
            subject, late[0].message, f"the coordinator has to renew it or its CA — unless the clock is wrong: {clock}"
        )
    issuer = _common_name(shown.issuer)
    if roots is None:
        remedy = "get ca.crt from the coordinator and give it with --root-certificates"
        return fail(subject, f"its issuer {issuer!r} is unknown to this machine", remedy)
    text = f"it claims to be signed by {issuer!r}, and not by the CA in {roots} ({error.verify_message})"
    remedy = "get the present ca.crt from the coordinator; if this is it, somebody else answers here: do not connect"
    return fail(subject, text, remedy)


def expiry(certificate: x509.Certificate, subject: str) -> list[Finding]:
    """A finding if a certificate is not valid now, or soon will not be."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now, name = datetime.now(UTC), _name(certificate)
    if ends < now:
        return [
            fail(
                subject, f"{name} expired on {ends:%Y-%m-%d %H:%M} UTC", "have it renewed by the coordinator or your CA"
            )
        ]
    if begins > now:
        return [
            fail(subject, f"{name} is valid from {begins:%Y-%m-%d %H:%M} UTC on, not yet", "check this machine's clock")
        ]
    if (days := (ends - now).days) < EXPIRES_SOON:
        return [
            warn(
                subject, f"{name} expires in {days} days, on {ends:%Y-%m-%d}", "have it renewed before a run is cut off"
            )
        ]
    return []


def describe(certificate: x509.Certificate) -> str:
    """Names and expiry of a certificate in a few words."""
    return f"for {_listed(alternative_names(certificate))}; {_until(certificate)}"


def alternative_names(certificate: x509.Certificate) -> list[str]:
    """DNS names and addresses that a certificate is valid for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def private_mode(path: Path, subject: str) -> list[Finding]:
    """A finding if others than the owner may read a private file."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return [
            fail(
                subject,
                f"{path} may be read by other accounts (mode {mode:04o})",
                f"chmod 600 {shlex.quote(str(path))}",
            )
        ]
    return []


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _name(certificate: x509.Certificate) -> str:
    return f"the certificate of {_common_name(certificate.subject)!r}"


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(x509.oid.NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()


def _until(certificate: x509.Certificate) -> str:
    days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    return f"valid until {certificate.not_valid_after_utc:%Y-%m-%d} ({days} days)"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "no name at all"
