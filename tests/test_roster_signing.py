"""A roster holds when the members of the one before it signed it, and a site pins one by hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from pathlib import Path

import pytest

from support.rosters import TWELVE, key_of, roster_of, signed_by
from veilsum.cli import main
from veilsum.errors import ConfigError
from veilsum.pki.authority import private_pem
from veilsum.pki.files import write_private, write_public
from veilsum.pki.pinning import pin_roster
from veilsum.pki.roster_file import load_roster, sign_roster, write_roster
from veilsum.pki.roster_signing import SignedRoster, required_signatures

FIRST = roster_of(TWELVE)
SECOND = roster_of(TWELVE[1:], epoch=2, previous=FIRST)  # site-00 is revoked


# --- how many signatures ----------------------------------------------------------------------


@pytest.mark.parametrize("sites", range(1, 256))
def test_two_sets_of_signers_share_an_honest_site(sites: int) -> None:
    for colluders in (0, sites // 5, sites // 3):
        needed = required_signatures(sites, colluders)
        shared_at_least = 2 * needed - sites

        assert shared_at_least > colluders
        assert needed >= math.ceil(2 * sites / 3)
        assert needed <= sites or sites < 3


def test_two_thirds_would_not_do() -> None:
    assert math.ceil(2 * 12 / 3) == 8  # twice 4 honest and the same 4 colluders
    assert required_signatures(12, 4) == 9


# --- who must sign -----------------------------------------------------------------------------


def test_a_first_roster_is_signed_by_all_of_its_sites() -> None:
    assert signed_by(FIRST, TWELVE, None).check(None) == FIRST
    with pytest.raises(ConfigError, match="epoch 1 lacks 1 signatures of its sites"):
        signed_by(FIRST, TWELVE[:-1], None).check(None)


def test_a_later_roster_is_signed_by_a_quorum_of_the_epoch_before() -> None:
    assert signed_by(SECOND, TWELVE[:9], FIRST).check(FIRST) == SECOND  # by the revoked one, too
    with pytest.raises(ConfigError, match="epoch 2 lacks 1 signatures of the sites of epoch 1"):
        signed_by(SECOND, TWELVE[:8], FIRST).check(FIRST)
    with pytest.raises(ConfigError, match="lacks 1 signatures"):
        signed_by(SECOND, TWELVE[:9], FIRST).check(FIRST, colluders=6)


def test_a_newcomer_has_no_say_in_its_own_admission() -> None:
    third = roster_of((*TWELVE, "newcomer"), epoch=2, previous=FIRST)

    with pytest.raises(ConfigError, match="'newcomer' is not in the roster"):
        signed_by(third, (*TWELVE[:8], "newcomer"), FIRST)


def test_a_signature_of_a_stranger_is_refused_even_where_there_are_enough() -> None:
    signed = signed_by(FIRST, TWELVE, None)
    foreign = signed.signatures["site-00"]

    with pytest.raises(ConfigError, match="'mallory' is not in the roster"):
        SignedRoster(FIRST, {**signed.signatures, "mallory": foreign}).check(None)


@pytest.mark.parametrize("fake", [b"", bytes(64), "other site", "other roster", "other purpose"])
def test_a_wrong_signature_is_refused(fake: bytes | str) -> None:
    signed = signed_by(SECOND, TWELVE, FIRST)
    fakes = {
        "other site": signed.signatures["site-01"],
        "other roster": signed_by(FIRST, TWELVE, None).signatures["site-00"],
        "other purpose": key_of("site-00").sign(b"veilsum/v1/sig/survivor-vote\0" + SECOND.hash),
    }
    forged = fake if isinstance(fake, bytes) else fakes[fake]

    with pytest.raises(ConfigError, match=r"signature of site 'site-00' .* epoch 2 is wrong"):
        SignedRoster(SECOND, {**signed.signatures, "site-00": forged}).check(FIRST)


def test_what_is_signed_is_the_hash_under_a_name_of_its_own() -> None:
    signature = signed_by(FIRST, ["site-03"], None).signatures["site-03"]

    digest = hashlib.sha256(FIRST.to_bytes()).digest()
    key_of("site-03").public_key().verify(signature, b"veilsum/v1/sig/roster\0" + digest)


def test_a_site_signs_with_its_own_key() -> None:
    with pytest.raises(ConfigError, match="not the one that the roster lists for site 'site-00'"):
        SignedRoster(FIRST).signed("site-00", key_of("site-01"), None)


# --- epochs ------------------------------------------------------------------------------------


def test_a_later_roster_needs_the_one_before_to_be_checked() -> None:
    with pytest.raises(ConfigError, match="agreed to by the members of the epoch before"):
        signed_by(SECOND, TWELVE, FIRST).check(None)


@pytest.mark.parametrize(
    ("roster", "reason"),
    [
        (roster_of(TWELVE, epoch=2), "does not follow"),
        (roster_of(TWELVE, epoch=3, previous=SECOND), "does not follow"),
        (roster_of(TWELVE[1:], epoch=1, previous=FIRST), "epochs only go up, and 1 is not above 1"),
        (dataclasses.replace(SECOND, consortium="andes"), "does not follow"),
    ],
)
def test_only_a_roster_that_follows_is_accepted(roster, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        SignedRoster(roster, {}).check(FIRST)


# --- the file ----------------------------------------------------------------------------------


def test_a_signed_roster_survives_its_file_form() -> None:
    signed = signed_by(FIRST, TWELVE, None)

    assert SignedRoster.from_bytes(signed.to_bytes() + b"\n") == signed


def _edited(**changes: object) -> bytes:
    document = json.loads(signed_by(FIRST, TWELVE, None).to_bytes()) | changes
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


_ONE = json.loads(signed_by(FIRST, TWELVE, None).to_bytes())["signatures"][0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        FIRST.to_bytes(),
        _edited(extra=1),
        _edited(signatures=[_ONE, _ONE]),
        _edited(signatures=[{**_ONE, "note": ""}]),
        _edited(signatures=[{"site": 1, "signature": ""}]),
        _edited(signatures={}),
        _edited(signatures=[{**_ONE, "signature": _ONE["signature"].upper()}]),
        b"[" * 100_000,
    ],
)
def test_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        SignedRoster.from_bytes(data)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The rosters of two epochs, signed."""
    first, second = tmp_path / "roster-1.json", tmp_path / "roster-2.json"
    write_public(first, signed_by(FIRST, TWELVE, None).to_bytes())
    write_public(second, signed_by(SECOND, TWELVE[3:], FIRST).to_bytes())
    return first, second


