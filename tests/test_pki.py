"""Certificates and rosters: who is who, what may be called, and files that stay private."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from veilsum.errors import ConfigError, DecodeError
from veilsum.pki.authority import Authority, create_authority, load_authority, load_certificate
from veilsum.pki.files import make_private_folder, write_private
from veilsum.pki.identity import ROLES, Identity, parse_identity
from veilsum.pki.issue import issue
from veilsum.pki.roster_file import build_roster, load_roster, sign_roster, write_roster
from veilsum.transport.tls import load_signing_key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "authority", "lungs")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- identities -------------------------------------------------------------------


@given(
    name=st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=15),
    role=st.sampled_from(ROLES),
)
def test_an_identity_survives_its_uri(name: str, role: str) -> None:
    try:
        identity = Identity("lungs", role, name)
    except ConfigError:
        return  # not printable
    assert identity.uri.isascii()
    assert parse_identity(identity.uri) == identity


@given(st.text(max_size=80).map(lambda end: "veilsum://" + end) | st.text(max_size=80))
def test_a_text_is_an_identity_in_its_one_spelling_or_refused(text: str) -> None:
    try:
        identity = parse_identity(text)
    except DecodeError:
        return
    assert identity.uri == text


@pytest.mark.parametrize(
    "uri",
    [
        "veilsum://lungs/site",
        "veilsum://lungs/site/a/b",
        "veilsum://lungs/site/",
        "veilsum:///site/a",
        "veilsum://lungs/admin/a",
        "veilsum://lungs/SITE/a",
        "https://lungs/site/a",
        "veilsum://lungs/site/%61",  # "a", spelled otherwise
        "veilsum://lungs/site/%ff",  # not UTF-8
        "veilsum://lungs/site/a%0Ab",  # a line break
        "veilsum://lungs:443/site/a",
        "veilsum://x@lungs/site/a",
        " veilsum://lungs/site/a",
        "veilsum://lungs/site/a\n",
    ],
)
def test_a_uri_in_any_other_form_is_refused(uri: str) -> None:
    with pytest.raises(DecodeError):
        parse_identity(uri)


def test_each_role_may_call_its_own_service_and_no_other() -> None:
    services = ("veilsum.v1.Federation", "veilsum.v1.Operator", "grpc.health.v1.Health")
    allowed = {
        role: [Identity("c", role, "x").may_call(service) for service in services] for role in ROLES
    }
    assert allowed == {
        "site": [True, False, True],
        "operator": [False, True, True],
        "coordinator": [False, False, True],
        "relay": [False, False, True],
    }
    assert not Identity("c", "site", "x").may_call("")


# --- authority and certificates -----------------------------------------------------


def test_an_authority_is_bound_to_its_consortium_and_signs_leaves_only(
    authority: Authority,
) -> None:
    extensions = authority.certificate.extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature
    names = extensions.get_extension_for_class(x509.NameConstraints)
    assert names.critical
    assert names.value.permitted_subtrees == [x509.UniformResourceIdentifier("lungs")]
    assert load_authority(authority.folder).certificate == authority.certificate


def test_keys_are_readable_by_their_owner_alone(authority: Authority, tmp_path: Path) -> None:
    files = issue(authority, "site", "north", tmp_path / "out")
    for folder in (authority.folder, files.folder):
        assert _mode(folder) == 0o700
        for file in folder.iterdir():
            expected = {".key": 0o600, ".pem": 0o644, "": 0o700}[file.suffix]
            assert _mode(file) == expected, file


def test_nothing_is_ever_overwritten(authority: Authority, tmp_path: Path) -> None:
    before = (authority.folder / "ca.key").read_bytes()
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        create_authority(authority.folder, "lungs")
    assert (authority.folder / "ca.key").read_bytes() == before
    issue(authority, "site", "north", tmp_path / "out")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        issue(authority, "site", "north", tmp_path / "out")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        issue(authority, "site", "north", tmp_path / "elsewhere")
    roster_file = tmp_path / "roster.json"
    roster_file.write_text("old")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        write_private(roster_file, b"new")
    assert roster_file.read_text() == "old"


def test_a_link_is_not_followed_when_a_key_is_written(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="exists"):
        write_private(tmp_path / "key", b"secret")
    assert not (tmp_path / "target").exists()


def test_a_folder_that_others_may_enter_holds_no_keys(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match=r"may be entered by others \(mode 0755\)") as caught:
        make_private_folder(folder)
    assert caught.value.hint == f"chmod 700 {folder}"


def test_a_site_gets_two_keys_of_which_one_cannot_do_the_others_work(
    authority: Authority, tmp_path: Path
) -> None:
    files = issue(authority, "site", "Nørre Hospital", tmp_path, region="eu")
    tls = load_certificate(files.tls_certificate)
    signing = load_certificate(files.signing_certificate)
    assert isinstance(tls.public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(signing.public_key(), Ed25519PublicKey)
    for certificate in (tls, signing):
        certificate.verify_directly_issued_by(authority.certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [
            x509.UniformResourceIdentifier("veilsum://lungs/site/N%C3%B8rre%20Hospital")
        ]
    assert _purposes(tls) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert ExtendedKeyUsageOID.CLIENT_AUTH not in _purposes(signing)
    assert ExtendedKeyUsageOID.SERVER_AUTH not in _purposes(signing)


def test_a_coordinator_serves_under_its_hosts_and_an_operator_signs_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    files = issue(authority, "coordinator", "hub", tmp_path, hosts=("hub.example.org", "192.0.2.7"))
    certificate = load_certificate(files.tls_certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "hub.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1",
        "::1",
        "192.0.2.7",
    ]
    assert _purposes(certificate) == [ExtendedKeyUsageOID.SERVER_AUTH]
    operator = issue(authority, "operator", "ann", tmp_path)
    assert operator.signing_key is None


def _purposes(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "site", "hosts": ("x.org",)}, "dials out only"),
        ({"role": "operator", "region": "eu"}, "only a site has a region"),
        ({"role": "admin"}, "a role must be one of"),
        ({"name": ""}, "1 to 64 printable bytes"),
        ({"name": "x" * 65}, "1 to 64 printable bytes"),
        ({"days": 0}, "days must be"),
        ({"role": "coordinator", "hosts": ("bad host\n",)}, "neither a DNS name nor"),
    ],
)
def test_a_certificate_that_makes_no_sense_is_not_issued(
    authority: Authority, tmp_path: Path, change: dict, message: str
) -> None:
    arguments = {"role": "site", "name": "north", "out": tmp_path / "out", **change}
    with pytest.raises(ConfigError, match=message):
        issue(authority, **arguments)


def test_a_consortium_needs_a_name_that_can_be_a_host(tmp_path: Path) -> None:
    for name in ("", "two words", "-x", "a/b", "a:1", "x" * 65, "lüngs"):
        with pytest.raises(ConfigError, match="consortium"):
            create_authority(tmp_path / "authority", name)
    assert not (tmp_path / "authority").exists()


# --- roster -----------------------------------------------------------------------


def test_a_roster_lists_whom_the_authority_certified(authority: Authority, tmp_path: Path) -> None:
    hub = issue(authority, "coordinator", "hub", tmp_path / "out")
    north = issue(authority, "site", "north", tmp_path / "out", region="eu")
    south = issue(authority, "site", "south", tmp_path / "out")
    issue(authority, "operator", "ann", tmp_path / "out")
    roster = build_roster(authority.folder / "signing", authority.folder / "ca.pem", epoch=3)
    assert (roster.consortium, roster.epoch) == ("lungs", 3)
    assert [(entry.site, entry.region) for entry in roster.entries] == [
        ("north", "eu"),
        ("south", ""),
    ]
    assert roster.signing_key("north") == _raw_key(north.signing_certificate)
    assert roster.coordinator_key == _raw_key(hub.signing_certificate)
    write_roster(tmp_path / "roster.json", roster)
    with pytest.raises(ConfigError, match=r"roster\.json: the roster of epoch 3 lacks 2"):
        load_roster(tmp_path / "roster.json")
    for site, files in (("north", north), ("south", south)):
        sign_roster(tmp_path / "roster.json", site, load_signing_key(files.signing_key))
    assert load_roster(tmp_path / "roster.json") == roster


def _raw_key(file: Path) -> bytes:
    key = load_certificate(file).public_key()
    assert isinstance(key, Ed25519PublicKey)
    return key.public_bytes_raw()


@pytest.fixture
def members(authority: Authority, tmp_path: Path) -> Path:
    issue(authority, "coordinator", "hub", tmp_path / "out")
    issue(authority, "site", "north", tmp_path / "out")
    return authority.folder / "signing"


def test_a_stranger_in_the_folder_stops_the_roster(
    authority: Authority, members: Path, tmp_path: Path
) -> None:
    other = create_authority(tmp_path / "other", "lungs")
    stranger = issue(other, "site", "mallory", tmp_path / "out")
    (members / "mallory.pem").write_bytes(stranger.signing_certificate.read_bytes())
    with pytest.raises(ConfigError, match=r"mallory\.pem was not issued by this consortium"):
        build_roster(members, authority.folder / "ca.pem")


def test_a_tls_certificate_signs_no_protocol_messages(
    authority: Authority, members: Path, tmp_path: Path
) -> None:
    south = issue(authority, "site", "south", tmp_path / "out")
    (members / "site-south.pem").write_bytes(south.tls_certificate.read_bytes())
    with pytest.raises(ConfigError, match="is not a protocol-signing certificate"):
        build_roster(members, authority.folder / "ca.pem")


def test_a_roster_needs_exactly_one_coordinator(
    authority: Authority, members: Path, tmp_path: Path
) -> None:
    issue(authority, "coordinator", "second", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"needs one coordinator, .* holds 2"):
        build_roster(members, authority.folder / "ca.pem")
    for file in members.glob("coordinator-*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"needs one coordinator, .* holds 0"):
        build_roster(members, authority.folder / "ca.pem")


def test_an_expired_certificate_stops_the_roster(
    authority: Authority, members: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LongAgo(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime(2020, 1, 1, tzinfo=tz)

    with monkeypatch.context() as patch:
        patch.setattr("veilsum.pki.issue.datetime.datetime", LongAgo)
        issue(authority, "site", "late", tmp_path / "out", days=1)
    with pytest.raises(ConfigError, match=r"site-late\.pem is not valid now"):
        build_roster(members, authority.folder / "ca.pem")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]"])
def test_what_is_no_roster_is_named_with_its_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "roster.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"roster\.json: not a roster file"):
        load_roster(file)
    with pytest.raises(ConfigError, match="cannot read the roster"):
        load_roster(tmp_path / "absent.json")
