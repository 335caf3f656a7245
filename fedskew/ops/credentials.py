"""Demo credentials: a CA, the coordinator's TLS certificate, a key pair for every site, sorted by who gets them.

    fedskew credentials --out pki --host fl.example.org --site site-a --site site-b

    pki/ca/            ca.key  ca.crt                  stays where it was made, offline
    pki/coordinator/   ca.crt  server.pem  server.key  site-a.pub  site-b.pub
    pki/site-a/        ca.crt  node.key    node.pub

A production CA should take the place of `ca/`, and each site should make its key pair itself. Run again with
other names, it adds to what is there; nothing is overwritten without `force`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedskew.errors import FedskewError

LOOPBACK = ("localhost", "127.0.0.1", "::1")  # the reverse proxy and `flwr run` beside the SuperLink use these
PRIVATE, PUBLIC, FOLDER = 0o600, 0o644, 0o700
CA, COORDINATOR = "ca", "coordinator"
EARLIER = timedelta(hours=1)  # certificates begin in the past: clocks of other machines may be slow

File = tuple[str, bytes, int]  # name, content, mode


class CredentialsError(FedskewError, ValueError):
    """Credentials that cannot be made; names the file or option and the remedy."""


@dataclass(frozen=True)
class Authority:
    """A certificate authority: its key and its own certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)


@dataclass(frozen=True)
class Made:
    """Folders that `make_credentials` wrote, by name, and what it put there; `until`: when the certificates expire."""

    out: Path
    folders: dict[str, tuple[str, ...]]
    until: datetime | None


def make_credentials(
    out: Path, *, hosts: Sequence[str], sites: Sequence[str], days: int = 90, force: bool = False
) -> Made:
    """Write what is asked for below `out`; an existing CA there is used again.

    Args:
        hosts: names and addresses by which sites reach the coordinator; none: no server certificate.
        sites: names of sites; each gets a key pair.
        days: how long certificates are valid; never longer than the CA.
        force: replace the server certificate and the named sites' keys (never the CA).

    Raises:
        CredentialsError: a name is unusable, a file is there already, the CA is damaged or expired, or nothing can
            be written.
    """
    alternatives = [_alternative_name(host) for host in dict.fromkeys((*hosts, *LOOPBACK))]
    for site in sites:
        _check_site(site)
    if days < 1:
        raise CredentialsError(f"--days is {days}, expected at least 1")
    if not hosts and not sites:
        raise CredentialsError("nothing to make: give --host for a server certificate, --site for a site's key pair")
    _refuse_to_overwrite(out, bool(hosts), sites, force)
    try:
        return _make(out, alternatives if hosts else [], list(dict.fromkeys(sites)), days)
    except OSError as error:
        raise CredentialsError(f"credentials cannot be written to {out}: {error}") from error


def has_server_certificate(out: Path) -> bool:
    """Whether the coordinator has its certificate already."""
    return (out / COORDINATOR / "server.key").exists()


def new_authority(days: int = 365, name: str = "fedskew demo CA") -> Authority:
    """A self-signed CA that may sign servers only, no further CAs."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _subject(name)
    certificate = (
        _builder(subject, subject, key.public_key(), timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return Authority(key, certificate)


def server_certificate(
    authority: Authority, alternatives: Sequence[x509.GeneralName], days: float
) -> tuple[bytes, bytes]:
    """Certificate chain and private key of a TLS server as PEM; negative days make an expired one for tests."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    left = authority.certificate.not_valid_after_utc - datetime.now(UTC)
    certificate = (
        _builder(_subject("fedskew demo server"), authority.certificate.subject, key.public_key(),
                 min(timedelta(days=days), left))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        .sign(authority.key, hashes.SHA384())
    )  # fmt: skip
    return certificate.public_bytes(Encoding.PEM) + authority.pem, _private_pem(key)


