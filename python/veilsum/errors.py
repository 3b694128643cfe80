"""The exception tree.

    VeilsumError
    ├── ConfigError   (ValueError)  your settings or arguments cannot work
    ├── DecodeError   (ValueError)  bytes from a peer do not follow the format
    ├── PeerError                   a peer broke the protocol; has .site
    ├── RoundAborted                too few sites are left, or a check of the result failed
    ├── AuditError                  a sum is not the sum of the updates behind it
    ├── LedgerError                 what a site remembers cannot be kept or believed
    └── DeviceError                 CUDA said no: call, device, size

Messages are lower case without a full stop, quote foreign text with !r, and never
carry a key, a share, a mask or a model value. `hint` says what to do about it.
"""

from __future__ import annotations


class VeilsumError(Exception):
    """Base of everything veilsum raises on purpose."""

    hint: str | None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def in_a_line(self) -> str:
        """What is wrong, and what to do about it."""
        return f"{self} ({self.hint})" if self.hint else str(self)


class ConfigError(VeilsumError, ValueError):
    """Your settings or arguments cannot work; raised before any traffic."""


class DecodeError(VeilsumError, ValueError):
    """Bytes from a peer do not follow the format."""


class PeerError(VeilsumError):
    """A peer broke the protocol; the round goes on without it."""

    def __init__(self, site: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"site {site!r} {message}", hint=hint)
        self.site = site
        self.what = message


class RoundAborted(VeilsumError):  # noqa: N818  the outcome of a round, not a mistake
    """A round ended without a result."""


class AuditError(VeilsumError):
    """A sum that was signed is not the sum of the updates that it is said to be of."""


class DeviceError(VeilsumError):
    """A device call failed: which call, which device, how much was asked for."""


class LedgerError(VeilsumError):
    """A site's ledger cannot be written, or what it holds is not what this site wrote.

    Then nothing that the ledger should have remembered may leave the site.
    """
