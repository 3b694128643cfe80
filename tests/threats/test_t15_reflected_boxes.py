"""T15: the coordinator gives a site its own sealed box back, as one from the peer it was for.

The defences: each direction of a pair has a key of its own, and who sealed a box for whom is
authenticated with it. Either is enough; without both the site takes its own shares for a peer's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.secagg import NAMES
from veilsum._native import Secret
from veilsum.errors import PeerError
from veilsum.secagg import keys

VICTIM, PEER = NAMES[:2]
T1 = b"\1" * 32
PRIVATE = {site: Secret.from_bytes(site.encode().ljust(32, b".")) for site in (VICTIM, PEER)}
ENDS = {site: (site, keys.public_key(secret)) for site, secret in PRIVATE.items()}
SHARES = bytes(range(64))


def key(site: str, peer: str, *, sending: bool, directed: bool) -> Secret:
    """The variant is one key for both directions, which the names put in order."""
    if not directed:
        sending = site < peer
    return keys.channel_key(T1, PRIVATE[site], ENDS[site], ENDS[peer], sending=sending)


@contextmanager
def names_in_the_header(kept: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as variant:
        if not kept:
            variant.setattr(keys, "_box_header", lambda t1, dealer, receiver: t1)
        yield


def opened(*, directed: bool, named: bool, reflected: bool) -> bytes:
    """What the victim finds in a box that it is told the peer made for it."""
    with names_in_the_header(named):
        dealer, receiver = (VICTIM, PEER) if reflected else (PEER, VICTIM)
        sealing = key(dealer, receiver, sending=True, directed=directed)
        box = keys.seal_box(sealing, T1, dealer, receiver, Secret.from_bytes(SHARES))
        opening = key(VICTIM, PEER, sending=False, directed=directed)
        return bytes(keys.open_box(opening, T1, PEER, VICTIM, box))


def test_a_channel_without_directions_and_names_opens_a_reflected_box():
    assert opened(directed=False, named=False, reflected=True) == SHARES


@pytest.mark.parametrize(("directed", "named"), [(True, True), (True, False), (False, True)])
def test_directions_alone_or_names_alone_refuse_it(directed, named):
    assert opened(directed=directed, named=named, reflected=False) == SHARES
    with pytest.raises(PeerError, match="'kyoto' dealt a box that does not open"):
        opened(directed=directed, named=named, reflected=True)
