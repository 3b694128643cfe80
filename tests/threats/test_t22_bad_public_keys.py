"""T22: a member advertises a public key of low order, in a second spelling, or of another member.

The defences: only canonical keys that are not of low order are taken, each once in a round; and
an exchange that gives zero is an error. All X25519 vectors are advertised to a session.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from support.faults import accused
from support.secagg import NAMES, Federation, forge, make_plan, read
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import PeerError
from veilsum.secagg import keys
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import KeyAdvert, KeyRoster

BASEL, KYOTO, LYON, OSLO = NAMES[:4]
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "x25519.json").read_text())
(GROUP,) = VECTORS["testGroups"]
BAD = [test for test in GROUP["tests"] if test["result"] == "invalid" and len(test["public"]) == 64]
ZERO_EXCHANGE = [test for test in BAD if "LowOrder" in test["flags"]]


def advertised(**changed: bytes) -> Federation:
    """Kyoto advertises another key than it made."""
    federation = Federation(make_plan(4))
    advert = federation.hold("key-advert", origin=KYOTO)
    federation.deliver(KYOTO, "", forge(KeyAdvert, advert, **changed))
    return federation


def shown(key: bytes) -> list[secagg.SiteEffect]:
    """A coordinator that does not look shows the key to a site."""
    federation = Federation(make_plan(4))
    roster = federation.hold("key-roster", to=BASEL)
    adverts = list(read(KeyRoster, roster).adverts)
    adverts[1] = Envelope.from_bytes(forge(KeyAdvert, adverts[1].to_bytes(), mask_key=key))
    return federation.sites[BASEL].handle(forge(KeyRoster, roster, adverts=tuple(adverts)))


def alias_of(key: bytes) -> bytes:
    """The same key to every library, in other bytes."""
    return (int.from_bytes(key, "little") | 1 << 255).to_bytes(32, "little")


def test_two_spellings_pass_for_two_keys_where_keys_are_taken_as_they_come(monkeypatch):
    """To every library they are one key, so two members have one secret with a third."""
    monkeypatch.setattr("veilsum.secagg.transcript.public_key_fault", lambda key: None)
    federation = Federation(make_plan(4))
    advert = federation.hold("key-advert", origin=KYOTO)
    (first,) = [
        read(KeyAdvert, message)
        for origin, _, message in federation.sent
        if origin == BASEL and isinstance(message, bytes)
    ]
    alias = alias_of(first.mask_key)
    federation.deliver(KYOTO, "", forge(KeyAdvert, advert, mask_key=alias))

    assert not federation.excluded
    peer = X25519PrivateKey.generate()
    spellings = (first.mask_key, alias)
    assert len({peer.exchange(X25519PublicKey.from_public_bytes(one)) for one in spellings}) == 1


@pytest.mark.parametrize("test", BAD, ids=lambda test: str(test["tcId"]))
def test_a_bad_key_costs_its_sender_the_round_and_makes_sites_leave(test):
    key = bytes.fromhex(test["public"])
    reason = "low order" if test["refusedAs"] == "low order" else "not in canonical form"

    for field in ("mask_key", "channel_key"):
        federation = advertised(**{field: key})
        assert reason in federation.excluded[KYOTO]
        assert accused(federation) == {(KYOTO, "BAD_KEY")}
    blamed, effect = shown(key)
    assert (blamed.accused, blamed.fault.name) == ("", "BAD_RELAY")  # it should have looked
    assert isinstance(effect, secagg.Withdraw)
    assert (effect.code, reason in effect.reason) == ("keys", True)


@pytest.mark.parametrize("field", ["mask_key", "channel_key"])
def test_no_key_is_taken_twice_in_a_round(field):
    federation = Federation(make_plan(4))
    advert = federation.hold("key-advert", origin=KYOTO)
    own = read(KeyAdvert, advert)
    other = own.channel_key if field == "mask_key" else own.mask_key
    federation.deliver(KYOTO, "", forge(KeyAdvert, advert, **{field: other}))

    assert federation.excluded == {KYOTO: "advertised a public key that is in use already"}
    assert accused(federation) == {(KYOTO, "BAD_KEY")}  # both keys are its own


# --- an exchange that gives zero ------------------------------------------------------------------


def pair_key(public: bytes) -> bytes:
    own = Secret.from_bytes(b"\7" * 32)
    return bytes(keys.pair_mask_key(bytes(32), own, (BASEL, bytes(32)), (KYOTO, public)))


class TakesZero:
    """A library without the check of RFC 7748, section 6.1."""

    @staticmethod
    def from_private_bytes(private: object) -> TakesZero:
        return TakesZero()

    @staticmethod
    def exchange(public: object) -> bytes:
        return bytes(32)


def test_without_the_check_for_zero_everybody_knows_the_mask(monkeypatch):
    public = bytes.fromhex(ZERO_EXCHANGE[0]["public"])
    monkeypatch.setattr(keys, "X25519PrivateKey", TakesZero)
    parts = keys.length_prefixed(BASEL), keys.length_prefixed(KYOTO), bytes(32), public
    guess = keys.derive(bytes(32), Secret.zeros(32), keys.Label.PAIR_MASK, *parts)

    assert pair_key(public) == bytes(guess)


@pytest.mark.parametrize("test", ZERO_EXCHANGE, ids=lambda test: str(test["tcId"]))
def test_an_exchange_that_gives_zero_is_an_error(test):
    with pytest.raises(PeerError, match="'kyoto' advertised a public key of low order"):
        pair_key(bytes.fromhex(test["public"]))
