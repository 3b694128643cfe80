"""Certificates that follow others, and those that are not to be believed any more."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509

from support.consortium import Consortium, make_consortium
from veilsum.errors import ConfigError
from veilsum.pki.authority import create_authority, load_certificate
from veilsum.pki.issue import issue
from veilsum.pki.renewal import renew
from veilsum.pki.revoked_file import RevocationList, parse_entry, read_revoked, revoke
from veilsum.transport.tls import load_tls_identity

LYON = "veilsum://test/site/lyon"


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), ["lyon"])


# --- the next certificate -------------------------------------------------------------


def test_a_renewed_certificate_is_for_the_same_member_and_hosts(tmp_path: Path) -> None:
    authority = create_authority(tmp_path / "pki", "test")
    hub = issue(authority, "coordinator", "hub", tmp_path, hosts=("hub.example.org", "10.1.2.3"))
    old, old_key = load_certificate(hub.tls_certificate), hub.tls_key.read_bytes()
    signing = hub.signing_key.read_bytes()

    made = renew(authority, hub.folder, days=7)

    kept = load_certificate(hub.tls_certificate)
    assert kept == made
    assert kept.serial_number != old.serial_number
    names = [
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for certificate in (old, kept)
    ]
    assert names[0] == names[1]
    assert hub.tls_key.read_bytes() != old_key
    assert stat.S_IMODE(hub.tls_key.stat().st_mode) == 0o600
    assert hub.signing_key.read_bytes() == signing
    load_tls_identity(hub.ca, hub.tls_certificate, hub.tls_key, "coordinator")


def test_a_site_gets_a_new_certificate_without_hosts(consortium: Consortium) -> None:
    files = consortium.sites["lyon"]

    renew(consortium.authority, files.folder)

    load_tls_identity(files.ca, files.tls_certificate, files.tls_key, "site")


def test_another_authoritys_certificate_is_not_renewed(
    consortium: Consortium, tmp_path: Path
) -> None:
    other = create_authority(tmp_path / "pki", "test")

    with pytest.raises(ConfigError, match=r"tls\.pem was not issued by this authority"):
        renew(other, consortium.hub.folder)


# --- the list of revoked ones ---------------------------------------------------------


def test_a_list_names_certificates_and_members(tmp_path: Path) -> None:
    file = tmp_path / "revoked"
    file.write_text(f"# nobody else\n\n  00AbC  # a laptop\n{LYON}\n")

    found = read_revoked(file)

    assert found == RevocationList(frozenset({0xABC}), frozenset({LYON}))
    assert len(found) == 2
    assert found.names(LYON, 1)
    assert found.names("veilsum://test/site/quito", 0xABC)
    assert not found.names("veilsum://test/site/quito", 1)


@pytest.mark.parametrize(
    "line",
    ["lyon", "0x12", "-1", "1" * 41, "veilsum://test/nobody/lyon", "veilsum://x"],
)
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "revoked"
    file.write_text(f"12\n{line}\n")

    with pytest.raises(ConfigError, match=r"revoked, line 2: expected a serial number"):
        read_revoked(file)


def test_a_list_that_is_not_there_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the list of revoked certificates"):
        read_revoked(tmp_path / "absent")


def test_entries_are_added_once_each_and_never_lost(tmp_path: Path) -> None:
    file = tmp_path / "revoked"

    assert revoke(file, parse_entry(LYON), "left the study")
    assert not revoke(file, parse_entry(LYON))
    file.write_text(file.read_text() + "12")  # by hand, without an end of line
    assert revoke(file, 0xABC)

    assert file.read_text() == f"{LYON}  # left the study\n12\nabc\n"
    assert read_revoked(file) == RevocationList(frozenset({0x12, 0xABC}), frozenset({LYON}))


def test_a_remark_cannot_make_an_entry(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one printable line"):
        revoke(tmp_path / "revoked", 1, f"gone\n{LYON}")
