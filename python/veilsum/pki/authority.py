"""The consortium's certificate authority: one self-signed P-256 certificate in a folder."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from veilsum.errors import ConfigError
from veilsum.pki.files import make_private_folder, write_private, write_public
from veilsum.pki.identity import Identity

CERTIFICATE_FILE = "ca.pem"
KEY_FILE = "ca.key"
SIGNING_FOLDER = "signing"
"""Where issue() leaves a copy of every protocol-signing certificate, for the roster."""

# Clocks of members differ; a certificate that is a few minutes "too young" helps nobody.
CLOCK_SKEW = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Authority:
    """The authority's certificate and key, and where its files are."""

    consortium: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    folder: Path

    @property
    def certificate_pem(self) -> bytes:
        """What every member needs to check the others."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def create_authority(folder: Path, consortium: str, *, days: int = 3650) -> Authority:
    """Makes an authority in a new or empty private folder.

    Raises:
        ConfigError: the name or the days cannot work, or there is an authority already.
    """
    Identity(consortium, "coordinator", "x")  # checks the consortium's name
    if not 1 <= days <= 36_500:
        raise ConfigError(f"days must be 1 to 36500, got {days}")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_signed(key, consortium, days)
    make_private_folder(folder)
    make_private_folder(folder / SIGNING_FOLDER)
    write_private(folder / KEY_FILE, private_pem(key))
    write_public(folder / CERTIFICATE_FILE, certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(consortium, certificate, key, folder)


def load_authority(folder: Path) -> Authority:
    """Reads what create_authority wrote.

    Raises:
        ConfigError: a file is missing or is not what it should be.
    """
    certificate = load_certificate(folder / CERTIFICATE_FILE)
    key_file = folder / KEY_FILE
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"cannot read {key_file}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key_file} is not an unencrypted private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{key_file} is not an EC key")
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"{key_file} does not belong to {folder / CERTIFICATE_FILE}")
    return Authority(consortium_of(certificate), certificate, key, folder)


def load_certificate(file: Path) -> x509.Certificate:
    """One certificate from a PEM file.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not a certificate in PEM") from error


def consortium_of(authority: x509.Certificate) -> str:
    """The consortium that an authority's certificate is for.

    Raises:
        ConfigError: not an authority's certificate.
    """
    names = authority.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if len(names) != 1 or authority.subject != authority.issuer:
        raise ConfigError("not the certificate of a consortium's authority")
    return str(names[0].value)


def private_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    """PKCS #8 PEM, unencrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _self_signed(key: ec.EllipticCurvePrivateKey, consortium: str, days: int) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, consortium),
            x509.NameAttribute(NameOID.COMMON_NAME, "veilsum consortium authority"),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    public_key = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_authority_usage(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        # Whoever trusts this authority trusts it for this consortium's members alone.
        .add_extension(
            x509.NameConstraints([x509.UniformResourceIdentifier(consortium)], None),
            critical=True,
        )
    )
    return builder.sign(key, hashes.SHA256())


def _authority_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
