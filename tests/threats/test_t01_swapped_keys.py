"""T01: the coordinator shows a site keys of its own making as if they were the peers'.

The defence: every key is under the signature of a member of the roster.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.secagg import NAMES, Federation, forge, make_plan, read
from support.unmasking import boxes_of, rebuilt
from veilsum import secagg
from veilsum._native import Secret
from veilsum.secagg import keys
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import KeyAdvert, KeyRoster

SITES = NAMES[:4]
VICTIM, *PEERS = SITES


class ManInTheMiddle:
    """Swaps the keys of the given peers, and leaves all else of their adverts as it is."""

    def __init__(self, swapped: list[str], *, victim: str = VICTIM) -> None:
        self.federation = Federation(make_plan(4))
        self.victim = self.federation.sites[victim]
        self.channel = {site: Secret.from_bytes(bytes([7, n]) * 16) for n, site in enumerate(SITES)}
        roster = self.federation.hold("key-roster", to=victim)
        adverts = [
            self._swapped(advert) if self._sender(advert) in swapped else advert
            for advert in read(KeyRoster, roster).adverts
        ]
        self.message = forge(KeyRoster, roster, adverts=tuple(adverts))

    def _sender(self, envelope: Envelope) -> str:
        return read(KeyAdvert, envelope.to_bytes()).sender

    def _swapped(self, envelope: Envelope) -> Envelope:
        advert = read(KeyAdvert, envelope.to_bytes())
        number = SITES.index(advert.sender)
        advert = replace(
            advert,
            mask_key=keys.public_key(Secret.from_bytes(bytes([9, number]) * 16)),
            channel_key=keys.public_key(self.channel[advert.sender]),
        )
        return Envelope(advert.to_payload(), envelope.signature, envelope.key_id)

    def attack(self) -> list[secagg.SiteEffect]:
        return self.victim.handle(self.message)

    def opened(self, deal: bytes) -> Secret:
        """The victim's mask seed, from the boxes that it sealed for the peers."""
        members = self.victim._phase.members
        shares = {}
        for peer in PEERS:
            ends = members.channel_key(peer), members.channel_key(VICTIM)
            key = keys.channel_key(members.t1, self.channel[peer], *ends, sending=False)
            box = boxes_of(deal)[members.index(peer) - 1]
            shares[peer], _ = keys.split_box(keys.open_box(key, members.t1, VICTIM, peer, box))
        return rebuilt(members, shares)


def test_keys_that_nobody_signed_open_everything_the_site_deals(monkeypatch):
    monkeypatch.setattr(Envelope, "verify", lambda *_: None)  # the defence removed
    man = ManInTheMiddle(PEERS)
    seed = man.victim._phase.secrets.mask_seed

    (effect,) = man.attack()

    assert man.opened(effect.message).equals(seed)


@pytest.mark.parametrize("swapped", [[PEERS[0]], [PEERS[2]], PEERS])
def test_one_swapped_key_makes_the_site_leave(swapped):
    man = ManInTheMiddle(swapped)

    shown, effect = man.attack()

    assert (shown.accused, shown.fault) == ("", secagg.Fault.BAD_RELAY)
    assert (effect.code, effect.reason) == (
        "malformed",
        "the signature of a key-advert message is wrong",
    )


@pytest.mark.parametrize("site", SITES)
def test_every_site_leaves_so_there_is_no_round(site):
    man = ManInTheMiddle([SITES[0] if site != SITES[0] else SITES[1]], victim=site)

    _, effect = man.attack()

    assert effect.code == "malformed"
    assert man.victim.phase == "withdrawn"
