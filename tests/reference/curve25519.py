"""X25519 (RFC 7748) and Ed25519 (RFC 8032) in plain integers, slow and clear.

Only what vectors are made of and checked with: the ladder, points of the Edwards curve with their
encodings, and signing with whatever nonce one likes.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SQRT_MINUS_1 = pow(2, (P - 1) // 4, P)

Point: TypeAlias = tuple[int, int]
NEUTRAL: Point = (0, 1)

# --- RFC 7748 -------------------------------------------------------------------------------------


def clamp(private: bytes) -> int:
    """Section 5: the scalar of 32 private bytes."""
    scalar = bytearray(private)
    scalar[0] &= 248
    scalar[31] = (scalar[31] & 127) | 64
    return int.from_bytes(scalar, "little")


def ladder(scalar: int, u: int) -> int:
    """Section 5: u-coordinate of scalar * (u, .), on the curve or its twist."""
    x1, x2, z2, x3, z3, swap = u % P, 1, 0, u % P, 1, 0
    for bit in reversed(range(255)):
        if swap ^ (scalar >> bit & 1):
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = scalar >> bit & 1
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, aa, bb = d * a, c * b, a * a, b * b
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        e = aa - bb
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swap:
        x2, z2 = x3, z3
    return x2 * pow(z2, P - 2, P) % P


def x25519(private: bytes, public: bytes) -> bytes:
    """As the RFC computes it, whatever the public key is; the top bit is ignored."""
    u = int.from_bytes(public, "little") % 2**255
    return ladder(clamp(private), u).to_bytes(32, "little")


def on_curve(u: int) -> bool:
    """Whether y^2 = u^3 + 486662 u^2 + u has a solution; else the point is the twist's."""
    return pow(u * (u * u + 486662 * u + 1) % P, (P - 1) // 2, P) in (0, 1)


# --- RFC 8032 -------------------------------------------------------------------------------------


def add(one: Point, other: Point) -> Point:
    (x1, y1), (x2, y2) = one, other
    cross = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + cross, -1, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - cross, -1, P) % P


def times(scalar: int, point: Point) -> Point:
    total = NEUTRAL
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point, scalar = add(point, point), scalar >> 1
    return total


def encode(point: Point) -> bytes:
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def x_of(y: int) -> int | None:
    """Section 5.1.3: the even x of a point with this y, or None if there is none."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * SQRT_MINUS_1 % P
    if root * root % P != square:
        return None
    return root if root % 2 == 0 else P - root


def decode(data: bytes) -> Point | None:
    """The point, also of a second spelling; None if there is none."""
    number = int.from_bytes(data, "little")
    y, sign = number % 2**255 % P, number >> 255
    x = x_of(y)
    if x is None:
        return None
    return (P - x if sign and x else x), y


BASE: Point = (x_of(4 * pow(5, -1, P) % P) or 0, 4 * pow(5, -1, P) % P)


def small_order() -> list[Point]:
    """The eight points whose order divides 8."""
    y = 2
    while True:
        x = x_of(y)
        point = times(L, (x, y)) if x is not None else NEUTRAL
        if times(4, point) != NEUTRAL:
            return [times(number, point) for number in range(8)]
        y += 1


def hash_scalar(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % L


def scalar_of(seed: bytes) -> int:
    """Section 5.1.5: the secret scalar of a private key."""
    return clamp(hashlib.sha512(seed).digest()[:32])


def sign(
    seed: bytes, message: bytes, *, nonce: int | None = None, public: bytes | None = None
) -> bytes:
    """Section 5.1.6. Another nonce, or another spelling of the public key, is what an attacker
    would choose."""
    scalar, prefix = scalar_of(seed), hashlib.sha512(seed).digest()[32:]
    own = encode(times(scalar, BASE)) if public is None else public
    r = hash_scalar(prefix, message) if nonce is None else nonce
    commitment = encode(times(r, BASE))
    s = (r + hash_scalar(commitment, own, message) * scalar) % L
    return commitment + s.to_bytes(32, "little")


def verifies(public: bytes, message: bytes, signature: bytes, *, cofactor: int = 1) -> bool:
    """The equation of section 5.1.7, times a cofactor of 8 where verifiers use one; the
    encodings are not looked at."""
    a, r = decode(public), decode(signature[:32])
    if a is None or r is None:
        return False
    s = int.from_bytes(signature[32:], "little")
    k = hash_scalar(signature[:32], public, message)
    left, right = times(s % (8 * L), BASE), add(r, times(k, a))
    return times(cofactor, left) == times(cofactor, right)
