"""What encode_mod sends and the strategies read: an encoded update as one Array of a record.

    Array(dtype="uint8", shape=(bytes,), stype="veilsum.<codec>", data=EncodedUpdate.to_bytes())

The stype of a difference ends in "+difference". One Array for the whole update keeps its digest
and lets the server read it in one pass. Flower's own strategies refuse the stype.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Array, ArrayRecord

from veilsum.codecs import EncodedUpdate
from veilsum.codecs.update import EXPANDED_LIMIT
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout

_PREFIX = "veilsum."
_DIFFERENCE = "+difference"
_KEY = "update"


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


def native_record(update: EncodedUpdate, *, difference: bool) -> ArrayRecord:
    """The record in which an update travels."""
    data = update.to_bytes()
    stype = f"{_PREFIX}{update.codec}{_DIFFERENCE if difference else ''}"
    return ArrayRecord({_KEY: Array(dtype="uint8", shape=(len(data),), stype=stype, data=data)})


def native_payload(arrays: list[tuple[str, bytes]]) -> NativePayload | None:
    """The update in a record, or None if there is none.

    Args:
        arrays: serialization type and payload of all its arrays.

    Raises:
        DecodeError: a native payload is not alone.
    """
    natives = [stype for stype, _ in arrays if stype.startswith(_PREFIX)]
    if not natives:
        return None
    if len(arrays) != 1:
        raise DecodeError(f"an update of {natives[0]!r} is one array, the record has {len(arrays)}")
    stype, data = arrays[0]
    name = stype.removeprefix(_PREFIX)
    return NativePayload(data, name.removesuffix(_DIFFERENCE), name.endswith(_DIFFERENCE))


def _most_bytes(layout: ModelLayout | None) -> int:
    """No codec's chunks of such a model have more bytes: 8 per coordinate, and their heads."""
    return EXPANDED_LIMIT if layout is None else 9 * (layout.size + 8192)
