"""No secret of a round is in memory once the round has ended: the process looks itself through.

A process holds a round whose secrets follow from a seed, and writes its memory to a file; here the
slow reference computes all the secrets anew and the file is searched for each of them, as it is and
in other spellings. The shares that sites returned to the coordinator are left out, as are the
long-term keys: see docs/security.md.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from support.dumped_round import SITES, WATCHED
from support.memory_scan import Scanner
from support.secrets_of_round import hold

pytestmark = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="the address sanitizer maps terabytes of shadow memory and keeps what was freed",
)

OTHERS = [site for site in SITES if site != WATCHED]


def found(folder: Path, file: str, secrets: dict[str, bytes]) -> set[str]:
    return Scanner(secrets).found_in((folder / file).read_bytes())


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A round with a dropout whose mask seed the coordinator rebuilt."""
    folder = tmp_path_factory.mktemp("completed")
    return folder, hold(folder)


@pytest.mark.slow
def test_nothing_secret_is_left_after_a_round(completed):
    folder, secrets = completed

    assert found(folder, "dump", secrets) == set()


@pytest.mark.slow
def test_nothing_secret_is_left_after_a_round_that_was_aborted(tmp_path):
    assert found(tmp_path, "dump", hold(tmp_path, "abort")) == set()


@pytest.mark.slow
def test_during_a_round_secrets_are_where_they_are_needed_and_only_what_is_needed(completed):
    """That the scan finds what there is to find, and how soon a site forgets."""
    folder, secrets = completed
    own = {name: secret for name, secret in secrets.items() if f" of {WATCHED}" in name}

    dealt = found(folder, "dump-dealt", own)
    ready = found(folder, "dump-ready", own)

    held = {f"{what} of {WATCHED}, raw" for what in ("m", "b", "sk_mask", "sk_chan")}
    masks = {f"K of {WATCHED} and {other}, raw" for other in OTHERS}
    shares = {name for name in dealt | ready if name.startswith("share of")}
    assert dealt - shares == held
    # The channel key stays for a complaint about a box of this dealer, until the update leaves.
    assert ready - shares == masks | {f"K_self of {WATCHED}, raw", f"sk_chan of {WATCHED}, raw"}
    assert f"share of m of {WATCHED} for {WATCHED}, raw" in ready - dealt


@pytest.mark.slow
def test_leaks_are_found(tmp_path):
    leaked = found(tmp_path, "dump", hold(tmp_path, "memory"))

    assert {f"sk_chan of {site}, raw" for site in SITES} <= leaked
    assert {f"draw for m of {site}, raw" for site in SITES} <= leaked
    assert {f"coefficients 2 for b of {site}, raw" for site in SITES} <= leaked
    assert not any(name.startswith(("K", "m of", "b of")) for name in leaked)


@pytest.mark.parametrize("before", [b"", b"?", b"??"])
def test_a_secret_is_found_in_whatever_form_it_is_written_down(before):
    secret = bytes(range(100, 132))
    swapped = b"".join(secret[at : at + 8][::-1] for at in range(0, 32, 8))
    clamped = bytes([secret[0] & 248]) + secret[1:31] + bytes([(secret[31] & 127) | 64])
    texts = [
        secret,
        swapped,
        secret[::-1],
        clamped,
        secret.hex().encode(),
        secret[:20],
        secret[14:],
    ]
    texts += [secret.hex().upper().encode(), base64.b64encode(before + secret + b"!")]

    scanner = Scanner({"it": secret})
    for text in texts:
        assert scanner.found_in(b"x" * 7 + before + text + b"y"), text
    assert not scanner.found_in(secret[1:16] + secret[18:])
