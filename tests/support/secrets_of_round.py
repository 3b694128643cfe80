"""Every secret of a round that was dumped, computed anew from its seed by the slow reference."""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import veilsum
from reference import secagg as reference
from support.dumped_round import DROPOUT, SITES, WATCHED, WORDS_APART
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import KeyAdvert, KeyRoster, RoundOpen, ShareRelay
from veilsum.secagg.payload import kind_of, read_payload

TESTS = Path(__file__).parents[1]
THRESHOLD = 4  # of five sites, one of which may help the coordinator
_DRAWS = [32, 32, 32, 32 * (THRESHOLD - 1), 32 * (THRESHOLD - 1)]


@dataclass
class Round:
    """What everybody may know of it."""

    context: bytes
    adverts: dict[str, KeyAdvert]
    t1: bytes
    t2: bytes
    boxes: dict[str, bytes]  # dealer -> box for WATCHED


def read_round(folder: Path) -> Round:
    """From what the coordinator sent to the sites."""
    payloads: dict[str, bytes] = {}
    for receiver, message in pickle.loads((folder / "messages").read_bytes()):
        payload = Envelope.from_bytes(message).payload
        if receiver == WATCHED:
            payloads[kind_of(payload)] = payload
    context = read_payload(RoundOpen, payloads["round-open"], context=None).context
    roster = read_payload(KeyRoster, payloads["key-roster"], context=context)
    relay = read_payload(ShareRelay, payloads["share-relay"], context=context)
    adverts = {}
    digests = {}
    for envelope in roster.adverts:
        advert = read_payload(KeyAdvert, envelope.payload, context=context)
        adverts[advert.sender] = advert
        digests[advert.sender] = hashlib.sha256(envelope.payload).digest()
    t1 = reference.chain("T1", context, digests)
    deals = dict(zip(sorted(adverts), (deal.header for deal in relay.deals), strict=True))
    headers = {site: hashlib.sha256(deal.payload).digest() for site, deal in deals.items()}
    boxes = {site: deal.share.box for site, deal in zip(sorted(adverts), relay.deals, strict=True)}
    return Round(context, adverts, t1, reference.chain("T2", t1, headers), boxes)


def drawn(seed: bytes, site: str, number: int, size: int) -> bytes:
    """A site's draw: see dumped_round.seeded."""
    stream = SITES.index(site)
    words = reference.mask_words(seed, stream, number * WORDS_APART, size // 8, 64)
    return struct.pack(f"<{len(words)}Q", *words)


def extracted(salt: bytes, key: bytes) -> bytes:
    """What HKDF makes of a key before it makes others of it."""
    return hmac.digest(salt, key, hashlib.sha256)


def hold(folder: Path, *options: str) -> dict[str, bytes]:
    """Has a round held and dumped in a process of its own; its secrets."""
    (folder / "seed").write_bytes(hashlib.sha256(b"seed").digest())
    places = (TESTS, Path(veilsum.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-m", "support.dumped_round", str(folder), *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
        check=True,
    )
    return secrets_of(folder)


def secrets_of(folder: Path) -> dict[str, bytes]:
    """Name -> 32 bytes, of all that must be nowhere once the round has ended. The shares that
    sites returned to the coordinator (M9) are not among them."""
    seed = (folder / "seed").read_bytes()
    assert pickle.loads((folder / "draws").read_bytes()) == dict.fromkeys(SITES, _DRAWS)
    held = read_round(folder)
    found = {"seed": seed}
    private: dict[str, tuple[bytes, bytes]] = {}
    shares: dict[str, bytes] = {}
    for site in SITES:
        own = dict(_own(held, seed, site))
        private[site] = own["sk_mask"], own["sk_chan"]
        found |= {f"{name} of {site}": secret for name, secret in own.items()}
        for what, dealt in zip("mb", _dealt(seed, site, own["m"], own["b"]), strict=True):
            shares |= {f"{what} of {site} for {to}": share for to, share in dealt.items()}
    for one, other in combinations(SITES, 2):
        pair = dict(_pair(held, one, other, private[one]))
        found |= {f"{name} of {one} and {other}": secret for name, secret in pair.items()}
        if one == WATCHED:
            plain = shares[f"m of {other} for {one}"] + shares[f"b of {other} for {one}"]
            _check_box(held, other, pair["box key back"], plain)
    kept = {f"share of {name}": share for name, share in shares.items() if not _returned(name)}
    return found | kept


def _returned(share: str) -> bool:
    what, _, dealer, _, receiver = share.split()
    return receiver != DROPOUT and (what == "m") == (dealer == DROPOUT)


def _check_box(held: Round, dealer: str, key: bytes, plain: bytes) -> None:
    """The reference and the package must mean the same secrets, or the scan proves nothing."""
    assert reference.seal(key, held.t1, dealer, WATCHED, plain) == held.boxes[dealer]


def _own(held: Round, seed: bytes, site: str) -> Iterator[tuple[str, bytes]]:
    name = reference.prefixed(site)
    draws = [drawn(seed, site, number, size) for number, size in enumerate(_DRAWS)]
    m = reference.derive(held.context, draws[0], "hedge/m", name)
    b = reference.derive(held.context, draws[1], "hedge/b", name)
    sk_mask, sk_chan = reference.mask_private(m, held.context, site), draws[2]
    advert = held.adverts[site]
    assert reference.public(sk_mask) == advert.mask_key
    assert reference.public(sk_chan) == advert.channel_key
    assert reference.self_commitment(held.context, site, b) == advert.self_commitment
    yield from (("m", m), ("b", b), ("sk_mask", sk_mask), ("sk_chan", sk_chan))
    yield from (("draw for m", draws[0]), ("draw for b", draws[1]))
    yield "HKDF key of the draw for m", extracted(held.context, draws[0])
    yield "HKDF key of the draw for b", extracted(held.context, draws[1])
    yield "HKDF key of m", extracted(held.context, m)
    yield "HKDF key of b", extracted(held.t2, b)
    yield "K_self", reference.self_key(held.t2, b, site)
    for what, coefficients in zip("mb", draws[3:], strict=True):
        for at in range(0, len(coefficients), 32):
            yield f"coefficients {at // 32} for {what}", coefficients[at : at + 32]


def _dealt(seed: bytes, site: str, m: bytes, b: bytes) -> Iterator[dict[str, bytes]]:
    for number, secret in ((3, m), (4, b)):
        coefficients = drawn(seed, site, number, _DRAWS[number])
        shares = reference.deal(secret, coefficients, range(1, len(SITES) + 1))
        yield dict(zip(SITES, shares, strict=True))


def _pair(
    held: Round, one: str, other: str, private: tuple[bytes, bytes]
) -> Iterator[tuple[str, bytes]]:
    sk_mask, sk_chan = private
    mine, theirs = held.adverts[one], held.adverts[other]
    for what, key, peer, salt in (
        ("mask", sk_mask, theirs.mask_key, held.t2),
        ("channel", sk_chan, theirs.channel_key, held.t1),
    ):
        agreed = reference.exchange(key, peer)
        yield f"{what} dh", agreed
        yield f"HKDF key of {what} dh", extracted(salt, agreed)
    yield "K", reference.pair_key(held.t2, sk_mask, one, other, theirs.mask_key)
    ends = (one, mine.channel_key), (other, theirs.channel_key)
    yield "box key forth", reference.box_key(held.t1, sk_chan, *ends)
    yield "box key back", reference.box_key(held.t1, sk_chan, *ends[::-1])
