"""The way to the SuperLink and its certificates: each fault is found by its own line, with what to do."""

import socket

import pytest
from tls_server import NAMES, Pki, only, serving, statuses

from fedskew.ops import check_network
from fedskew.ops.check_network import AddressError, Endpoint, check_superlink, parse_address
from fedskew.ops.check_tls import check_roots, check_server_files
from fedskew.ops.credentials import (
    make_credentials,
    new_authority,
)
from fedskew.ops.findings import FAIL, OK, WARN, exit_code


@pytest.fixture
def pki(tmp_path):
    return Pki(tmp_path)


def reach(server, roots, host="127.0.0.1", *, insecure=False):
    return check_superlink(Endpoint(host, server.server_port, roots, insecure), clock=True, public=True)


@pytest.mark.parametrize("host", NAMES)
def test_a_superlink_as_it_should_be(pki, host):
    with serving(pki.server()) as server:
        found = reach(server, pki.roots, host)
    assert statuses(found) == dict.fromkeys(("CA file", "TCP", "TLS", "SuperLink", "clock", "control routes"), OK)
    assert "TLSv1.3" in only(found, "TLS").message
    assert "closed" in only(found, "control routes").message


def test_a_certificate_for_another_name(pki):
    with serving(pki.server(names=["fl.example.org", "10.0.0.9"])) as server:
        found = only(reach(server, pki.roots), "certificate")
        named = only(reach(server, pki.roots, "localhost"), "certificate")
    assert found.status == named.status == FAIL
    assert found.message == "it is valid for fl.example.org, 10.0.0.9, but you connect to 127.0.0.1"
    assert "--superlink" in named.remedy


def test_an_expired_certificate(pki):
    with serving(pki.server(days=-2)) as server:
        found = only(reach(server, pki.roots), "certificate")
    assert found.status == FAIL
    assert "expired on" in found.message
    assert "this machine's clock says" in found.remedy


def test_a_certificate_that_expires_soon(pki):
    with serving(pki.server(days=5.5)) as server:
        found = reach(server, pki.roots)
    assert only(found, "certificate").status == WARN
    assert "expires in 5 days" in only(found, "certificate").message
    assert exit_code(found) == 0


def test_a_certificate_of_another_ca(pki):
    with serving(pki.server(issuer=new_authority(name="Somebody"))) as server:
        found = only(reach(server, pki.roots), "certificate")
    assert "claims to be signed by 'Somebody'" in found.message
    assert "do not connect" in found.remedy


def test_no_ca_file_given(pki):
    with serving(pki.server()) as server:
        found = only(reach(server, None), "certificate")
    assert "its issuer 'fedskew demo CA' is unknown" in found.message
    assert "--root-certificates" in found.remedy


def test_plain_text_where_tls_is_expected(pki):
    with serving() as server:
        found = reach(server, pki.roots)
    assert "speaks plain text" in only(found, "TLS").message
    assert "--insecure" in only(found, "TLS").remedy
    assert only(found, "clock").status == WARN
    assert "cannot be compared" in only(found, "clock").message


def test_tls_where_plain_text_is_expected(pki):
    with serving(pki.server()) as server:
        found = reach(server, None, insecure=True)
    assert "leave out --insecure" in only(found, "TLS").remedy


def test_plain_text_as_asked_is_a_warning():
    with serving() as server:
        found = reach(server, None, insecure=True)
    assert exit_code(found) == 0
    assert only(found, "TLS").status == WARN
    assert only(found, "SuperLink").message.startswith("http://")


