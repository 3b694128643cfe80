"""Bounded reading and writing of the protocol's fixed binary encodings.

Integers are little-endian and of fixed width; anything of variable length has a
length in front. The reader is the only place that compares a length with what is
left, and every length is held against a limit of our own before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from veilsum.errors import DecodeError

DIGEST_BYTES = 32
MAX_SITES = 255
MAX_NAME_BYTES = 64

_Item = TypeVar("_Item")


class Writer:
    """Collects fields in order; every method returns the writer itself."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def integer(self, value: int, width: int) -> Self:
        """`width` bytes, little-endian, not negative."""
        self._parts.append(value.to_bytes(width, "little"))
        return self

    def real(self, value: float) -> Self:
        """IEEE 754 double."""
        self._parts.append(struct.pack("<d", value))
        return self

    def raw(self, value: bytes) -> Self:
        """Bytes whose length both sides know."""
        self._parts.append(value)
        return self

    def blob(self, value: bytes) -> Self:
        """LE32 length, then the bytes."""
        return self.integer(len(value), 4).raw(value)

    def text(self, value: str) -> Self:
        """UTF-8 behind an LE32 length."""
        return self.blob(value.encode())

    def sequence(self, items: Sequence[_Item], write: Callable[[Writer, _Item], object]) -> Self:
        """LE16 count, then each item."""
        self.integer(len(items), 2)
        for item in items:
            write(self, item)
        return self

    def digests(self, values: Sequence[bytes]) -> Self:
        """LE16 count, then 32 bytes each."""
        return self.integer(len(values), 2).raw(b"".join(values))

    def bytes(self) -> bytes:
        """Everything written so far."""
        return b"".join(self._parts)


class Reader:
    """Reads fields in order from bytes of a peer.

    Raises:
        DecodeError: from every method; names the field and what was wrong with it.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def raw(self, size: int, field: str) -> bytes:
        """Exactly `size` bytes."""
        left = len(self._data) - self._at
        if size > left:
            raise DecodeError(f"{field} needs {size} bytes, {left} are left")
        value = self._data[self._at : self._at + size]
        self._at += size
        return value

    def digest(self, field: str) -> bytes:
        """32 bytes."""
        return self.raw(DIGEST_BYTES, field)

    def integer(self, width: int, field: str) -> int:
        """`width` bytes, little-endian, not negative."""
        return int.from_bytes(self.raw(width, field), "little")

    def real(self, field: str) -> float:
        """IEEE 754 double; may be anything, so the caller checks its range."""
        (value,) = struct.unpack("<d", self.raw(8, field))
        return float(value)

    def blob(self, limit: int, field: str) -> bytes:
        """At most `limit` bytes behind an LE32 length."""
        size = self.integer(4, field)
        if size > limit:
            raise DecodeError(f"{field} has {size} bytes, at most {limit} are allowed")
        return self.raw(size, field)

    def text(self, limit: int, field: str) -> str:
        """UTF-8 of at most `limit` bytes."""
        try:
            return self.blob(limit, field).decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"{field} is not UTF-8") from error

    def site(self, field: str) -> str:
        """A member's name."""
        return self.text(MAX_NAME_BYTES, field)

    def sequence(
        self, limit: int, field: str, read: Callable[[Reader], _Item]
    ) -> tuple[_Item, ...]:
        """At most `limit` items behind an LE16 count."""
        return tuple(read(self) for _ in range(self._count(limit, field)))

    def digests(self, limit: int, field: str) -> tuple[bytes, ...]:
        """At most `limit` times 32 bytes behind an LE16 count."""
        count = self._count(limit, field)
        data = self.raw(DIGEST_BYTES * count, field)
        return tuple(data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES))

    def _count(self, limit: int, field: str) -> int:
        count = self.integer(2, field)
        if count > limit:
            raise DecodeError(f"{field} has {count} entries, at most {limit} are allowed")
        return count

    def expect_end(self, what: str) -> None:
        """Nothing may follow."""
        left = len(self._data) - self._at
        if left:
            raise DecodeError(f"{left} bytes follow the end of {what}")
