"""Hashes and keys of the protocol: which label, which salt, which inputs.

Suite VS-1: X25519, Ed25519, AES-256-GCM, HKDF-SHA256, SHA-256, all from the
`cryptography` package. Nothing here draws randomness. What that package returns as bytes and must
stay secret is moved into a `Secret` at once, and its memory overwritten.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from typing_extensions import Buffer

from veilsum._native import Secret
from veilsum.errors import ConfigError, PeerError

Entropy: TypeAlias = Callable[[int], Secret]
"""size -> that many fresh secret bytes. In production `Secret.from_os`."""

SECRET_BYTES = 32
SHARE_BYTES = 32
BOX_BYTES = 2 * SHARE_BYTES + 16  # two shares and the AES-GCM tag

_PREFIX = b"veilsum/v1/"
_PRIME = 2**255 - 19
# The u-coordinates below the prime whose order divides 8: an exchange with one of them
# gives zero whatever the private key is.
_LOW_ORDER = frozenset(
    {
        0,
        1,
        _PRIME - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)


class Label(Enum):
    """Every domain-separation label of the protocol.

    Only "com/b" serves twice: over a whole self seed it hashes the round's context first,
    over a share of one it hashes T1 first, and no context is ever a T1.
    """

    CONTEXT = b"ctx"
    TRANSCRIPT_KEYS = b"T1"
    TRANSCRIPT_SHARES = b"T2"
    TRANSCRIPT_SURVIVORS = b"T3"
    TRANSCRIPT_UNMASK = b"T4"
    HEDGE_MASK = b"hedge/m"
    HEDGE_SELF = b"hedge/b"
    MASK_PRIVATE_KEY = b"sk/mask"
    SELF_COMMITMENT = b"com/b"
    MASK_SHARE_COMMITMENT = b"com/m"
    SELF_SHARE_COMMITMENT = SELF_COMMITMENT
    CHANNEL = b"chan"
    BOX = b"deal"
    SELF_MASK = b"mask/self"
    PAIR_MASK = b"mask/pair"
    UPDATE_ID = b"update-id"
    ROTATION = b"rotation"
    LEDGER = b"ledger"
    EGRESS = b"egress"
    ACKS = b"acks"


def length_prefixed(value: bytes | str) -> bytes:
    """LE32 length, then the bytes."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(data)) + data


def _info(label: Label, parts: tuple[bytes, ...]) -> bytes:
    return _PREFIX + label.value + b"\0" + b"".join(parts)


def digest(label: Label, *parts: Buffer) -> bytes:
    """SHA-256 under a label, 32 bytes. Parts may be Secrets; they are not copied."""
    state = hashlib.sha256(_PREFIX + label.value + b"\0")
    for part in parts:
        state.update(part)
    return state.digest()


def transcript(label: Label, previous: bytes, digests: Mapping[str, bytes]) -> bytes:
    """Next link of the chain: what was agreed before, and who sent what now.

    Args:
        digests: sender -> SHA-256 of its payload.
    """
    parts = [previous, struct.pack("<I", len(digests))]
    for sender in sorted(digests, key=str.encode):
        parts += [length_prefixed(sender), digests[sender]]
    return digest(label, *parts)


def derive(salt: bytes, key: Buffer, label: Label, *parts: bytes) -> Secret:
    """HKDF-SHA256 (RFC 5869) of 32 bytes, which is one block: extract, then expand once.

    `cryptography` has HKDF, but makes a bytes object of its result on the way, also where it is
    to write into memory of ours, and leaves that behind.
    """
    extracted = _hmac(salt, key)
    derived = _hmac(extracted, _info(label, parts), b"\x01")
    extracted.wipe()
    return derived


def _hmac(key: Buffer, *parts: Buffer) -> Secret:
    state = HMAC(memoryview(key), SHA256())
    for part in parts:
        state.update(memoryview(part))
    return Secret.take(state.finalize())


def public_key(private: Secret) -> bytes:
    """X25519 public key of 32 private bytes (clamped as in RFC 7748)."""
    return Agreement(private).public_key()


def public_key_fault(key: bytes) -> str | None:
    """Why a public key must be refused, or None.

    Libraries reduce modulo the prime and ignore the top bit, so one key has several
    spellings; only the canonical one is accepted, or distinctness could not be checked.
    """
    value = int.from_bytes(key, "little")
    if len(key) != SECRET_BYTES or value >= _PRIME:
        return "a public key that is not in canonical form"
    if value in _LOW_ORDER:
        return "a public key of low order"
    return None


# --- the site's own secrets ---------------------------------------------------


def mask_seed(context: bytes, fresh: Secret, site: str) -> Secret:
    """m_u. The context is mixed in so that a repeated generator state, as after a
    restored snapshot, does not repeat the secrets of another round (RFC 8937)."""
    return derive(context, fresh, Label.HEDGE_MASK, length_prefixed(site))


def self_seed(context: bytes, fresh: Secret, site: str) -> Secret:
    """b_u."""
    return derive(context, fresh, Label.HEDGE_SELF, length_prefixed(site))


def mask_private_key(context: bytes, seed: Secret, site: str) -> Secret:
    """sk_mask: a function of m_u, so that whoever rebuilds m_u can check it."""
    return derive(context, seed, Label.MASK_PRIVATE_KEY, length_prefixed(site))


def self_commitment(context: bytes, seed: Secret, site: str) -> bytes:
    """com_b: binds a site to its b_u."""
    return digest(Label.SELF_COMMITMENT, context, length_prefixed(site), seed)


