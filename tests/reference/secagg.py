"""The protocol, slow and clear: masks, shares and key schedule in plain Python integers.

Shares no code with the package. Only the primitives come from `cryptography`; the ring,
the field and the order of every hashed byte are spelled out here a second time.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

# --- bytes ------------------------------------------------------------------------------


def prefixed(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(data)) + data


def tagged_hash(tag: str, *parts: bytes) -> bytes:
    return hashlib.sha256(b"veilsum/v1/" + tag.encode() + b"\0" + b"".join(parts)).digest()


def derive(salt: bytes, key: bytes, tag: str, *parts: bytes) -> bytes:
    info = b"veilsum/v1/" + tag.encode() + b"\0" + b"".join(parts)
    return HKDF(SHA256(), 32, salt, info).derive(key)


def context(
    consortium: str, roster_hash: bytes, task: str, number: int, attempt: int, manifest: bytes
) -> bytes:
    where = struct.pack("<QI", number, attempt)
    return tagged_hash("ctx", prefixed(consortium), roster_hash, prefixed(task), where, manifest)


def chain(tag: str, previous: bytes, digests: Mapping[str, bytes]) -> bytes:
    """`digests`: sender -> SHA-256 of its payload."""
    parts = [previous, struct.pack("<I", len(digests))]
    for sender in sorted(digests):
        parts.append(prefixed(sender) + digests[sender])
    return tagged_hash(tag, *parts)


# --- masks: 512 elements of b bits are exactly b ChaCha20 blocks, or 4b AES blocks ----------

TILE = 512


def tile_stream(key: bytes, stream: int, tile: int, bits: int, generator: str) -> bytes:
    nonce = struct.pack("<II", stream, tile >> 20) + b"VSM1"
    block = (tile % 2**20) * bits
    if generator == "chacha20":
        cipher = Cipher(algorithms.ChaCha20(key, struct.pack("<I", block) + nonce), mode=None)
    else:
        counter = nonce + struct.pack(">I", 4 * block)
        cipher = Cipher(algorithms.AES(key), modes.CTR(counter))
    return cipher.encryptor().update(bytes(64 * bits))


def tile_words(key: bytes, stream: int, tile: int, bits: int, generator: str) -> list[int]:
    stream_bits = int.from_bytes(tile_stream(key, stream, tile, bits, generator), "little")
    return [(stream_bits >> (element * bits)) % 2**bits for element in range(TILE)]


def mask_words(
    key: bytes, stream: int, first: int, count: int, bits: int, generator: str = "chacha20"
) -> list[int]:
    words: list[int] = []
    for tile in range(first // TILE, -(-(first + count) // TILE)):
        words += tile_words(key, stream, tile, bits, generator)
    return words[first % TILE : first % TILE + count]


# --- Shamir over GF(2^128), two big-endian limbs per secret -------------------------------


def multiply(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a >> 128:
            a ^= (1 << 128) | 0x87
        b >>= 1
    return product


def invert(a: int) -> int:
    result, exponent = 1, 2**128 - 2
    while exponent:
        if exponent & 1:
            result = multiply(result, a)
        a, exponent = multiply(a, a), exponent >> 1
    return result


def limbs(secret: bytes) -> tuple[int, int]:
    return int.from_bytes(secret[:16], "big"), int.from_bytes(secret[16:], "big")


def deal(secret: bytes, coefficients: bytes, indices: Iterable[int]) -> list[bytes]:
    """`coefficients`: per limb, 16 bytes per degree from 1 up."""
    half = len(coefficients) // 2
    polynomials = []
    for limb, part in zip(limbs(secret), (coefficients[:half], coefficients[half:]), strict=True):
        higher = [int.from_bytes(part[at : at + 16], "big") for at in range(0, half, 16)]
        polynomials.append([limb, *higher])
    shares = []
    for x in indices:
        share = b""
        for polynomial in polynomials:
            y = 0
            for coefficient in reversed(polynomial):
                y = multiply(y, x) ^ coefficient
            share += y.to_bytes(16, "big")
        shares.append(share)
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes:
    secret = b""
    for limb in (0, 1):
        total = 0
        for x, share in shares.items():
            above = below = 1
            for other in shares:
                if other != x:
                    above, below = multiply(above, other), multiply(below, x ^ other)
            total ^= multiply(limbs(share)[limb], multiply(above, invert(below)))
        secret += total.to_bytes(16, "big")
    return secret


# --- keys ---------------------------------------------------------------------------------


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def exchange(private: bytes, peer: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(
        X25519PublicKey.from_public_bytes(peer)
    )


def mask_private(seed: bytes, ctx: bytes, site: str) -> bytes:
    return derive(ctx, seed, "sk/mask", prefixed(site))


def self_commitment(ctx: bytes, site: str, seed: bytes) -> bytes:
    return tagged_hash("com/b", ctx, prefixed(site), seed)


def rotation_key(ctx: bytes) -> bytes:
    return tagged_hash("rotation", ctx)[:8]


def share_commitment(kind: str, t1: bytes, dealer: str, receiver: str, share: bytes) -> bytes:
    return tagged_hash("com/" + kind, t1, prefixed(dealer), prefixed(receiver), share)


def dealt_root(entries: Sequence[tuple[bytes, bytes, bytes]]) -> bytes:
    """Merkle root over (commitment to m's share, to b's share, box) of each receiver in order.

    Level by level, a node without a partner moving up, which is the tree of RFC 9162.
    """
    level = [
        hashlib.sha256(b"\0" + mask + own + hashlib.sha256(box).digest()).digest()
        for mask, own, box in entries
    ]
    while len(level) > 1:
        pairs = [level[at : at + 2] for at in range(0, len(level), 2)]
        level = [
            hashlib.sha256(b"\1" + pair[0] + pair[1]).digest() if len(pair) == 2 else pair[0]
            for pair in pairs
        ]
    return level[0]


def share_deal(ctx: bytes, dealer: str, t1: bytes, root: bytes) -> bytes:
    """Payload of a dealer's signed header."""
    return prefixed("share-deal") + b"\1\0" + ctx + prefixed(dealer) + t1 + root


