"""The native module is what its stub says, on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from veilsum import _native
from veilsum._native import Secret
from veilsum.errors import ConfigError

ROOT = Path(__file__).parents[1]


def test_the_stub_says_what_the_module_has() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy.stubtest", "veilsum._native", "--concise"),
            *("--allowlist", str(ROOT / "tests" / "stubtest_allowlist.txt")),
            "--ignore-unused-allowlist",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def _masked_words(bits: int, generator: str) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    words = np.arange(3001, dtype=np.uint64 if bits > 32 else np.uint32)
    keys = [Secret.from_bytes(bytes([number]) * 32) for number in (1, 2, 3)]
    place = {"stream": 1, "first": 509, "bits": bits, "threads": 1}
    _native.add_masks(words, keys, [1, -1, 1], generator=generator, **place)
    return words


@pytest.mark.parametrize("generator", ["chacha20", "aes256ctr"])
@pytest.mark.parametrize("bits", [1, 13, 16, 22, 32, 33, 64])
def test_every_instruction_set_masks_to_the_same_bits(bits: int, generator: str) -> None:
    packed = set()
    for isa in _native.supported_isas():
        _native.use_isa(isa)
        for aes in _native.supported_aes() if generator == "aes256ctr" else [""]:
            _native.use_aes(aes)
            packed.add(_native.pack_ring(_masked_words(bits, generator), bits))

    assert len(packed) == 1


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16", "int8", "ring22"])
def test_every_instruction_set_encodes_to_the_same_bytes(codec: str) -> None:
    values = np.sin(np.arange(10_000, dtype=np.float32) * 0.37) * 0.9
    layout = _native.Layout([("w", "f32", (10_000,))])
    is_ring = codec.startswith("ring")
    encoded = set()
    for isa in _native.supported_isas():
        _native.use_isa(isa)
        chunks = _native.encode_chunks(
            layout,
            [values],
            codec=_native.codec_number(codec),
            scale=32767.0 if is_ring else 0.0,
            limit=1.0 if is_ring else 0.0,
            rounding=None,
            least_error=False,
            plan_digest=bytes(32),
            update_id=1,
            chunk_coordinates=4096,
            threads=1,
        )
        encoded.add(b"".join(chunks))

    assert len(encoded) == 1


def test_an_instruction_set_that_this_cpu_lacks_is_an_error_not_a_fall_back() -> None:
    with pytest.raises(ConfigError, match="v9"):
        _native.use_isa("v9")

    assert _native.active_isa() in _native.supported_isas()
