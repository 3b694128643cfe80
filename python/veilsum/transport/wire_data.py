"""Protobuf to our own dataclasses and back: models and updates on their way.

Chunks and pieces of models are the bulk of all traffic. protobuf's own parser would copy each of
them twice, so the messages that carry them are made and taken apart here, and what they carry are
views of what gRPC received.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from typing_extensions import Buffer

from veilsum.control import RoundId, UpdateHeader
from veilsum.errors import DecodeError
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.transport.wire import (
    MAX_LAYOUT_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_WEIGHT,
    blob,
    count,
    decode_round_id,
    dump,
    encode_round_id,
    hash_bytes,
    metrics,
    parse,
)

MAX_CHUNKS = 2**24
LEAST_CHUNK_BYTES = 64  # its header (docs/format.md)
_MAX_MODEL_BYTES = 2**44
_MAX_AUDITED_CHUNKS = 65_536

# A key is (field number << 3) | 2: UpdateFrame.chunks is field 2, UpdateChunks.chunk field 1,
# DataPiece.data field 1, ModelPiece.data field 2.
_CHUNKS_KEY = 0x12
_CHUNK_KEY = 0x0A
_DATA_KEY = 0x0A
_MODEL_DATA_KEY = 0x12

# --- updates ------------------------------------------------------------------------


def encode_update_header(header: UpdateHeader, first_chunk: int) -> bytes:
    """First frame of an upload that goes on at chunk number `first_chunk`."""
    message = pb.UpdateHeader(
        round=encode_round_id(header.round),
        update_id=header.update_id,
        chunk_count=header.chunk_count,
        weight=header.weight,
        metrics=header.metrics,
        masked_header=header.masked_header,
        first_chunk=first_chunk,
    )
    return dump(pb.UpdateFrame(header=message))


def decode_update_header(frame: bytes) -> tuple[UpdateHeader, int]:
    """The header of an upload and the number of the first chunk that follows.

    Raises:
        DecodeError: not a header, or a field is out of bounds.
    """
    message = parse(pb.UpdateFrame, frame)
    if message.WhichOneof("frame") != "header":
        raise DecodeError("an upload must begin with its header")
    header = message.header
    chunk_count = count(header.chunk_count, "chunk_count", smallest=1, largest=MAX_CHUNKS)
    first_chunk = count(header.first_chunk, "first_chunk", largest=chunk_count)
    decoded = UpdateHeader(
        round=decode_round_id(header.round),
        update_id=header.update_id,
        chunk_count=chunk_count,
        weight=count(header.weight, "weight", largest=MAX_WEIGHT),
        metrics=metrics(header.metrics, "metrics"),
        masked_header=blob(header.masked_header, "masked_header", largest=MAX_PAYLOAD_BYTES),
    )
    if decoded.masked_header and (decoded.weight or decoded.metrics):
        raise DecodeError("the header of a masked update must not show its weight or metrics")
    return decoded, first_chunk


def encode_update_chunks(chunks: Iterable[Buffer]) -> bytes:
    """A frame of consecutive chunks: the bytes that protobuf would make, in one copy."""
    parts: list[Buffer] = []
    size = 0
    for chunk in chunks:
        length = memoryview(chunk).nbytes
        key = bytes((_CHUNK_KEY,)) + _varint(length)
        parts += (key, chunk)
        size += len(key) + length
    return b"".join((bytes((_CHUNKS_KEY,)), _varint(size), *parts))


def decode_update_chunks(frame: bytes) -> list[memoryview]:
    """The chunks of a frame, as views of it.

    Raises:
        DecodeError: not one UpdateChunks and nothing else, in protobuf's encoding.
    """
    view = memoryview(frame).toreadonly()
    if not frame or frame[0] != _CHUNKS_KEY:
        raise DecodeError("after its header, an upload consists of frames of chunks")
    size, position = _read_varint(view, 1)
    if position + size != len(frame):
        raise DecodeError(f"a frame announces {size} bytes and holds {len(frame) - position}")
    chunks = []
    while position < len(frame):
        if view[position] != _CHUNK_KEY:
            raise DecodeError(f"a frame of chunks has an unknown field at byte {position}")
        size, position = _read_varint(view, position + 1)
        if size > len(frame) - position:
            raise DecodeError(f"a chunk announces {size} bytes, {len(frame) - position} are left")
        # Each takes a hundred bytes of memory here, and a frame could hold millions of nothing.
        if size < LEAST_CHUNK_BYTES:
            raise DecodeError(
                f"a chunk of a frame has {size} bytes, its header alone has {LEAST_CHUNK_BYTES}"
            )
        chunks.append(view[position : position + size])
        position += size
    if not chunks:
        raise DecodeError("a frame of chunks is empty")
    return chunks


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    """(value, position after it). Lengths of a frame fit into five bytes."""
    value = 0
    for index, byte in enumerate(view[position : position + 5]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise DecodeError(f"a length at byte {position} of a frame is cut off or too long")


# --- how much of an update is held ----------------------------------------------------


def encode_status_request(round_id: RoundId, update_id: int) -> bytes:
    """See decode_status_request."""
    request = pb.PushStatusRequest(round=encode_round_id(round_id), update_id=update_id)
    return dump(request)


def decode_status_request(data: bytes) -> tuple[RoundId, int]:
    """(round, update id).

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    message = parse(pb.PushStatusRequest, data)
    return decode_round_id(message.round), message.update_id