# --- key agreement ----------------------------------------------------------------


class Agreement:
    """An X25519 private key, loaded once: that takes longer than an exchange with it.

    OpenSSL holds a copy of the key, in memory that it overwrites when the object goes but does
    not lock. So it lives no longer than a loop over peers.
    """

    def __init__(self, private: Secret) -> None:
        self._key = X25519PrivateKey.from_private_bytes(memoryview(private))

    def public_key(self) -> bytes:
        """32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def derive(
        self, salt: bytes, peer: tuple[str, bytes], label: Label, parts: tuple[bytes, ...]
    ) -> Secret:
        """HKDF of what is agreed on with a peer.

        Args:
            peer: (name, public key).

        Raises:
            PeerError: the peer's key is of low order.
        """
        name, key = peer
        try:
            agreed = Secret.take(self._key.exchange(X25519PublicKey.from_public_bytes(key)))
        except ConfigError:
            raise  # no memory to lock: not the peer's doing
        except ValueError as error:
            raise PeerError(name, "advertised a public key of low order") from error
        derived = derive(salt, agreed, label, *parts)
        agreed.wipe()
        return derived


def _loaded(private: Secret | Agreement) -> Agreement:
    return private if isinstance(private, Agreement) else Agreement(private)


# --- masks ----------------------------------------------------------------------


def self_mask_key(t2: bytes, seed: Secret, site: str) -> Secret:
    """K_self: key of the mask a site adds for itself alone."""
    return derive(t2, seed, Label.SELF_MASK, length_prefixed(site))


def pair_mask_key(
    t2: bytes, private: Secret | Agreement, own: tuple[str, bytes], peer: tuple[str, bytes]
) -> Secret:
    """K_uv: the same for both members of the pair.

    Args:
        own, peer: (name, public mask key); `private` belongs to `own`. One that is used more than
            once is better loaded once.

    Raises:
        PeerError: the peer's key is of low order.
    """
    (low, low_key), (high, high_key) = sorted([own, peer], key=lambda member: member[0].encode())
    names = (length_prefixed(low), length_prefixed(high))
    return _loaded(private).derive(t2, peer, Label.PAIR_MASK, (*names, low_key, high_key))


# --- shares ---------------------------------------------------------------------


def share_commitment(label: Label, t1: bytes, dealer: str, receiver: str, share: Buffer) -> bytes:
    """Binds a dealer to one share. No salt: a share is 32 uniform bytes to anyone who
    holds fewer than the threshold."""
    return digest(label, t1, length_prefixed(dealer), length_prefixed(receiver), share)


def channel_key(
    t1: bytes,
    private: Secret | Agreement,
    own: tuple[str, bytes],
    peer: tuple[str, bytes],
    *,
    sending: bool,
) -> Secret:
    """Key of the one box from a dealer to a receiver. Each direction has its own, so a
    dealer's box cannot be sent back to it as if the receiver had made it.

    Raises:
        PeerError: the peer's key is of low order.
    """
    dealer, receiver = (own, peer) if sending else (peer, own)
    names = (length_prefixed(dealer[0]), length_prefixed(receiver[0]))
    return _loaded(private).derive(t1, peer, Label.CHANNEL, (*names, dealer[1], receiver[1]))


def _box_header(t1: bytes, dealer: str, receiver: str) -> bytes:
    return _info(Label.BOX, (t1, length_prefixed(dealer), length_prefixed(receiver)))


def seal_box(key: Secret, t1: bytes, dealer: str, receiver: str, plain: Secret) -> bytes:
    """AES-256-GCM. The zero nonce is right because a channel key seals one message, ever."""
    return AESGCM(memoryview(key)).encrypt(
        bytes(12), memoryview(plain), _box_header(t1, dealer, receiver)
    )


def open_box(key: Secret, t1: bytes, dealer: str, receiver: str, box: bytes) -> Secret:
    """The two shares of a box: 32 bytes of the mask seed's, 32 of the self seed's.

    Raises:
        PeerError: the box was not made by the dealer for this receiver in this round.
    """
    plain = Secret.zeros(2 * SHARE_BYTES)
    try:
        AESGCM(memoryview(key)).decrypt_into(
            bytes(12), box, _box_header(t1, dealer, receiver), memoryview(plain)
        )
    except (InvalidTag, ValueError) as error:
        plain.wipe()
        raise PeerError(dealer, "dealt a box that does not open") from error
    return plain


def split_box(plain: Secret) -> tuple[Secret, Secret]:
    """(share of the mask seed, share of the self seed); wipes what it split."""
    with memoryview(plain) as view:
        halves = (Secret.from_bytes(view[:SHARE_BYTES]), Secret.from_bytes(view[SHARE_BYTES:]))
    plain.wipe()
    return halves


def join_shares(mask_share: Secret, self_share: Secret) -> Secret:
    """Content of a box, 64 bytes."""
    joined = Secret.zeros(2 * SHARE_BYTES)
    with memoryview(joined) as view, memoryview(mask_share) as mask, memoryview(self_share) as own:
        view[:SHARE_BYTES] = mask
        view[SHARE_BYTES:] = own
    return joined


def update_id(t2: bytes, site: str) -> int:
    """The number in the headers of a site's chunks: follows from the round, so that chunks
    of another round or site are refused one by one."""
    return int.from_bytes(digest(Label.UPDATE_ID, t2, length_prefixed(site))[:8], "little")
