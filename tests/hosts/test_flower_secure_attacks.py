"""What a network, a coordinator or a site that means ill comes to in masked rounds over Flower."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.app import Message

from support import flower_masked
from support.consortium import make_consortium
from support.flower_grid import flower_task
from support.flower_masked import SITES, masked_federation, start, trained
from veilsum.integrations.flower.secure_wire import TO_COORDINATOR, Frame, from_content, unseal
from veilsum.transport import wire
from veilsum.transport.outgoing import message_kind


@pytest.fixture
def federation(tmp_path: Path):
    with flower_task(), masked_federation(make_consortium(tmp_path / "c", SITES)) as found:
        yield found


def frame_of(federation, site: str, message: Message) -> Frame:
    """What a site answers."""
    key = federation.consortium.roster.signing_key(site)
    return unseal(TO_COORDINATOR, from_content(message.content), key)


def said_by(federation, site: str) -> list[str]:
    """Kinds of all that a site has said, in order."""
    frames = [frame_of(federation, site, message) for message in federation.answered[site]]
    return [
        message_kind(wire.decode_to_coordinator(part.head)) if part.kind == "message" else part.kind
        for frame in frames
        for part in frame.parts
    ]


def test_a_site_trains_when_its_keys_and_shares_have_left_also_with_a_model_that_it_has(
    federation, monkeypatch
):
    before = []

    def noting(arrays, site, seed):
        said = said_by(federation, site)
        before.append((site, said.count("key-advert"), said.count("share-deal")))
        return trained(arrays, site, seed)

    monkeypatch.setattr(flower_masked, "trained", noting)

    start(federation.strategy(), federation.grid(), rounds=2)

    assert sorted(before) == sorted((site, n, n) for site in SITES for n in (1, 2))
