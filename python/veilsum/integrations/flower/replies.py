"""What a site's reply must hold, in Flower's Message API."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from veilsum.errors import ConfigError, DecodeError, PeerError
from veilsum.integrations.flower.arrays import read_model, records_of
from veilsum.integrations.flower.native import native_payload
from veilsum.integrations.payload import NativePayload
from veilsum.integrations.rounds import Model
from veilsum.integrations.weights import whole_weight


@dataclass(frozen=True, slots=True)
class TrainReply:
    """One site's update.

    Attributes:
        weight: how much it counts, 1 to 2**31-1.
        update: the site's model, its arrays in the message's own memory; or what its mod encoded.
        rest: the reply without its arrays, for functions that aggregate metrics.
    """

    weight: int
    update: Model | NativePayload
    rest: RecordDict


def site_of(message: Message) -> str:
    """The node that sent a reply, as the site's name."""
    return str(message.metadata.src_node_id)


def read_train_reply(message: Message, site: str, weighted_by_key: str) -> TrainReply:
    """Reads a reply that carries no error.

    Raises:
        PeerError, DecodeError: a record is missing or not as it must be.
    """
    content = _content(message, site)
    weight = whole_weight(site, _weight(content, site, weighted_by_key), weighted_by_key)
    records = [record for _, record in records_of(content, ArrayRecord)]
    if len(records) != 1:
        raise PeerError(site, f"sent {len(records)} ArrayRecords, expected 1")
    rest = RecordDict()
    for key, record in content.items():
        if not isinstance(record, ArrayRecord):
            rest[key] = record
    return TrainReply(weight, read_update(records[0]), rest)


def read_update(record: ArrayRecord) -> Model | NativePayload:
    """A site's model, or what its mod encoded.

    Raises:
        DecodeError: a payload is not as it must be, or a limit of the format is passed.
    """
    native = native_payload([(array.stype, array.data) for array in record.values()])
    if native is not None:
        return native
    try:
        return Model(*read_model(record))
    except ConfigError as error:
        raise DecodeError(str(error), hint=error.hint) from error


def sent_model(record: ArrayRecord) -> Model | None:
    """The model that a server sends out; None for an empty record, with which some apps start.

    Raises:
        ConfigError: it cannot be summed.
    """
    if not record:
        return None
    try:
        return Model(*read_model(record))
    except DecodeError as error:
        raise ConfigError(f"the model cannot be summed: {error}", hint=error.hint) from error


def read_evaluate_reply(message: Message, site: str, weighted_by_key: str) -> RecordDict:
    """Reads a reply that carries no error.

    Raises:
        PeerError: it holds no weight that metrics can be averaged by.
    """
    content = _content(message, site)
    weight = _weight(content, site, weighted_by_key)
    if not 0 < weight < math.inf:
        raise PeerError(
            site, f"has weight {weight!r} ({weighted_by_key!r}), which is not positive and finite"
        )
    return content


def alike(contents: dict[str, RecordDict]) -> tuple[list[RecordDict], dict[str, str]]:
    """Replies whose metrics can be averaged with each other, and why others' cannot.

    What most sites sent decides; which replies came first does not.

    Args:
        contents: site -> its reply, each with one MetricRecord.

    Returns:
        The replies in the order of their sites' names; site -> why its metrics are left out.
    """
    sites = sorted(contents)
    kinds = {site: _kind(contents[site]) for site in sites}
    counts = [(-list(kinds.values()).count(kind), kind) for kind in kinds.values()]
    usual = min(counts)[1] if counts else ()
    left_out = {
        site: f"its metrics are {_shown(kind)}, those of most sites {_shown(usual)}"
        for site, kind in kinds.items()
        if kind != usual
    }
    return [contents[site] for site in sites if site not in left_out], left_out


_Kind = tuple[tuple[str, str, int], ...]


def _kind(content: RecordDict) -> _Kind:
    """Record, name and length of each metric; the length of a single value is -1."""
    return tuple(
        (record, name, len(value) if isinstance(value, list) else -1)
        for record, metrics in records_of(content, MetricRecord)
        for name, value in sorted(metrics.items())
    )


def _shown(kind: _Kind) -> str:
    return ", ".join(
        f"{record}/{name}" + (f"[{length}]" if length >= 0 else "") for record, name, length in kind
    )


def _content(message: Message, site: str) -> RecordDict:
    if not message.has_content():
        raise PeerError(site, "sent a reply without content")
    return message.content


def _weight(content: RecordDict, site: str, key: str) -> int | float:
    records = [record for _, record in records_of(content, MetricRecord)]
    if len(records) != 1:
        raise PeerError(site, f"sent {len(records)} MetricRecords, expected 1")
    if key not in records[0]:
        raise PeerError(
            site,
            f"sent no weight: its MetricRecord lacks {key!r}",
            hint="send the number of examples under the strategy's weighted_by_key",
        )
    weight = records[0][key]
    if isinstance(weight, list):
        raise PeerError(site, f"has a list of {len(weight)} weights ({key!r}), expected one")
    return weight
