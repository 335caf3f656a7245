"""Demo credentials: right formats and permissions, nothing overwritten, and accepted by OpenSSL and Flower."""

import os
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.ops import credentials
from fedskew.ops.credentials import CredentialsError, instructions, make_credentials


@pytest.fixture
def pki(tmp_path):
    made = make_credentials(tmp_path / "pki", hosts=["fl.example.org", "203.0.113.7"], sites=["site-a", "site-b"])
    return made.out


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(path):
    found = certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def test_everybody_has_a_folder_with_what_they_need(pki):
    assert {path.name: sorted(file.name for file in path.iterdir()) for path in pki.iterdir()} == {
        "ca": ["ca.crt", "ca.key"],
        "coordinator": ["ca.crt", "server.key", "server.pem", "site-a.pub", "site-b.pub"],
        "site-a": ["ca.crt", "node.key", "node.pub"],
        "site-b": ["ca.crt", "node.key", "node.pub"],
    }


def test_private_files_and_folders_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        out = make_credentials(tmp_path / "pki", hosts=["a"], sites=["site-a"]).out
    finally:
        os.umask(before)
    assert {mode(path) for path in [out, *(path for path in out.iterdir())]} == {0o700}
    assert {mode(path) for path in out.rglob("*.key")} == {0o600}
    assert {mode(path) for path in out.rglob("*") if path.suffix in (".crt", ".pem", ".pub")} == {0o644}