def node_key_pair(comment: str) -> tuple[bytes, bytes]:
    """Private and public key of a SuperNode: ECDSA P-384 in the OpenSSH format, as `ssh-keygen -t ecdsa -b 384`."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), public + f" {comment}\n".encode()


def _make(out: Path, alternatives: list[x509.GeneralName], sites: list[str], days: int) -> Made:
    folders: dict[str, tuple[str, ...]] = {}
    _private_folder(out)
    authority = _read_authority(out) if (out / CA / "ca.crt").exists() else None
    if authority is None and alternatives:
        authority = new_authority(max(days, 365))
        files = [("ca.key", _private_pem(authority.key), PRIVATE), ("ca.crt", authority.pem, PUBLIC)]
        folders[CA] = _write(out / CA, files)
    root: list[File] = [("ca.crt", authority.pem, PUBLIC)] if authority else []
    coordinator, until = list(root), None
    if authority and alternatives:
        chain, key = server_certificate(authority, alternatives, days)
        coordinator += [("server.pem", chain, PUBLIC), ("server.key", key, PRIVATE)]
        until = x509.load_pem_x509_certificate(chain).not_valid_after_utc
    for site in sites:
        private, public = node_key_pair(site)
        folders[site] = _write(out / site, [*root, ("node.key", private, PRIVATE), ("node.pub", public, PUBLIC)])
        coordinator.append((f"{site}.pub", public, PUBLIC))
    return Made(out, {COORDINATOR: _write(out / COORDINATOR, coordinator), **folders}, until)


def _refuse_to_overwrite(out: Path, server: bool, sites: Sequence[str], force: bool) -> None:
    wanted = [out / COORDINATOR / "server.key"] if server else []
    wanted += [out / site / "node.key" for site in sites]
    found = [str(path) for path in wanted if path.exists()]
    if found and not force:
        raise CredentialsError(
            f"{', '.join(found)} {'is' if len(found) == 1 else 'are'} there already and in use, perhaps; "
            "leave the name out to keep it, or give --force to replace it"
        )


def _read_authority(out: Path) -> Authority:
    key_file, certificate_file = out / CA / "ca.key", out / CA / "ca.crt"
    try:
        key = load_pem_private_key(key_file.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise CredentialsError(
            f"the CA in {out / CA} cannot be used ({error}); put back {key_file.name} and {certificate_file.name}, or "
            "choose another --out"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CredentialsError(f"{key_file} does not belong to {certificate_file}; choose another --out")
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise CredentialsError(
            f"the CA in {out / CA} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; choose another --out"
        )
    return Authority(key, certificate)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey,
             lifetime: timedelta) -> x509.CertificateBuilder:  # fmt: skip
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + lifetime) - EARLIER)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(name: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "fedskew demo - not for production")
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(**allowed: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass  # not an address: a name
    label = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    if not re.fullmatch(rf"(\*\.)?{label}(\.{label})*", host) or len(host) > 253 or re.fullmatch(r"[0-9.]+", host):
        raise CredentialsError(
            f"--host {host!r} is neither a DNS name nor an IP address; give it as fl.example.org or 203.0.113.7, "
            "without scheme and port"
        )
    return x509.DNSName(host)


def _check_site(site: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", site) or site in (CA, COORDINATOR):
        raise CredentialsError(
            f"--site {site!r}: use letters, digits, '-', '_' and '.', and neither 'ca' nor 'coordinator'"
        )


def _private_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True, mode=FOLDER)
    path.chmod(FOLDER)  # whatever the umask says


def _write(folder: Path, files: Sequence[File]) -> tuple[str, ...]:
    _private_folder(folder)
    for name, content, mode in files:
        scratch = folder / f".{name}.{secrets.token_hex(4)}"
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)  # private from its first instant
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
        os.replace(scratch, folder / name)
    return tuple(name for name, _, _ in files)


def instructions(made: Made) -> list[str]:
    """Lines that tell a person what lies where, who gets it, and what to do next."""
    width = max(len(name) for name in made.folders) + 1
    places = {CA: "keep offline, copy nowhere", COORDINATOR: "copy to the coordinator"}
    lines = [f"DEMO credentials in {made.out}" + (f", valid until {made.until:%Y-%m-%d}" if made.until else "")]
    for name, files in sorted(made.folders.items(), key=lambda item: (item[0] not in places, item[0])):
        lines.append(f"  {name + '/':<{width}}  {places.get(name, f'copy to {name}'):<26}  {'  '.join(files)}")
    sites = [name for name in made.folders if name not in places]
    lines += [
        "",
        "For production, replace them: let your own CA sign the server certificate, and let every site make its",
    ]
    lines += ["key pair itself (ssh-keygen -t ecdsa -b 384 -N '' -f node.key) and send you the .pub file alone.", ""]
    if sites:
        register = f"flwr supernode register coordinator/{sites[0]}.pub CONNECTION --name {sites[0]}"
        doctor = "fedskew doctor site --superlink HOST:PORT --root-certificates ca.crt --node-key node.key"
        lines += [f"next, coordinator:  {register}", f"next, {sites[0]}:{'':<{max(1, 12 - len(sites[0]))}} {doctor}"]
    return lines
