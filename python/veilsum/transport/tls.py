"""Credentials from files, checked before the first connection.

gRPC reports a wrong file as a failed handshake, long after the start and without a name.
So each file is read and understood here first.
"""

from __future__ import annotations

import datetime
import stat
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veilsum.errors import ConfigError
from veilsum.pki.authority import consortium_of, load_certificate
from veilsum.pki.identity import Identity, Role
from veilsum.pki.roster_file import identity_of


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A member's TLS files, read and checked, and whom they name."""

    identity: Identity
    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    ends: float = 0.0  # of the certificate, seconds since 1970

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a connection to a server of this consortium, and no other authority's."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca, private_key=self.key, certificate_chain=self.certificate
        )


def load_tls_identity(ca: Path, certificate: Path, key: Path, role: Role) -> TlsIdentity:
    """Reads a member's TLS files.

    Raises:
        ConfigError: names the file and what is wrong: missing, not PEM, readable by others,
            not a pair, another authority's, not valid now, another role's.
    """
    authority = load_certificate(ca)
    leaf = load_certificate(certificate)
    key_pem = _read_private(key)
    private_key = _private_key(key, key_pem)
    if not isinstance(private_key, ec.EllipticCurvePrivateKey):
        # gRPC's TLS library knows no Ed25519 certificates, and fails without saying so.
        raise ConfigError(
            f"{key} is not an EC key, TLS here needs ECDSA P-256",
            hint="is it the signing key? TLS uses tls.pem and tls.key",
        )
    if private_key.public_key() != leaf.public_key():
        raise ConfigError(f"{key} does not belong to the certificate {certificate}")
    _check_leaf(leaf, authority, certificate, ca)
    identity = identity_of(leaf, certificate)
    if identity.consortium != consortium_of(authority):
        raise ConfigError(f"{certificate} and {ca} are of different consortia")
    if identity.role != role:
        raise ConfigError(f"{certificate} is for the role {identity.role}, a {role} needs its own")
    ends = leaf.not_valid_after_utc.timestamp()
    return TlsIdentity(identity, ca.read_bytes(), certificate.read_bytes(), key_pem, ends)


def load_signing_key(file: Path) -> Ed25519PrivateKey:
    """A member's Ed25519 key for protocol messages.

    Raises:
        ConfigError: names the file and what is wrong: missing, not PEM, readable by others,
            not Ed25519.
    """
    key = _private_key(file, _read_private(file))
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{file} is not an Ed25519 key",
            hint="is it the TLS key? protocol messages are signed with signing.key",
        )
    return key


def _read_private(file: Path) -> bytes:
    try:
        mode = file.stat().st_mode
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"the key {file} can be read by others (mode {stat.S_IMODE(mode):04o})",
            hint=f"chmod 600 {file}",
        )
    return data


def _private_key(file: Path, pem: bytes) -> object:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} is not an unencrypted private key in PEM") from error


def _check_leaf(
    leaf: x509.Certificate, authority: x509.Certificate, certificate: Path, ca: Path
) -> None:
    try:
        leaf.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ConfigError(f"{certificate} was not issued by the authority {ca}") from error
    now = datetime.datetime.now(datetime.UTC)
    for name, checked in ((ca, authority), (certificate, leaf)):
        if now < checked.not_valid_before_utc:
            raise ConfigError(f"{name} is not valid before {checked.not_valid_before_utc}")
        if now > checked.not_valid_after_utc:
            raise ConfigError(
                f"{name} expired on {checked.not_valid_after_utc}",
                hint="issue a new one with `veilsum pki issue`",
            )
