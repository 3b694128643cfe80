"""Records of a file that are joined by hashes, so that none can be changed or taken out unseen.

    record    LE32 size || check (4) || body (size) || link (32)

Every link is a hash over the link before and the body. `check` is a hash over the link before
and the size, so that a size that was damaged is not taken for a record whose end is missing. A
file that ends within a record was cut there while it was written.
"""

from __future__ import annotations

from collections.abc import Iterator

from veilsum.errors import LedgerError
from veilsum.secagg.keys import Label, digest
from veilsum.secagg.wire import DIGEST_BYTES

_SIZE_BYTES = 4
_CHECK_BYTES = 4


class HashChain:
    """The link that the next record is joined to.

    Args:
        label: of the file's kind.
        link: what the first record is joined to, 32 bytes.
        damage: how an error ends that begins with "record 7".
    """

    def __init__(self, label: Label, link: bytes, damage: str) -> None:
        self._label = label
        self._damage = damage
        self.link = link

    def join(self, body: bytes) -> bytes:
        """The record's bytes in the file; the next one will be joined to it."""
        size = len(body).to_bytes(_SIZE_BYTES, "little")
        check = self._check(size)
        self.link = self._next(body)
        return size + check + body + self.link

    def read(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """The bodies of a file behind its head, each with the bytes its record has there. A
        last one whose end is missing is left out.

        Raises:
            LedgerError: something was changed, or was written by someone else.
        """
        at, number = 0, 0
        while at < len(data):
            number += 1
            body_at = at + _SIZE_BYTES + _CHECK_BYTES
            if body_at > len(data):
                return
            size = data[at : at + _SIZE_BYTES]
            link_at = body_at + int.from_bytes(size, "little")
            end = link_at + DIGEST_BYTES
            if data[at + _SIZE_BYTES : body_at] != self._check(size):
                raise self._damaged(number)
            if end > len(data):
                return
            body = data[body_at:link_at]
            self.link = self._next(body)
            if data[link_at:end] != self.link:
                raise self._damaged(number)
            yield body, end - at
            at = end

    def _check(self, size: bytes) -> bytes:
        return digest(self._label, b"size", self.link, size)[:_CHECK_BYTES]

    def _next(self, body: bytes) -> bytes:
        return digest(self._label, b"link", self.link, body)

    def _damaged(self, number: int) -> LedgerError:
        return LedgerError(f"record {number} {self._damage}")
