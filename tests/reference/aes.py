"""AES-256 as FIPS 197 prints it, one byte at a time, and its counter mode (SP 800-38A)."""

from __future__ import annotations

ROUNDS = 14


def times_x(byte: int) -> int:
    return (byte << 1) ^ (0x11B if byte & 0x80 else 0)


def product(a: int, b: int) -> int:
    total = 0
    while b:
        total ^= a if b & 1 else 0
        a, b = times_x(a), b >> 1
    return total


def sub_byte(byte: int) -> int:
    """The inverse in GF(2^8), then the affine map of FIPS 197, section 5.1.1."""
    inverse = next((x for x in range(256) if product(byte, x) == 1), 0)
    bits = [inverse >> i & 1 for i in range(8)]
    mapped = [
        bits[i] ^ bits[(i + 4) % 8] ^ bits[(i + 5) % 8] ^ bits[(i + 6) % 8] ^ bits[(i + 7) % 8]
        for i in range(8)
    ]
    return sum(bit << i for i, bit in enumerate(mapped)) ^ 0x63


SUB = [sub_byte(byte) for byte in range(256)]


def round_keys(key: bytes) -> list[bytes]:
    words = [key[at : at + 4] for at in range(0, 32, 4)]
    constant = 1
    for i in range(8, 4 * (ROUNDS + 1)):
        last = words[-1]
        if i % 8 == 0:
            last = bytes(SUB[byte] for byte in last[1:] + last[:1])
            last = bytes([last[0] ^ constant]) + last[1:]
            constant = times_x(constant)
        elif i % 8 == 4:
            last = bytes(SUB[byte] for byte in last)
        words.append(bytes(a ^ b for a, b in zip(words[-8], last, strict=True)))
    return [b"".join(words[at : at + 4]) for at in range(0, len(words), 4)]


def encrypted(key: bytes, block: bytes) -> bytes:
    first, *middle, final = round_keys(key)
    state = [a ^ b for a, b in zip(block, first, strict=True)]
    for round_key in (*middle, final):
        state = [SUB[byte] for byte in state]
        # Byte r + 4c of the state is row r, column c; row r moves r columns.
        state = [state[(i + 4 * (i % 4)) % 16] for i in range(16)]
        if round_key is not final:
            state = [
                times_x(state[i])
                ^ times_x(state[i // 4 * 4 + (i + 1) % 4])
                ^ state[i // 4 * 4 + (i + 1) % 4]
                ^ state[i // 4 * 4 + (i + 2) % 4]
                ^ state[i // 4 * 4 + (i + 3) % 4]
                for i in range(16)
            ]
        state = [a ^ b for a, b in zip(state, round_key, strict=True)]
    return bytes(state)


def counter_stream(key: bytes, first: bytes, blocks: int) -> bytes:
    """Keystream of counter mode; the counter is the whole block, big-endian."""
    start = int.from_bytes(first, "big")
    counters = ((start + i) % 2**128 for i in range(blocks))
    return b"".join(encrypted(key, counter.to_bytes(16, "big")) for counter in counters)