def test_a_roster_is_loaded_under_its_pin_only(files: tuple[Path, Path]) -> None:
    first, second = files

    assert load_roster(first, pin=FIRST.hash.hex()) == FIRST
    assert load_roster(second, previous=first, pin=SECOND.hash.hex()) == SECOND
    with pytest.raises(ConfigError, match="not the roster that this member agreed to"):
        load_roster(first, pin=SECOND.hash.hex())  # an older epoch
    with pytest.raises(ConfigError, match=r"roster-2\.json: .* whose roster is not given"):
        load_roster(second, pin=SECOND.hash.hex())


def test_signing_a_file_checks_what_others_wrote_into_it(tmp_path: Path) -> None:
    file = tmp_path / "roster.json"
    write_roster(file, FIRST)
    sign_roster(file, "site-02", key_of("site-02"))
    assert SignedRoster.from_bytes(file.read_bytes()).signatures.keys() == {"site-02"}
    before = SignedRoster(FIRST, {"site-01": bytes(64)}).to_bytes()
    file.write_bytes(before)

    with pytest.raises(ConfigError, match="signature of site 'site-01'"):
        sign_roster(file, "site-02", key_of("site-02"))
    assert file.read_bytes() == before


# --- the pin -----------------------------------------------------------------------------------

TOML = '# mine\nsite = "a"\nroster = "r.json"  # ours\n\n[policy]\nmin_sites = 3\n'


def test_a_pin_is_added_and_goes_forward_only(tmp_path: Path) -> None:
    config = tmp_path / "site.toml"
    config.write_text(TOML)
    config.chmod(0o600)

    pin_roster(config, FIRST)
    assert config.read_text() == TOML.replace(
        "# ours", f'# ours\nroster_hash = "{FIRST.hash.hex()}"'
    )
    pin_roster(config, FIRST)
    pin_roster(config, SECOND)
    assert tomllib.loads(config.read_text())["roster_hash"] == SECOND.hash.hex()
    assert config.stat().st_mode & 0o777 == 0o600
    for older in (FIRST, roster_of(TWELVE, epoch=9)):
        with pytest.raises(ConfigError, match=r"pins the roster .* does not follow"):
            pin_roster(config, older)
    assert tomllib.loads(config.read_text())["roster_hash"] == SECOND.hash.hex()


@pytest.mark.parametrize(
    "text", ["", "[policy]\nroster = 1\n", '"roster" = "r"\n', "= 1", 'a = """\nroster = 1\n"""\n']
)
def test_a_configuration_that_cannot_be_edited_stays_as_it_is(tmp_path: Path, text: str) -> None:
    config = tmp_path / "site.toml"
    config.write_text(text)

    with pytest.raises(ConfigError):
        pin_roster(config, FIRST)
    assert config.read_text() == text


def test_the_commands_sign_check_and_pin(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    roster, config = tmp_path / "roster.json", tmp_path / "site.toml"
    config.write_text(TOML)
    write_roster(roster, FIRST)
    for site in TWELVE:
        assert main.exit_code(["pki", "check-roster", str(roster), "--pin", str(config)]) == 1
        write_private(tmp_path / f"{site}.key", private_pem(key_of(site)))
        key = str(tmp_path / f"{site}.key")
        assert (
            main.exit_code(["pki", "sign-roster", str(roster), "--site", site, "--key", key]) == 0
        )
    assert config.read_text() == TOML
    capsys.readouterr()

    pin = ["pki", "check-roster", str(roster), "--pin", str(config), "--json"]
    assert main.exit_code(pin) == 0

    facts = json.loads(capsys.readouterr().out)
    assert (facts["signatures_missing"], facts["signed_by"]) == (0, list(TWELVE))
    assert tomllib.loads(config.read_text())["roster_hash"] == facts["hash"] == FIRST.hash.hex()