def test_the_certificate_is_for_the_hosts_and_loopback(pki):
    server = pki / "coordinator" / "server.pem"
    assert names(server) == {"fl.example.org", "203.0.113.7", "localhost", "127.0.0.1", "::1"}
    lifetime = certificate(server).not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=89) < lifetime <= timedelta(days=90)
    assert server.read_bytes().count(b"BEGIN CERTIFICATE") == 2, "the CA is part of the chain"


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_openssl_accepts_the_chain_to_the_letter(pki):
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(pki / "ca" / "ca.crt")]
    found = subprocess.run(
        [*command, str(pki / "coordinator" / "server.pem")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_keys_belong_to_certificates(pki):
    for key, pem in (("ca/ca.key", "ca/ca.crt"), ("coordinator/server.key", "coordinator/server.pem")):
        private = load_pem_private_key((pki / key).read_bytes(), None)
        assert private.public_key() == certificate(pki / pem).public_key()


def test_node_keys_are_what_flower_reads(pki):
    private = load_ssh_private_key((pki / "site-a" / "node.key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert try_load_public_key(pki / "coordinator" / "site-a.pub") == public_key_to_bytes(private.public_key())
    assert (pki / "site-a" / "node.key").read_bytes() != (pki / "site-b" / "node.key").read_bytes()


def test_a_site_is_added_with_the_same_ca_and_nothing_else_changes(pki):
    before = {path: path.read_bytes() for path in pki.rglob("*") if path.is_file()}
    make_credentials(pki, hosts=[], sites=["site-c"])
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (pki / "site-c" / "ca.crt").read_bytes() == (pki / "ca" / "ca.crt").read_bytes()
    assert (pki / "coordinator" / "site-c.pub").exists()


def test_nothing_is_overwritten_without_force(pki):
    before = (pki / "site-a" / "node.key").read_bytes()
    with pytest.raises(CredentialsError, match=r"site-a/node\.key is there already.*--force"):
        make_credentials(pki, hosts=[], sites=["site-a", "site-c"])
    with pytest.raises(CredentialsError, match=r"server\.key is there already"):
        make_credentials(pki, hosts=["b"], sites=[])
    assert (pki / "site-a" / "node.key").read_bytes() == before
    assert not (pki / "site-c").exists(), "all or nothing"


def test_force_replaces_what_is_named_and_never_the_ca(pki):
    ca, other = (pki / "ca" / "ca.key").read_bytes(), (pki / "site-b" / "node.key").read_bytes()
    key = (pki / "site-a" / "node.key").read_bytes()
    make_credentials(pki, hosts=["new.example.org"], sites=["site-a"], force=True)
    assert (pki / "ca" / "ca.key").read_bytes() == ca
    assert (pki / "site-b" / "node.key").read_bytes() == other
    assert (pki / "site-a" / "node.key").read_bytes() != key
    assert mode(pki / "site-a" / "node.key") == 0o600
    assert "new.example.org" in names(pki / "coordinator" / "server.pem")


def test_keys_alone_need_no_ca(tmp_path):
    made = make_credentials(tmp_path / "pki", hosts=[], sites=["site-a"])
    assert made.until is None
    assert sorted(path.name for path in made.out.rglob("*") if path.is_file()) == ["node.key", "node.pub", "site-a.pub"]


@pytest.mark.parametrize("host", ["https://x", "x:8000", "a b", "-a.org", "", "999.1.1.1", "münchen.de", "a" * 64])
def test_a_host_that_is_no_name_or_address_is_refused(tmp_path, host):
    with pytest.raises(CredentialsError, match="neither a DNS name nor an IP address"):
        make_credentials(tmp_path / "pki", hosts=[host], sites=[])
    assert not (tmp_path / "pki").exists()


@pytest.mark.parametrize("site", ["../x", "a/b", "", "ca", "coordinator", ".hidden", "a b"])
def test_a_site_name_that_is_no_folder_name_is_refused(tmp_path, site):
    with pytest.raises(CredentialsError, match="--site"):
        make_credentials(tmp_path / "pki", hosts=[], sites=[site])
    assert not (tmp_path / "pki").exists()


def test_a_ca_that_cannot_be_used_is_named(pki):
    (pki / "ca" / "ca.key").unlink()
    with pytest.raises(CredentialsError, match=r"put back ca\.key"):
        make_credentials(pki, hosts=[], sites=["site-c"])
    (pki / "ca" / "ca.key").write_bytes((pki / "coordinator" / "server.key").read_bytes())
    with pytest.raises(CredentialsError, match="does not belong"):
        make_credentials(pki, hosts=[], sites=["site-c"])


def test_an_expired_ca_is_not_used_again(pki):
    old = credentials.new_authority(days=-1)
    (pki / "ca" / "ca.key").write_bytes(credentials._private_pem(old.key))
    (pki / "ca" / "ca.crt").write_bytes(old.pem)
    with pytest.raises(CredentialsError, match="expired on"):
        make_credentials(pki, hosts=[], sites=["site-c"])


def test_a_certificate_does_not_outlive_its_ca(pki):
    make_credentials(pki, hosts=["a"], sites=[], days=4000, force=True)
    ca, server = certificate(pki / "ca" / "ca.crt"), certificate(pki / "coordinator" / "server.pem")
    assert server.not_valid_after_utc <= ca.not_valid_after_utc + timedelta(seconds=1)


@pytest.mark.parametrize(("days", "of_the_ca"), [(10, 365), (800, 800)])
def test_the_ca_lasts_a_year_or_as_long_as_what_it_signs(tmp_path, days, of_the_ca):
    out = make_credentials(tmp_path, hosts=["a"], sites=[], days=days).out
    for path, expected in ((out / "ca" / "ca.crt", of_the_ca), (out / "coordinator" / "server.pem", days)):
        left = certificate(path).not_valid_after_utc - datetime.now(UTC)
        assert timedelta(days=expected, minutes=-5) < left <= timedelta(days=expected)
        begun = datetime.now(UTC) - certificate(path).not_valid_before_utc
        assert timedelta(minutes=55) < begun < timedelta(minutes=65), "clocks of other machines may be slow"


def test_the_ca_signs_servers_and_no_further_ca(pki):
    (authority, server) = (certificate(pki / place) for place in ("ca/ca.crt", "coordinator/server.pem"))
    found = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (found.value.ca, found.value.path_length, found.critical) == (True, 0, True)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CredentialsError, match="cannot be written"):
        make_credentials(tmp_path / "file" / "pki", hosts=["a"], sites=[])


def test_the_instructions_say_demo_who_gets_what_and_what_replaces_it(tmp_path):
    text = "\n".join(instructions(make_credentials(tmp_path / "pki", hosts=["a"], sites=["site-a"])))
    assert text.startswith("DEMO credentials")
    assert "keep offline, copy nowhere  ca.key" in text
    assert "copy to site-a" in text
    assert "your own CA" in text
    assert "ssh-keygen -t ecdsa -b 384" in text


def test_the_command(tmp_path):
    out = str(tmp_path / "pki")
    arguments = ["credentials", "--out", out, "--host", "fl.example.org", "--site", "site-a", "--days", "30"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0
    assert "DEMO credentials" in found.output
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "--force" in again.output
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    assert CliRunner().invoke(app, ["credentials", "--out", out]).exit_code == 2
