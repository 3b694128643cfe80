"""The roster as a file: built from issued certificates, signed, read as a process starts."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.x509.oid import NameOID

from veilsum.errors import ConfigError, DecodeError
from veilsum.pki.authority import consortium_of, load_certificate
from veilsum.pki.files import replace_file, write_public
from veilsum.pki.identity import Identity, parse_identity
from veilsum.pki.issue import DOCUMENT_SIGNING
from veilsum.pki.roster_signing import SignedRoster
from veilsum.roster import Roster, RosterEntry


def build_roster(
    signing_certificates: Path, ca: Path, *, epoch: int = 1, previous: Roster | None = None
) -> Roster:
    """The roster of everyone whose protocol-signing certificate lies in a folder.

    Args:
        signing_certificates: folder of *.pem; the authority keeps one as "signing".
        ca: the authority's certificate.
        epoch: number of this roster; the next one has a higher number.
        previous: the roster before, whose members are to sign this one; None for the first.

    Raises:
        ConfigError: names the certificate and why it does not belong here, or says that the
            coordinator is missing or that there are two.
    """
    authority = load_certificate(ca)
    files = sorted(signing_certificates.glob("*.pem"))
    if not files:
        raise ConfigError(
            f"no certificates in {signing_certificates}", hint="issue some with `veilsum pki issue`"
        )
    entries: list[RosterEntry] = []
    coordinators: list[bytes] = []
    for file in files:
        identity, entry = _member(file, authority)
        if identity.role == "coordinator":
            coordinators.append(entry.signing_key)
        else:
            entries.append(entry)
    if len(coordinators) != 1:
        raise ConfigError(
            f"a roster needs one coordinator, {signing_certificates} holds {len(coordinators)}"
        )
    before = b"" if previous is None else previous.hash
    return Roster(consortium_of(authority), epoch, coordinators[0], tuple(entries), before)


def write_roster(file: Path, roster: Roster) -> None:
    """Writes a new roster file, which nobody has signed yet.

    Raises:
        ConfigError: the file exists: a roster is replaced by one of a later epoch, not edited.
    """
    write_public(file, SignedRoster(roster).to_bytes() + b"\n")


def sign_roster(
    file: Path, site: str, key: Ed25519PrivateKey, previous: Roster | None = None
) -> SignedRoster:
    """Adds a site's signature to a roster file.

    Raises:
        ConfigError: names the file and what is wrong with it, or why the site cannot sign it.
    """
    signed = read_signed(file).signed(site, key, previous)
    signed.missing(previous)  # what others wrote into the file is checked before it is passed on
    replace_file(file, signed.to_bytes() + b"\n")
    return signed


def load_roster(file: Path, *, previous: Path | None = None, pin: str | None = None) -> Roster:
    """Reads a roster file that enough members signed.

    Args:
        previous: file of the roster before, unless this is the consortium's first. The roster
            names it by hash.
        pin: the hash that it must have, 64 hex digits; None for any.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    signed = read_signed(file)
    found = signed.roster.hash.hex()
    if pin is not None and found != pin:
        raise ConfigError(
            f"{file} is not the roster that this member agreed to: its hash is {found}, "
            f"roster_hash is {pin}",
            hint="check a new epoch's roster with `veilsum pki check-roster` and pin it with --pin",
        )
    before = None if previous is None else read_signed(previous).roster
    try:
        return signed.check(before)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}", hint=error.hint) from error


def read_signed(file: Path) -> SignedRoster:
    """Reads a roster file; its signatures are not checked.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the roster {file}: {error.strerror}",
            hint="make one with `veilsum pki roster`",
        ) from error
    try:
        return SignedRoster.from_bytes(data)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}", hint=error.hint) from error


def _member(file: Path, authority: x509.Certificate) -> tuple[Identity, RosterEntry]:
    certificate = load_certificate(file)
    _check_issued_by(certificate, authority, file)
    identity = identity_of(certificate, file)
    if identity.consortium != consortium_of(authority):
        raise ConfigError(f"{file} is for the consortium {identity.consortium!r}")
    if identity.role not in ("site", "coordinator"):
        raise ConfigError(f"{file} is for the role {identity.role}, which signs nothing")
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{file} is not a protocol-signing certificate: its key is not Ed25519")
    regions = certificate.subject.get_attributes_for_oid(NameOID.LOCALITY_NAME)
    region = str(regions[0].value) if regions else ""
    return identity, RosterEntry(identity.name, key.public_bytes_raw(), region)


def _check_issued_by(
    certificate: x509.Certificate, authority: x509.Certificate, file: Path
) -> None:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ConfigError(f"{file} was not issued by this consortium's authority") from error
    now = datetime.datetime.now(datetime.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ConfigError(f"{file} is not valid now: it ends {certificate.not_valid_after_utc}")
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        purposes = x509.ExtendedKeyUsage([])
    if DOCUMENT_SIGNING not in purposes:
        raise ConfigError(f"{file} is not a protocol-signing certificate")


def identity_of(certificate: x509.Certificate, file: Path) -> Identity:
    """The identity in a certificate's SAN URI.

    Raises:
        ConfigError: there is none, or more than one, or it is malformed.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise ConfigError(f"{file} names nobody: it has no SAN") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ConfigError(f"{file} must have one SAN URI, it has {len(uris)}")
    try:
        return parse_identity(uris[0])
    except DecodeError as error:
        raise ConfigError(f"{file}: {error}") from error
