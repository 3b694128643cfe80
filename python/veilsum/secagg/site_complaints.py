"""What a site says of a box that it cannot use, and what it answers when its own box is meant."""

from __future__ import annotations

from collections.abc import Mapping

from veilsum.errors import DecodeError
from veilsum.roster import key_id
from veilsum.secagg import keys
from veilsum.secagg.complaints import Accusation, Complaint, Justification
from veilsum.secagg.dealing import BadBox
from veilsum.secagg.messages import RelayedDeal
from veilsum.secagg.payload import open_envelope
from veilsum.secagg.phases import Channel
from veilsum.secagg.plan import Plan
from veilsum.secagg.policy import Refusal


def complaint_about(
    plan: Plan, site: str, channel: Channel, fault: BadBox, relayed: Mapping[str, RelayedDeal]
) -> Complaint:
    """With the key of this one box, which shows nothing but this site's own shares in it.

    Raises:
        Refusal: code "bad_share": the box is this site's own.
    """
    dealer = fault.site
    if dealer == site:
        raise Refusal("bad_share", str(fault)) from fault
    deal = relayed[dealer]
    return Complaint(
        plan.context,
        site,
        t1=channel.members.t1,
        dealer=dealer,
        header=deal.header.payload_digest,
        box=deal.share.box,
        key=_box_key(channel, site, dealer, sending=False),
    )


def justification_for(
    plan: Plan, site: str, channel: Channel, accusation: Accusation
) -> Justification:
    """The key of the complainer's box, for a complaint that the complainer has signed. An honest
    one does not complain about an honest box, so the key shows shares only that are known to whom
    they must not be anyway.

    Raises:
        DecodeError: nobody in the round signed the complaint.
        Refusal: code "protocol": it is not about this site's deal.
    """
    members = channel.members
    owners = {key_id(plan.roster.signing_key(name)): name for name in members.sites}
    complainer = owners.get(accusation.complaint.key_id)
    if complainer is None or complainer == site:
        raise DecodeError("a complaint is signed by nobody who was dealt a share")
    key = plan.roster.signing_key(complainer)
    complaint = open_envelope(
        Complaint, accusation.complaint, key, sender=complainer, context=plan.context
    )
    meant = (complaint.t1, complaint.dealer, complaint.header)
    if meant != (members.t1, site, channel.deal.payload_digest):
        raise Refusal("protocol", "a complaint came that is not about this site's deal")
    return Justification(
        plan.context,
        site,
        t1=members.t1,
        complainer=complainer,
        key=_box_key(channel, site, complainer, sending=True),
    )


def _box_key(channel: Channel, site: str, peer: str, *, sending: bool) -> bytes:
    members = channel.members
    own, other = members.channel_key(site), members.channel_key(peer)
    key = keys.channel_key(members.t1, channel.private, own, other, sending=sending)
    shown = bytes(key)
    key.wipe()
    return shown
