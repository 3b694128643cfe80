"""Certificates for the members of a consortium."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from veilsum.errors import ConfigError
from veilsum.pki.authority import CLOCK_SKEW, SIGNING_FOLDER, Authority, private_pem
from veilsum.pki.files import make_private_folder, write_private, write_public
from veilsum.pki.identity import Identity, Role

DOCUMENT_SIGNING = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")
"""RFC 9336: what a protocol-signing certificate is for; no TLS library takes it for TLS."""

_DNS_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*", re.ASCII)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_SIGNING_ROLES = ("site", "coordinator")

# A site may not serve and a coordinator may not dial: with host names checked as well, no
# site can pose as the coordinator of another.
_PURPOSES: dict[Role, list[x509.ObjectIdentifier]] = {
    "site": [ExtendedKeyUsageOID.CLIENT_AUTH],
    "operator": [ExtendedKeyUsageOID.CLIENT_AUTH],
    "coordinator": [ExtendedKeyUsageOID.SERVER_AUTH],
    "relay": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
}


@dataclass(frozen=True, slots=True)
class IssuedFiles:
    """Where a member's files are. Operators and relays have no signing key."""

    folder: Path
    ca: Path
    tls_certificate: Path
    tls_key: Path
    signing_certificate: Path | None
    signing_key: Path | None


def issue(
    authority: Authority,
    role: Role,
    name: str,
    out: Path,
    *,
    hosts: Sequence[str] = (),
    region: str = "",
    days: int = 365,
) -> IssuedFiles:
    """Makes a member's keys and certificates in the new private folder out/<role>-<name>.

    Args:
        hosts: DNS names and IP addresses under which others reach a coordinator or relay,
            in addition to this machine's own.
        region: where a site's data may stay; goes into the roster.

    Raises:
        ConfigError: the name cannot work, or there are files already.
    """
    identity = Identity(authority.consortium, role, name)
    _check(role, hosts, region, days)
    folder = out / folder_name(identity)
    copy = authority.folder / SIGNING_FOLDER / f"{folder_name(identity)}.pem"
    for existing in (folder, copy):
        if existing.exists():
            raise ConfigError(
                f"{existing} exists and is not overwritten",
                hint="a member's keys are made once; move the old ones away to replace them",
            )
    make_private_folder(folder)
    ca = folder / "ca.pem"
    write_public(ca, authority.certificate_pem)
    files = _write_pair(folder, "tls", *tls_pair(authority, identity, hosts, days))
    if role not in _SIGNING_ROLES:
        return IssuedFiles(folder, ca, *files, None, None)
    signing_key = Ed25519PrivateKey.generate()
    signing = _certificate(
        authority, identity, signing_key.public_key(), [DOCUMENT_SIGNING], days, (), region
    )
    signing_files = _write_pair(folder, "signing", signing, private_pem(signing_key))
    write_public(copy, signing_files[0].read_bytes())
    return IssuedFiles(folder, ca, *files, *signing_files)


def tls_pair(
    authority: Authority, identity: Identity, hosts: Sequence[str], days: int
) -> tuple[x509.Certificate, bytes]:
    """A new TLS key for a member, in PEM, and its certificate before it.

    Raises:
        ConfigError: hosts or days cannot work.
    """
    _check(identity.role, hosts, "", days)
    key = ec.generate_private_key(ec.SECP256R1())
    purposes = _PURPOSES[identity.role]
    made = _certificate(authority, identity, key.public_key(), purposes, days, hosts)
    return made, private_pem(key)


def folder_name(identity: Identity) -> str:
    """A file name for a member: its role and its percent-encoded name."""
    return f"{identity.role}-{quote(identity.name, safe=' ')}"


def _check(role: Role, hosts: Sequence[str], region: str, days: int) -> None:
    if hosts and role not in ("coordinator", "relay"):
        raise ConfigError(f"a {role} dials out only and has no hosts, got {', '.join(hosts)}")
    for host in hosts:
        _host_name(host)
    if region and role != "site":
        raise ConfigError(f"only a site has a region, got {region!r} for a {role}")
    if len(region) > 64 or not region.isprintable():
        raise ConfigError(f"a region must be at most 64 printable characters, got {region!r}")
    if not 1 <= days <= 3650:
        raise ConfigError(f"days must be 1 to 3650, got {days}")


def _write_pair(
    folder: Path, kind: str, certificate: x509.Certificate, key_pem: bytes
) -> tuple[Path, Path]:
    certificate_file, key_file = folder / f"{kind}.pem", folder / f"{kind}.key"
    write_private(key_file, key_pem)
    write_public(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate_file, key_file


def _certificate(
    authority: Authority,
    identity: Identity,
    public_key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    purposes: list[x509.ObjectIdentifier],
    days: int,
    hosts: Sequence[str],
    region: str = "",
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    end = min(now + datetime.timedelta(days=days), authority.certificate.not_valid_after_utc)
    authority_key_id = authority.certificate.extensions.get_extension_for_class(
        x509.SubjectKeyIdentifier
    ).value
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(identity, region))
        .issuer_name(authority.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_leaf_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_key_id),
            critical=False,
        )
        .add_extension(_names(identity, hosts, purposes), critical=False)
    )
    return builder.sign(authority.key, hashes.SHA256())


def _subject(identity: Identity, region: str) -> x509.Name:
    # For people's eyes, except for the region: programs read the SAN URI.
    attributes = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, identity.consortium),
        x509.NameAttribute(NameOID.COMMON_NAME, identity.name),
    ]
    if region:
        attributes.append(x509.NameAttribute(NameOID.LOCALITY_NAME, region))
    return x509.Name(attributes)


def _names(
    identity: Identity, hosts: Sequence[str], purposes: list[x509.ObjectIdentifier]
) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    if ExtendedKeyUsageOID.SERVER_AUTH in purposes:
        names += [_host_name(host) for host in dict.fromkeys((*_LOCAL_HOSTS, *hosts))]
    return x509.SubjectAlternativeName(names)


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(host) or len(host) > 253:
        raise ConfigError(f"{host!r} is neither a DNS name nor an IP address")
    return x509.DNSName(host)


def _leaf_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