def self_key(t2: bytes, seed: bytes, site: str) -> bytes:
    return derive(t2, seed, "mask/self", prefixed(site))


def pair_key(t2: bytes, private: bytes, site: str, peer: str, peer_public: bytes) -> bytes:
    ends = sorted([(site, public(private)), (peer, peer_public)])
    names = [prefixed(name) for name, _ in ends]
    return derive(
        t2, exchange(private, peer_public), "mask/pair", *names, *(key for _, key in ends)
    )


def box_key(
    t1: bytes, private: bytes, dealer: tuple[str, bytes], receiver: tuple[str, bytes]
) -> bytes:
    """`private` belongs to one of the two; (name, public channel key) each."""
    peer = receiver[1] if public(private) == dealer[1] else dealer[1]
    names = prefixed(dealer[0]) + prefixed(receiver[0])
    return derive(t1, exchange(private, peer), "chan", names, dealer[1], receiver[1])


def seal(key: bytes, t1: bytes, dealer: str, receiver: str, plain: bytes) -> bytes:
    header = b"veilsum/v1/deal\0" + t1 + prefixed(dealer) + prefixed(receiver)
    return AESGCM(key).encrypt(bytes(12), plain, header)


# --- a masked update, and the sum of several ------------------------------------------------


def masked_words(
    words: Sequence[int],
    bits: int,
    stream: int,
    site: str,
    own_key: bytes,
    pair_keys: Mapping[str, bytes],
    generator: str = "chacha20",
) -> list[int]:
    """words + self mask + pair masks: added towards higher names, subtracted towards lower."""
    count = len(words)
    masked = list(words)
    masks = [(1, own_key)] + [(1 if site < peer else -1, key) for peer, key in pair_keys.items()]
    for sign, key in masks:
        for element, word in enumerate(mask_words(key, stream, 0, count, bits, generator)):
            masked[element] += sign * word
    return [word % 2**bits for word in masked]


def unmasked_sum(
    masked: Mapping[str, Sequence[int]],
    bits: int,
    stream: int,
    self_keys: Mapping[str, bytes],
    dropout_keys: Mapping[tuple[str, str], bytes],
    generator: str = "chacha20",
) -> list[int]:
    """Sum of the survivors' words, signed.

    Args:
        masked: survivor -> words.
        self_keys: survivor -> key.
        dropout_keys: (survivor, dropout) -> pair key.
    """
    count = len(next(iter(masked.values())))
    total = [sum(column) for column in zip(*masked.values(), strict=True)]
    removals = [(1, self_keys[site]) for site in masked]
    removals += [(1 if site < gone else -1, key) for (site, gone), key in dropout_keys.items()]
    for sign, key in removals:
        for element, word in enumerate(mask_words(key, stream, 0, count, bits, generator)):
            total[element] -= sign * word
    half = 2 ** (bits - 1)
    return [(word + half) % 2**bits - half for word in total]
