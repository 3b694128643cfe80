"""Replies that pass what a SuperLink checks and that Flower cannot make into messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_body, get_object_id
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    validate_object_content,
)

UNREADABLE_REPLIES = ("a record that is not protobuf", "brackets in brackets", "records in records")
_DEEP = 200_000  # brackets: deeper than the parser goes
_CHAIN = 1500  # records: deeper than Python's stack


def pulled(kind: str, asked: Message) -> Any:
    """What Flower's grids do with the objects of such a reply, one of UNREADABLE_REPLIES."""
    contents: dict[str, bytes] = {}

    def add(name: str, children: Sequence[str], body: bytes) -> str:
        content = f"{name} {','.join(children)} {len(body)}".encode() + b"\0" + body
        validate_object_content(content)
        object_id = get_object_id(content)
        contents[object_id] = content
        return object_id

    top = _records(kind, add)
    metadata = get_object_body(Message(RecordDict(), reply_to=asked).deflate(), Message)
    return inflate_object_from_contents(add("Message", [top], bytes(metadata)), contents)


def _records(kind: str, add: Any) -> str:
    if kind == "brackets in brackets":
        return add("RecordDict", [], b"[" * _DEEP)
    if kind == "a record that is not protobuf":
        record = add("ConfigRecord", [], b"\xff\xff\xff")
        return add("RecordDict", [record], json.dumps({"veilsum": record}).encode())
    top = add("RecordDict", [], b"{}")
    for _ in range(_CHAIN):
        top = add("RecordDict", [top], b"{}")
    return top
