"""What encode_mod sends and the strategies read: an encoded update as one Array of a record.

    Array(dtype="uint8", shape=(bytes,), stype="veilsum.<codec>", data=EncodedUpdate.to_bytes())

The stype of a difference ends in "+difference". One Array for the whole update keeps its digest
and lets the server read it in one pass. Flower's own strategies refuse the stype.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord

from veilsum.codecs import EncodedUpdate
from veilsum.errors import DecodeError
from veilsum.integrations.payload import NativePayload

_PREFIX = "veilsum."
_DIFFERENCE = "+difference"
_KEY = "update"


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
