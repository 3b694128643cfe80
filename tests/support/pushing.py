"""Sites played by hand against a real coordinator: they join, and push updates of ones."""

from __future__ import annotations

import numpy as np

from support.consortium import Consortium
from support.plain_updates import plain_update
from veilsum.control import RoundOpened, UpdateHeader
from veilsum.model import ModelLayout
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.client import Connection
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.site_app import make_endpoint

MODEL = {"w": np.zeros((3, 4), np.float32)}
LAYOUT = ModelLayout.from_arrays(MODEL)
MODEL_BYTES = model_to_bytes(LAYOUT, MODEL)


def endpoint(consortium: Consortium, site: str, port: int) -> Endpoint:
    """One process of a site; another address makes it no other process."""
    return make_endpoint(consortium.site_settings(site, port), consortium.roster)


async def opened(connection: Connection, number: int = 1) -> RoundOpened:
    """The invitation to a round."""
    async for message in connection.messages():
        if isinstance(message, RoundOpened) and message.round.number == number:
            return message
    raise AssertionError("the stream ended")


async def to_the_end(connection: Connection) -> None:
    """Reads what comes until the stream ends; raises how."""
    async for _ in connection.messages():
        pass


def update(invited: RoundOpened, site: str) -> tuple[UpdateHeader, list[bytes]]:
    """A site's update of a plain round."""
    plan = invited.plain
    assert plan is not None
    return plain_update(plan, (invited.round, site), LAYOUT, [np.ones((3, 4), np.float32)])
