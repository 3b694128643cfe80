"""An encoded update as a host carries it: bytes, and what its sender says they are."""

from __future__ import annotations

from dataclasses import dataclass

from veilsum.codecs import EncodedUpdate
from veilsum.codecs.update import EXPANDED_LIMIT
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout


@dataclass(frozen=True, slots=True)
class NativePayload:
    """An encoded update that has not been looked at yet.

    Attributes:
        data: what EncodedUpdate.to_bytes() made.
        codec: that its sender names.
        difference: whether it is a difference to the model that its sender received.
    """

    data: bytes
    codec: str
    difference: bool

    def parsed(self, layout: ModelLayout | None) -> EncodedUpdate:
        """The update, its chunks checked and not decoded.

        Args:
            layout: of the model, which bounds what a compressed update expands to; None if it
                is not known.

        Raises:
            DecodeError: it is not an update, or not one of the codec that is named.
        """
        try:
            update = EncodedUpdate.from_bytes(self.data, max_bytes=_most_bytes(layout))
        except ConfigError as error:  # it is compressed, and zstandard is not installed
            raise DecodeError(f"{error}", hint=error.hint) from error
        if update.codec != self.codec:
            raise DecodeError(f"the update is {update.codec}, its stype names {self.codec!r}")
        return update


def _most_bytes(layout: ModelLayout | None) -> int:
    """No codec's chunks of such a model have more bytes: 8 per coordinate, and their heads."""
    return EXPANDED_LIMIT if layout is None else 9 * (layout.size + 8192)
