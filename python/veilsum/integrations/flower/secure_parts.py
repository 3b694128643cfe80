"""The kinds of parts in a frame, and how rounds and models are written in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from veilsum.errors import DecodeError
from veilsum.integrations.flower.arrays import NPY_STYPE, read_model, to_record
from veilsum.integrations.flower.secure_wire import Part
from veilsum.model import ModelLayout
from veilsum.records import RoundId
from veilsum.secagg.wire import Reader, Writer

MESSAGE = "message"
"""Either way: one message of coordinator or site (transport/wire.py)."""

WANT_MODEL, WANT_SUM, WANT_LINKS = "want-model", "want-sum", "want-links"
"""A site asks for something of a round."""

MODEL, SUM, LINKS = "model", "sum", "links"
"""And gets it."""

WANT_TURN, TURN = "want-turn", "turn"
"""A site that has a round's model already asks when to train, and is told to."""

UPLOAD, UPLOADED = "upload", "uploaded"
"""A masked update, and whether it counts."""

_MOST_TENSORS = 2**16
_MOST_NAME_BYTES = 1024
_MOST_REASON_BYTES = 4096


class About(NamedTuple):
    """The head of most parts: a round, a yes or no, a reason."""

    round: RoundId
    flag: bool = False
    reason: str = ""

    def to_bytes(self) -> bytes:
        """See from_bytes."""
        writer = Writer().text(self.round.run_id).integer(self.round.number, 8)
        writer.integer(self.round.attempt, 4).integer(int(self.flag), 1)
        return writer.blob(self.reason.encode()[:_MOST_REASON_BYTES]).bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> About:
        """Raises:
        DecodeError: it is none.
        """
        reader = Reader(data)
        run, number = reader.text(64, "run id"), reader.integer(8, "round")
        attempt, flag = reader.integer(4, "attempt"), reader.integer(1, "flag")
        reason = reader.blob(_MOST_REASON_BYTES, "reason").decode(errors="replace")
        reader.expect_end("a part's head")
        return cls(RoundId(run, number, attempt), bool(flag), reason)


def model_part(round_id: RoundId, layout: ModelLayout, arrays: Mapping[str, Any]) -> Part:
    """A model, each tensor as the bytes of a .npy file."""
    record = to_record(layout, dict(arrays))
    head = Writer().blob(About(round_id).to_bytes()).integer(len(record), 4)
    for name, array in record.items():
        head.text(name).text(array.dtype)
    return Part(MODEL, head.bytes(), [array.data for array in record.values()])


def read_model_part(part: Part) -> tuple[RoundId, ModelLayout, dict[str, NDArray[Any]]]:
    """The round, and its model where it lies.

    Raises:
        DecodeError, ConfigError: it is no model.
    """
    reader = Reader(part.head)
    about = About.from_bytes(reader.blob(_MOST_REASON_BYTES, "round"))
    count = reader.integer(4, "tensors")
    if count > _MOST_TENSORS or count != len(part.blobs):
        raise DecodeError(f"a model announces {count} tensors and has {len(part.blobs)}")
    record = ArrayRecord()
    for blob in part.blobs:
        name = reader.text(_MOST_NAME_BYTES, "a tensor's name")
        dtype = reader.text(32, "a tensor's dtype")
        record[name] = Array(dtype, (), NPY_STYPE, blob if isinstance(blob, bytes) else bytes(blob))
    reader.expect_end("a model's head")
    return (about.round, *read_model(record))
