"""The secret behind a site's stochastic rounding."""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from veilsum._native import Secret
from veilsum.control import RoundId

SECRET_BYTES = 32
_LABEL = b"veilsum/rounding"


def rounding_secret(seed: Secret, round_id: RoundId, site: str) -> Secret:
    """32 bytes for one site in one round, HKDF-SHA256 (RFC 5869) of the site's own seed.

    The attempt is left out on purpose: an update that is encoded again has to give the same
    steps, or the difference of two encodings would tell more about it than one does. An update
    that was trained anew for another attempt is rounded with the same secret: what leaves the
    site of either is masked, and sums of rounded values do not show how they were rounded.

        info = "veilsum/rounding" || LE32 length || run id || LE64 round || LE32 length || site
    """
    run, name = round_id.run_id.encode(), site.encode()
    info = b"".join(
        (
            _LABEL,
            struct.pack("<I", len(run)) + run,
            struct.pack("<Q", round_id.number),
            struct.pack("<I", len(name)) + name,
        )
    )
    secret = Secret.zeros(SECRET_BYTES)
    with memoryview(seed) as key, memoryview(secret) as derived:
        HKDF(SHA256(), SECRET_BYTES, None, info).derive_into(key, derived)
    return secret
