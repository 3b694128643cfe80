"""Valid messages of every call, taken from a run that went well, and what can be made of them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from veilsum.transport import client, operator, wire_data

_FEDERATION = "/veilsum.v1.Federation/"
_OPERATOR = "/veilsum.v1.Operator/"

# What makes the messages of each call, where our own client calls it.
_MAKERS: tuple[tuple[Any, str, tuple[str, ...]], ...] = (
    (client, "encode_to_coordinator", (_FEDERATION + "Join",)),
    (wire_data, "encode_model_request", (_FEDERATION + "FetchModel",)),
    (
        wire_data,
        "encode_fetch_request",
        tuple(_FEDERATION + name for name in ("FetchSum", "FetchState", "FetchLinks")),
    ),
    (wire_data, "encode_audit_request", (_FEDERATION + "FetchAudit",)),
    (wire_data, "encode_update_header", (_FEDERATION + "PushUpdate",)),
    (wire_data, "encode_update_chunks", (_FEDERATION + "PushUpdate",)),
    (wire_data, "encode_status_request", (_FEDERATION + "PushStatus",)),
    (operator.wire_runs, "encode_submission", (_OPERATOR + "SubmitRun",)),
    (operator.wire_runs, "encode_run_request", (_OPERATOR + "GetRun", _OPERATOR + "WatchRun")),
    (operator.wire_runs, "encode_abort", (_OPERATOR + "AbortRun",)),
)


@contextmanager
def recorded() -> Iterator[dict[str, list[bytes]]]:
    """Path -> all messages that clients of this process make meanwhile."""
    found: dict[str, list[bytes]] = defaultdict(list)
    with pytest.MonkeyPatch.context() as patch:
        for module, name, paths in _MAKERS:
            patch.setattr(module, name, _recording(getattr(module, name), paths, found))
        yield found


def _recording(
    make: Callable[..., bytes], paths: tuple[str, ...], found: dict[str, list[bytes]]
) -> Callable[..., bytes]:
    def recording(*args: Any, **options: Any) -> bytes:
        message = make(*args, **options)
        for path in paths:
            found[path].append(message)
        return message

    return recording


# --- mutations ----------------------------------------------------------------------


def mutated(data: bytes, dice: random.Random) -> bytes:
    """One to three changes."""
    for _ in range(dice.randint(1, 3)):
        data = dice.choice(_CHANGES)(data, dice)
    return data


def _flipped(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(dice.choice((1, 1, 1, 2, 8))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _cut_off(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _longer(data: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + dice.randbytes(dice.choice((1, 7, 300))) + data[place:]


def _field_twice(data: bytes, dice: random.Random) -> bytes:
    """A field of the message once more, at its end or in front, or very often."""
    found = list(_fields(data))
    if not found:
        return data + data
    begin, end = dice.choice(found)
    field = data[begin:end] * dice.choice((1, 1, 1, min(200, 1 + 20_000 // (end - begin))))
    return field + data if dice.random() < 0.3 else data + field


def _fields_elsewhere(data: bytes, dice: random.Random) -> bytes:
    parts = [data[begin:end] for begin, end in _fields(data)]
    dice.shuffle(parts)
    return b"".join(parts)


def _length_lies(data: bytes, dice: random.Random) -> bytes:
    """A length says more or less than there is, in the message or in one inside it."""
    places = [place for place, byte in enumerate(data[:400]) if byte & 7 == 2]
    if not places:
        return data + b"\x0a\xff\xff\xff\xff\x0f"
    place = dice.choice(places) + 1
    lie = dice.choice((b"\x00", b"\x7f", b"\xff\x7f", b"\xff\xff\xff\x7f", b"\xff" * 9 + b"\x01"))
    return data[:place] + lie + data[place + 1 :]


def _other_number(data: bytes, dice: random.Random) -> bytes:
    """A number at its bounds: eight or four bytes of a kind."""
    place = dice.randrange(len(data) + 1)
    size = dice.choice((1, 4, 8))
    return (
        data[:place] + dice.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size + data[place + size :]
    )


_CHANGES = (
    _flipped,
    _cut_off,
    _longer,
    _field_twice,
    _fields_elsewhere,
    _length_lies,
    _other_number,
)


def _fields(data: bytes) -> Iterator[tuple[int, int]]:
    """(begin, end) of each field of a message, as far as it is one."""
    place = 0
    while place < len(data):
        begin = place
        key, place = _varint(data, place)
        match key & 7:
            case 0:
                _, place = _varint(data, place)
            case 1:
                place += 8
            case 2:
                length, place = _varint(data, place)
                place += length
            case 5:
                place += 4
            case _:
                return
        if place > len(data):
            return
        yield begin, place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place] if place < len(data) else 0
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, place
