"""T40: the coordinator rebuilds the mask seed of a site that dropped out, as it must, and opens
the boxes that were sealed for that site.

The defence: the channel key is drawn on its own and is no function of the mask seed.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.secagg import NAMES, UPLOAD, Federation, kind_on_the_wire, make_plan, read
from support.unmasking import boxes_of, rebuilt
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import PeerError
from veilsum.secagg import dealing, keys
from veilsum.secagg.messages import UnmaskShares
from veilsum.secagg.phases import SiteSecrets

SITES = NAMES[:4]
DROPOUT = "kyoto"
OTHERS = tuple(site for site in SITES if site != DROPOUT)


class Dropped:
    """A round that lost a site after it had dealt its shares."""

    def __init__(self) -> None:
        self.federation = federation = Federation(make_plan(4))
        federation.hold(UPLOAD, origin=DROPOUT)
        self.members = federation.coordinator._phase.dealers.members
        federation.from_coordinator(federation.coordinator.lost(DROPOUT, "is gone"))
        federation.run()
        assert federation.result.sites == OTHERS

    def mask_seed(self) -> Secret:
        """As the answers of the round show it to the coordinator."""
        answers = [
            read(UnmaskShares, effect.message)
            for _, effect in self.federation.site_effects
            if isinstance(effect, secagg.Send)
            and kind_on_the_wire(effect.message) == "unmask-shares"
        ]
        shares = {answer.sender: dict(answer.mask_shares)[DROPOUT] for answer in answers}
        return rebuilt(self.members, shares)

    def opened(self, dealer: str) -> tuple[Secret, Secret]:
        """The dropout's shares of a dealer's secrets, from whatever follows from its seed."""
        context, t1 = self.federation.plan.context, self.members.t1
        private = keys.mask_private_key(context, self.mask_seed(), DROPOUT)
        ends = self.members.channel_key(DROPOUT), self.members.channel_key(dealer)
        channel = keys.channel_key(t1, private, *ends, sending=False)
        (deal,) = [
            message
            for origin, _, message in self.federation.sent
            if origin == dealer
            and isinstance(message, bytes)
            and kind_on_the_wire(message) == "share-deal"
        ]
        box = boxes_of(deal)[self.members.index(DROPOUT) - 1]
        return keys.split_box(keys.open_box(channel, t1, dealer, DROPOUT, box))


drawn = dealing.make_secrets


def one_key_for_both(context: bytes, site: str, entropy: keys.Entropy) -> SiteSecrets:
    """The variant: whoever has the mask seed has the channel key as well."""
    secrets = drawn(context, site, entropy)
    return replace(secrets, channel_private=Secret.from_bytes(bytes(secrets.mask_private)))


def test_with_a_channel_key_that_follows_from_the_seed_every_box_opens(monkeypatch):
    """One share more of everybody's secrets for the coordinator, per dropout."""
    monkeypatch.setattr(dealing, "make_secrets", one_key_for_both)
    monkeypatch.setattr("veilsum.secagg.transcript.check_advert", lambda *_: None)
    monkeypatch.setattr("veilsum.secagg.collecting.check_advert", lambda *_: None)
    dropped = Dropped()

    for dealer in OTHERS:
        mask_share, self_share = dropped.opened(dealer)
        assert len(mask_share) == len(self_share) == 32


@pytest.mark.parametrize("dealer", OTHERS)
def test_no_box_opens_with_what_follows_from_the_seed(dealer):
    dropped = Dropped()

    with pytest.raises(PeerError, match="dealt a box that does not open"):
        dropped.opened(dealer)
