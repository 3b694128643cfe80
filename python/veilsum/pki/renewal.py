"""A member's next TLS certificate; its signing key, and with it the roster, stays."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from veilsum.errors import ConfigError
from veilsum.pki.authority import Authority, load_certificate
from veilsum.pki.files import replace_file
from veilsum.pki.issue import tls_pair
from veilsum.pki.roster_file import identity_of

_SERVES = ("coordinator", "relay")


def renew(authority: Authority, folder: Path, *, days: int = 365) -> x509.Certificate:
    """Replaces a member's TLS certificate and key by new ones for the same identity and hosts.

    Args:
        folder: the member's, as issue() made it.

    Returns:
        The new certificate.

    Raises:
        ConfigError: the folder holds no certificate of this authority, or cannot be written.
    """
    certificate_file, key_file = folder / "tls.pem", folder / "tls.key"
    old = load_certificate(certificate_file)
    identity = identity_of(old, certificate_file)
    try:
        old.verify_directly_issued_by(authority.certificate)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ConfigError(f"{certificate_file} was not issued by this authority") from error
    hosts = _hosts(old) if identity.role in _SERVES else []
    new, key_pem = tls_pair(authority, identity, hosts, days)
    # Whoever reads between the two finds a pair that does not fit, and reads again.
    replace_file(key_file, key_pem)
    replace_file(certificate_file, new.public_bytes(serialization.Encoding.PEM))
    return new


def _hosts(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]
