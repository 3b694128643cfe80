"""What sites of a masked run over Flower may fetch of the results before their round."""

from __future__ import annotations

import weakref
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from veilsum.coordinator.effects import PublishModel, SaveLink
from veilsum.integrations.flower.secure_served import Served
from veilsum.model import ModelLayout
from veilsum.records import RoundId
from veilsum.secagg.origin import MOST_LINKS

OPEN = RoundId("run", 3)
ANEW, MOVED = bytes(32), b"\1" * 32  # states of an optimizer: one that begins, one that goes on
FIRST, SECOND, THIRD = (bytes([number]) * 32 for number in (11, 12, 13))  # hashes of models


def served(*links: SaveLink) -> Served:
    """A round that opens with the third model and an optimizer that begins anew."""
    found = Served()
    for link in links:
        found.link(link)
    layout = ModelLayout.from_tensors([("w", "f32", (1,))])
    found.publish(PublishModel(OPEN, layout, {"w": np.zeros(1, np.float32)}, THIRD, ANEW))
    found.invite(OPEN, "lyon")
    return found


def test_to_a_model_whose_optimizer_begins_anew_leads_what_leads_to_the_model_at_every_step():
    found = served(
        SaveLink((FIRST, MOVED), (SECOND, MOVED), b"first"),
        SaveLink((SECOND, ANEW), (THIRD, MOVED), b"second"),
    )

    assert found.links(OPEN, "lyon").blobs == [b"second", b"first"]


def test_links_end_where_nothing_is_known_to_lead():
    found = served(SaveLink((FIRST, MOVED), (SECOND, MOVED), b"first"))

    assert found.links(OPEN, "lyon").blobs == []


class Watched(SaveLink):
    """A link of which it can be told whether anyone still holds it."""

    __slots__ = ("__weakref__",)


def test_no_more_links_are_held_than_are_served_however_long_the_run():
    models = [number.to_bytes(32, "big") for number in range(MOST_LINKS + 20)] + [THIRD]
    links = [
        Watched((old, ANEW), (new, ANEW), b"link %d" % at)
        for at, (old, new) in enumerate(pairwise(models))
    ]
    names = [link.link for link in links]
    held = [weakref.ref(link) for link in links]

    found = served(*links)
    del links

    assert found.links(OPEN, "lyon").blobs == names[: -MOST_LINKS - 1 : -1]
    assert sum(link() is not None for link in held) == MOST_LINKS