def encode_receipt(next_chunk: int, committed: bool) -> bytes:
    """See decode_receipt."""
    return dump(pb.PushReceipt(next_chunk=next_chunk, committed=committed))


def decode_receipt(data: bytes) -> tuple[int, bool]:
    """(number of the first chunk that is not held, whether the update counts).

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    message = parse(pb.PushReceipt, data)
    return count(message.next_chunk, "next_chunk", largest=MAX_CHUNKS), message.committed


# --- what belongs to a round ---------------------------------------------------------


def encode_fetch_request(round_id: RoundId, offset: int = 0) -> bytes:
    """See decode_fetch_request."""
    return dump(pb.FetchRequest(round=encode_round_id(round_id), offset=offset))


def decode_fetch_request(data: bytes) -> tuple[RoundId, int]:
    """(of which round something is asked for, how many bytes of it are there already).

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    message = parse(pb.FetchRequest, data)
    return decode_round_id(message.round), _offset(message.offset)


def _offset(found: int) -> int:
    return count(found, "offset", largest=_MAX_MODEL_BYTES)


def encode_audit_request(
    round_id: RoundId, chunks: Sequence[tuple[int, int]], offset: int = 0
) -> bytes:
    """See decode_audit_request."""
    ids = [pb.SumChunkId(stream=stream, index=index) for stream, index in chunks]
    where = encode_round_id(round_id)
    return dump(pb.FetchAuditRequest(round=where, chunks=ids, offset=offset))


def decode_audit_request(data: bytes) -> tuple[RoundId, list[tuple[int, int]], int]:
    """Of which round's sum which chunks are asked for, (stream, index), and how many bytes of the
    answer are there already.

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    message = parse(pb.FetchAuditRequest, data)
    if not 1 <= len(message.chunks) <= _MAX_AUDITED_CHUNKS:
        raise DecodeError(
            f"{len(message.chunks)} chunks are asked for, 1 to {_MAX_AUDITED_CHUNKS} can be"
        )
    asked = [(one.stream, one.index) for one in message.chunks]
    return decode_round_id(message.round), asked, _offset(message.offset)


def encode_data_piece(parts: Sequence[Buffer]) -> bytes:
    """A piece of what was asked for: these bytes, one after the other."""
    return _message_of(_DATA_KEY, parts)


def decode_data_piece(piece: bytes) -> bytes:
    """Inverse of encode_data_piece.

    Raises:
        DecodeError: not a piece, or an empty one.
    """
    view = _only_field(_DATA_KEY, piece)
    data = bytes(view) if view is not None else parse(pb.DataPiece, piece).data
    if not data:
        raise DecodeError("a piece of data is empty")
    return data


# --- models -------------------------------------------------------------------------


def encode_model_request(round_id: RoundId, offset: int = 0) -> bytes:
    """See decode_model_request."""
    return dump(pb.FetchModelRequest(round=encode_round_id(round_id), offset=offset))


def decode_model_request(data: bytes) -> tuple[RoundId, int]:
    """(whose model is asked for, how many bytes of its data are there already).

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    message = parse(pb.FetchModelRequest, data)
    return decode_round_id(message.round), _offset(message.offset)


def encode_model_header(layout: bytes, size_bytes: int, model_hash: bytes) -> bytes:
    """First piece of a model's stream."""
    header = pb.ModelHeader(layout=layout, size_bytes=size_bytes, model_hash=model_hash)
    return dump(pb.ModelPiece(header=header))


def encode_model_data(parts: Sequence[Buffer]) -> bytes:
    """A further piece: these bytes, one after the other, as protobuf would make it, in one copy."""
    return _message_of(_MODEL_DATA_KEY, parts)


def decode_model_header(piece: bytes) -> tuple[bytes, int, bytes]:
    """(layout, bytes of all data, model hash) of a model's first piece.

    Raises:
        DecodeError: not a header, or a field is out of bounds.
    """
    message = parse(pb.ModelPiece, piece)
    if message.WhichOneof("piece") != "header":
        raise DecodeError("a model must begin with its header")
    header = message.header
    return (
        blob(header.layout, "layout", smallest=1, largest=MAX_LAYOUT_BYTES),
        count(header.size_bytes, "size_bytes", largest=_MAX_MODEL_BYTES),
        hash_bytes(header.model_hash, "model_hash"),
    )


def decode_model_data(piece: bytes) -> memoryview:
    """The bytes of a further piece, as a view of it.

    Raises:
        DecodeError: not a piece of data.
    """
    view = _only_field(_MODEL_DATA_KEY, piece)
    if view is not None:
        return view
    message = parse(pb.ModelPiece, piece)
    if message.WhichOneof("piece") != "data":
        raise DecodeError("after its header, a model consists of pieces of data")
    return memoryview(message.data)


# --- messages of one field of bytes ---------------------------------------------------


def _message_of(key: int, parts: Sequence[Buffer]) -> bytes:
    """The message with these bytes in its only field, as protobuf would make it, in one copy."""
    size = sum(memoryview(part).nbytes for part in parts)
    return b"".join((bytes((key,)), _varint(size), *parts))


def _only_field(key: int, message: bytes) -> memoryview | None:
    """The bytes of a message's only field, as a view of it; None if it has others, or another, or
    is written in an unusual way: then it is for protobuf to say what it is."""
    view = memoryview(message).toreadonly()
    if message[:1] != bytes((key,)):
        return None
    try:
        size, begin = _read_varint(view, 1)
    except DecodeError:
        return None
    return view[begin:] if begin + size == len(message) else None