def test_something_that_speaks_neither(pki, monkeypatch):
    monkeypatch.setattr(check_network, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = check_superlink(Endpoint("127.0.0.1", listener.getsockname()[1], pki.roots), clock=True, public=True)
    assert "does not speak TLS" in only(found, "TLS").message


def test_a_closed_port_and_a_silent_one(pki, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = only(check_superlink(Endpoint("127.0.0.1", port, pki.roots), clock=True, public=True), "TCP")
    assert "refuses the connection: nothing listens there" in found.message

    def silent(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(check_network.socket, "create_connection", silent)
    found = only(check_superlink(Endpoint("127.0.0.1", port, pki.roots), clock=True, public=True), "TCP")
    assert "packets are dropped" in found.message
    assert "firewall" in found.remedy


def test_a_name_that_does_not_resolve(pki):
    found = check_superlink(Endpoint("no-such-host.invalid", 8443, pki.roots), clock=True, public=True)
    assert "cannot be resolved" in only(found, "DNS").message
    assert "TCP" not in statuses(found)


@pytest.mark.parametrize(
    ("status", "message"), [(502, "the proxy answers, the SuperLink behind it does not"), (404, "no Flower SuperLink")]
)
def test_what_answers_is_no_superlink(pki, status, message):
    with serving(pki.server(), health=status) as server:
        found = reach(server, pki.roots)
    assert message in only(found, "SuperLink").message
    assert "control routes" not in statuses(found)


@pytest.mark.parametrize(
    ("ahead", "status", "message"),
    [
        (0, OK, "less than 2 s off"),
        (4, WARN, "s ahead of the SuperLink's"),
        (8, FAIL, "refuses this site's signed requests above 5 s"),
        (-4, OK, "s behind"),
        (-120, WARN, "s behind"),
        (-400, FAIL, "refuses this site's signed requests above 300 s"),
        (None, WARN, "the answer holds no date"),
    ],
)
def test_the_clock(pki, ahead, status, message):
    with serving(pki.server(), clock=ahead) as server:
        found = only(reach(server, pki.roots), "clock")
    assert found.status == status
    assert message in found.message


@pytest.mark.parametrize(
    ("status", "body", "judged"),
    [
        (200, b"", FAIL),
        (400, b'{"code": 1007, "detail": "version"}', FAIL),
        (401, b'{"code": 1, "detail": "log in"}', OK),
        (403, b"<html>nginx</html>", OK),
        (404, b"", OK),
    ],
)
def test_open_control_routes_are_found(pki, status, body, judged):
    with serving(pki.server(), posts={check_network.CONTROL: (status, body)}) as server:
        found = only(reach(server, pki.roots), "control routes")
    assert found.status == judged
    if judged == FAIL:
        assert "run code of their own on every site" in found.message


def test_a_proxy_in_the_environment_is_mentioned(pki, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    with serving(pki.server()) as server:
        assert only(reach(server, pki.roots), "HTTP proxy").status == WARN
        monkeypatch.setenv("NO_PROXY", "localhost, 127.0.0.1")
        assert "HTTP proxy" not in statuses(reach(server, pki.roots))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("a.b:1", "a.b", 1), ("10.0.0.1:8000", "10.0.0.1", 8000), ("[::1]:8000", "::1", 8000)],
)
def test_addresses(text, host, port):
    endpoint = parse_address(text)
    assert (endpoint.host, endpoint.port, str(endpoint)) == (host, port, text)


@pytest.mark.parametrize("text", ["a.b", "https://a.b:1", "a.b:1/x", "a:0", "a:99999", ":1", "::1:80"])
def test_addresses_that_are_none(text):
    with pytest.raises(AddressError, match="is not host:port"):
        parse_address(text)


def test_the_ca_file(pki, tmp_path):
    assert statuses(check_roots(pki.roots)) == {"CA file": OK}
    assert check_roots(None) == []
    assert "cannot be read" in check_roots(tmp_path / "absent")[0].message
    (tmp_path / "text").write_text("hello")
    assert "no certificate" in check_roots(tmp_path / "text")[0].message
    pki.server()
    assert "is no CA certificate" in check_roots(pki.certificate)[0].message
    (tmp_path / "both").write_bytes(pki.authority.pem + pki.key.read_bytes())
    assert "holds a private key" in check_roots(tmp_path / "both")[0].message


def test_server_files_as_they_should_be(pki, tmp_path):
    pki.server(names=["fl.example.org", "*.sites.org", "127.0.0.1"])
    files = (pki.certificate, pki.key, pki.roots)
    assert statuses(check_server_files(*files, ["fl.example.org", "a.sites.org"])) == {"server certificate": OK}


def test_names_that_the_certificate_lacks(pki, tmp_path):
    pki.server(names=["fl.example.org"])
    found = only(check_server_files(pki.certificate, pki.key, pki.roots, ["other.org"]), "server certificate")
    assert found.message == "it is valid for fl.example.org, not for other.org, 127.0.0.1"
    assert "--host other.org" in found.remedy


def test_server_files_that_do_not_fit(pki, tmp_path):
    def found(certificate=pki.certificate, key=pki.key):
        return check_server_files(certificate, key, pki.roots, [])

    pki.server(issuer=new_authority(name="Somebody"))
    assert "claims to be signed by 'Somebody'" in found()[0].message
    pki.server(days=-1)
    assert ["expired on" in finding.message for finding in found()] == [True]
    pki.server()
    pki.key.chmod(0o644)
    assert "may be read by other accounts (mode 0644)" in only(found(), "server key").message
    make_credentials(tmp_path / "other", hosts=["a"], sites=[])
    stranger = tmp_path / "other" / "coordinator" / "server.key"
    assert "does not belong" in only(found(key=stranger), "server key").message
    assert "cannot be used" in only(found(key=tmp_path / "absent"), "server key").message
    assert "cannot be read" in found(certificate=tmp_path / "absent")[0].message


def test_the_coordinator_hears_of_every_certificate_of_its_chain_that_ends(pki):
    """A CA that sites trust still, and that ends before the certificate that it signed."""
    pki.authority = new_authority(days=10)
    pki.roots.write_bytes(pki.authority.pem)
    pki.server(days=9)
    found = check_server_files(pki.certificate, pki.key, pki.roots, ["localhost"])
    assert [finding.status for finding in found] == [WARN, WARN]
    assert ["fedskew demo server" in found[0].message, "fedskew demo CA" in found[1].message] == [True, True]
    (root,) = check_roots(pki.roots)
    assert (root.status, "expires in 9 days" in root.message) == (WARN, True)


def test_a_ca_is_replaced_by_way_of_both(pki):
    """The order of docs/deployment.md: sites trust both, then the certificate changes, then the old one goes."""
    old, new = pki.authority, new_authority(name="the next CA")
    both = pki.roots.with_name("both.crt")
    both.write_bytes(old.pem + new.pem)
    new_alone = pki.roots.with_name("new.crt")
    new_alone.write_bytes(new.pem)
    assert "the next CA" in only(check_roots(both), "CA file").message

    def trusts(roots):
        return {finding.status for finding in check_server_files(pki.certificate, pki.key, roots, ["localhost"])} == {
            OK
        }

    pki.server()
    assert (trusts(pki.roots), trusts(both), trusts(new_alone)) == (True, True, False)
    pki.server(issuer=new)
    assert (trusts(pki.roots), trusts(both), trusts(new_alone)) == (False, True, True)
