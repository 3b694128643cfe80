"""Credentials from files: each wrong file is named before the first connection."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from support.consortium import Consortium, make_consortium
from veilsum.errors import ConfigError
from veilsum.pki.authority import create_authority
from veilsum.pki.identity import Identity
from veilsum.pki.issue import IssuedFiles, issue
from veilsum.transport.settings import (
    CoordinatorSettings,
    OperatorSettings,
    SiteSettings,
    is_loopback,
    split_address,
)
from veilsum.transport.tls import load_signing_key, load_tls_identity
from veilsum.transport.tls_reload import ServerTls


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), ["a", "b"])


def test_good_files_name_their_owner_and_give_credentials(consortium: Consortium) -> None:
    files = consortium.sites["a"]
    tls = load_tls_identity(files.ca, files.tls_certificate, files.tls_key, "site")
    assert tls.identity == Identity("test", "site", "a")
    assert tls.channel_credentials() is not None
    hub = consortium.hub
    files = (hub.ca, hub.tls_certificate, hub.tls_key)
    served = ServerTls(files, load_tls_identity(*files, "coordinator"))
    assert served.credentials() is not None
    assert "PRIVATE" not in repr(tls)


def test_a_missing_file_is_named(consortium: Consortium, tmp_path: Path) -> None:
    files = consortium.sites["a"]
    absent = tmp_path / "absent.pem"
    for paths in (
        (absent, files.tls_certificate, files.tls_key),
        (files.ca, absent, files.tls_key),
        (files.ca, files.tls_certificate, absent),
    ):
        with pytest.raises(ConfigError, match=r"cannot read .*absent\.pem: No such file"):
            load_tls_identity(*paths, "site")


def test_a_file_that_is_no_pem_is_named(consortium: Consortium, tmp_path: Path) -> None:
    files = consortium.sites["a"]
    broken = tmp_path / "broken.pem"
    broken.write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n")
    broken.chmod(0o600)
    with pytest.raises(ConfigError, match=r"broken\.pem is not a certificate"):
        load_tls_identity(broken, files.tls_certificate, files.tls_key, "site")
    with pytest.raises(ConfigError, match=r"broken\.pem is not an unencrypted private key"):
        load_tls_identity(files.ca, files.tls_certificate, broken, "site")
    with pytest.raises(ConfigError, match=r"broken\.pem is not an unencrypted private key"):
        load_signing_key(broken)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(
    consortium: Consortium, tmp_path: Path, mode: int
) -> None:
    files = consortium.sites["a"]
    for key in (files.tls_key, files.signing_key):
        copy = tmp_path / key.name
        copy.write_bytes(key.read_bytes())
        copy.chmod(mode)
        load = load_signing_key if key is files.signing_key else _load_tls_key(files)
        with pytest.raises(ConfigError, match=f"can be read by others .mode {mode:04o}") as caught:
            load(copy)
        assert caught.value.hint == f"chmod 600 {copy}"


def _load_tls_key(files: IssuedFiles) -> Callable[[Path], object]:
    return lambda key: load_tls_identity(files.ca, files.tls_certificate, key, "site")


def test_a_key_of_another_certificate_is_refused(consortium: Consortium) -> None:
    a, b = consortium.sites["a"], consortium.sites["b"]
    with pytest.raises(ConfigError, match="does not belong to the certificate"):
        load_tls_identity(a.ca, a.tls_certificate, b.tls_key, "site")


def test_the_two_keys_of_a_member_are_not_taken_for_each_other(consortium: Consortium) -> None:
    files = consortium.sites["a"]
    with pytest.raises(ConfigError, match="is not an EC key") as caught:
        load_tls_identity(files.ca, files.signing_certificate, files.signing_key, "site")
    assert "signing key" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="is not an Ed25519 key"):
        load_signing_key(files.tls_key)


def test_a_certificate_of_another_authority_is_refused(
    consortium: Consortium, tmp_path: Path
) -> None:
    other = create_authority(tmp_path / "other", "test")
    stranger = issue(other, "site", "a", tmp_path / "members")
    with pytest.raises(ConfigError, match="was not issued by the authority"):
        load_tls_identity(consortium.hub.ca, stranger.tls_certificate, stranger.tls_key, "site")


def test_a_certificate_of_another_role_is_refused(consortium: Consortium) -> None:
    files = consortium.operator
    with pytest.raises(ConfigError, match="is for the role operator, a site needs its own"):
        load_tls_identity(files.ca, files.tls_certificate, files.tls_key, "site")


def test_an_expired_certificate_is_refused_with_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = create_authority(tmp_path / "authority", "test")
    files = issue(authority, "site", "a", tmp_path / "members", days=1)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return super().now(tz) + datetime.timedelta(days=2)

    monkeypatch.setattr("veilsum.transport.tls.datetime.datetime", Later)
    with pytest.raises(ConfigError, match=r"tls\.pem expired on 20"):
        load_tls_identity(files.ca, files.tls_certificate, files.tls_key, "site")


# --- settings -----------------------------------------------------------------------


def test_addresses_are_taken_apart_or_refused() -> None:
    assert split_address("hub.example.org:8443", "listen", lowest_port=1) == (
        "hub.example.org",
        8443,
    )
    assert split_address("[::1]:0", "listen", lowest_port=0) == ("::1", 0)
    for wrong in ("", "host", "host:", ":80", "host:0", "host:65536", "::1:80", "h:8x", "h:-1"):
        with pytest.raises(ConfigError, match="listen"):
            split_address(wrong, "listen", lowest_port=1)


def test_only_this_machine_counts_as_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "")))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "hub.example.org"])
def test_nothing_goes_without_tls_beyond_this_machine(
    consortium: Consortium, tmp_path: Path, host: str
) -> None:
    common = {"roster": consortium.roster_file, "signing_key": consortium.hub.signing_key}
    refused = pytest.raises(ConfigError, match="insecure is possible on a loopback address only")
    with refused:
        CoordinatorSettings(state_dir=tmp_path, listen=f"{host}:80", insecure=True, **common)
    with refused:
        SiteSettings(site="a", coordinator=f"{host}:80", trainer="m:f", insecure=True, **common)
    with refused:
        OperatorSettings(coordinator=f"{host}:80", insecure=True, consortium="test")


def test_tls_needs_all_of_its_files_and_excludes_insecure(
    consortium: Consortium, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="are all needed"):
        consortium.coordinator_settings(tmp_path, tls_key=None)
    with pytest.raises(ConfigError, match="cannot be combined"):
        consortium.coordinator_settings(tmp_path, insecure=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": "no_colon"}, "trainer must be"),
        ({"trainer": "os.path:"}, "trainer must be"),
        ({"trainer": "a b:c"}, "trainer must be"),
        ({"rounding_seed": "ff"}, "rounding_seed must be 64 hexadecimal digits"),
        ({"rounding_seed": "zz" * 32}, "rounding_seed must be 64 hexadecimal digits"),
        ({"threads": -1}, "threads must be"),
        ({"max_model_bytes": 0}, "max_model_bytes must be positive"),
        ({"coordinator": "127.0.0.1:0"}, "coordinator needs a port"),
    ],
)
def test_site_settings_that_cannot_work_are_refused(
    consortium: Consortium, change: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        consortium.site_settings("a", 1234, **change)


def test_a_rounding_seed_stays_out_of_messages_and_logs(consortium: Consortium) -> None:
    settings = consortium.site_settings("a", 1234, rounding_seed="5e" * 32)
    assert "5e5e" not in repr(settings)
    with pytest.raises(ConfigError) as caught:
        consortium.site_settings("a", 1234, rounding_seed="5e" * 31)
    assert "5e5e" not in str(caught.value)
