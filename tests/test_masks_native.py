"""The native masks and ring words against the slow reference, on every instruction set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import chacha20, ring
from reference.secagg import mask_words
from veilsum import _native
from veilsum._native import Secret
from veilsum.errors import ConfigError, DecodeError

VECTORS = json.loads((Path(__file__).parent / "vectors" / "secagg.json").read_text())
PAIR_KEY = bytes.fromhex(VECTORS["pair_key"])
ISAS = _native.supported_isas()
WIDTHS = [1, 7, 8, 12, 16, 20, 22, 24, 25, 26, 31, 32, 33, 48, 57, 58, 63, 64]
SEGMENT = 2**29  # elements that share a nonce

# Each crosses a boundary of the stream: a tile (512), a run of tiles (4096), a byte, a
# vector, the nonce segment; the lengths are around the vector widths.
RANGES = [
    (0, 1), (0, 16), (0, 512), (1, 15), (5, 3), (7, 1029), (511, 2), (513, 64),
    (4090, 12), (4096, 4097), (SEGMENT - 3, 7), (SEGMENT - 600, 1200), (3 * SEGMENT + 17, 40),
]  # fmt: skip


def dtype_of(bits: int) -> type[np.uint32] | type[np.uint64]:
    return np.uint32 if bits <= 32 else np.uint64


def masks(keys, signs, first, count, bits, *, stream=1, threads=1, dtype=None):
    """Mask sums from a zero accumulator, as Python integers."""
    words = np.zeros(count, dtype or dtype_of(bits))
    secrets = [Secret.from_bytes(key) for key in keys]
    _native.add_masks(words, secrets, signs, stream=stream, first=first, bits=bits, threads=threads)
    return [int(word) % 2**bits for word in words]


def expected_sum(keys, signs, first, count, bits, *, stream=1):
    columns = [
        [sign * word for word in mask_words(key, stream, first, count, bits)]
        for key, sign in zip(keys, signs, strict=True)
    ]
    return [sum(column) % 2**bits for column in zip(*columns, strict=True)]


# --- the generator ---------------------------------------------------------------------


def test_the_reference_cipher_gives_the_block_printed_in_rfc_8439():
    nonce = bytes.fromhex("000000090000004a00000000")

    assert chacha20.block(bytes(range(32)), 1, nonce).hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


@pytest.mark.parametrize("isa", ISAS)
def test_words_of_32_bits_are_the_cipher_stream_of_rfc_8439_itself(isa):
    _native.use_isa(isa)
    key = bytes(range(32))
    nonce = (7).to_bytes(4, "little") + bytes(4) + b"VSM1"

    words = masks([key], [1], 0, 512, 32, stream=7)

    stream = b"".join(chacha20.block(key, counter, nonce) for counter in range(32))
    assert np.array(words, "<u4").tobytes() == stream


@pytest.mark.parametrize("vector", VECTORS["masks"], ids=lambda vector: f"b{vector['bits']}")
@pytest.mark.parametrize("isa", ISAS)
def test_masks_are_the_golden_ones(isa, vector):
    _native.use_isa(isa)
    bits = vector["bits"]

    words = masks([PAIR_KEY], [1], 0, 1024, bits)

    assert [f"{word:x}" for word in words[:4]] == vector["first"]
    assert [f"{word:x}" for word in words[511:513]] == vector["at_511"]
    digest = hashlib.sha256(np.array(words, "<u8").tobytes()).hexdigest()
    assert digest[:16] == vector["sha256_of_1024"]
    assert masks([PAIR_KEY], [1], SEGMENT + 5, 1, bits) == [int(vector["at_536870917"], 16)]


# --- any width, any range ----------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
def test_any_range_of_a_mask_equals_the_reference_on_every_instruction_set(bits):
    keys, signs = [PAIR_KEY, bytes(range(32)), b"\xff" * 32], [1, -1, -1]
    for first, count in RANGES:
        expected = expected_sum(keys, signs, first, count, bits, stream=0xFFFFFFFF)
        for isa in ISAS:
            _native.use_isa(isa)
            assert masks(keys, signs, first, count, bits, stream=0xFFFFFFFF) == expected


@pytest.mark.parametrize("bits", [5, 22, 32])
def test_narrow_words_may_live_in_a_wide_accumulator(bits):
    expected = expected_sum([PAIR_KEY], [1], 3, 700, bits)
    for isa in ISAS:
        _native.use_isa(isa)
        assert masks([PAIR_KEY], [1], 3, 700, bits, dtype=np.uint64) == expected


@pytest.mark.parametrize("bits", [1, 22, 32, 33, 64])
@pytest.mark.parametrize("isa", ISAS)
def test_the_number_of_threads_does_not_show(isa, bits):
    _native.use_isa(isa)
    keys, first, count = [PAIR_KEY, bytes(32)], 4099, 3 * 65536 + 5

    alone = masks(keys, [1, -1], first, count, bits, threads=1)

    assert masks(keys, [1, -1], first, count, bits, threads=2) == alone
    assert masks(keys, [1, -1], first + 70_000, 50, bits) == alone[70_000:70_050]


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 64),
    first=st.integers(0, 2**61 - 700),
    count=st.integers(0, 700),
    isa=st.sampled_from(ISAS),
)
def test_a_mask_added_and_subtracted_leaves_the_words_alone(bits, first, count, isa):
    _native.use_isa(isa)
    words = np.arange(count, dtype=dtype_of(bits)) * 0x9E3779B1
    key = Secret.from_bytes(PAIR_KEY)
    before = words.copy()

    _native.add_masks(words, [key], [1], stream=2, first=first, bits=bits, threads=1)
    _native.add_masks(words, [key], [-1], stream=2, first=first, bits=bits, threads=1)

    assert np.array_equal(words, before)


def test_the_last_element_of_a_stream_can_be_masked_and_none_beyond():
    assert masks([PAIR_KEY], [1], 2**61 - 1, 1, 22) == mask_words(PAIR_KEY, 1, 2**61 - 1, 1, 22)

    with pytest.raises(ConfigError, match="leave the mask stream"):
        masks([PAIR_KEY], [1], 2**61 - 1, 2, 22)


def test_different_streams_give_different_masks():
    one, two = (masks([PAIR_KEY], [1], 0, 64, 22, stream=stream) for stream in (1, 2))

    assert one != two


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bits": 0}, "bits must be"),
        ({"bits": 65}, "bits must be"),
        ({"bits": 33}, "bits must be 1 to 32 for words of 32 bits, got 33"),
        ({"first": -1}, "first must be"),
        ({"first": 2**61}, "leave the mask stream"),
        ({"stream": 2**32}, "stream must be"),
        ({"threads": 0}, "threads must be"),
        ({"signs": [0]}, r"sign 0 must be \+1 or -1, got 0"),
        ({"signs": []}, "1 keys, 0 signs"),
        ({"keys": [Secret.zeros(31)]}, "key 0 must have 32 bytes, got 31"),
    ],
)
def test_what_no_mask_can_be_made_of_is_refused_and_changes_nothing(change, reason):
    words = np.zeros(4, np.uint32)
    arguments = {"keys": [Secret.zeros(32)], "signs": [1], "stream": 1, "first": 0, "bits": 22}
    arguments |= {"threads": 1} | change

    with pytest.raises(ConfigError, match=reason):
        _native.add_masks(words, arguments.pop("keys"), arguments.pop("signs"), **arguments)

    assert not words.any()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (np.zeros(8, np.int64), "accumulator must have dtype uint32 or uint64, got int64"),
        (np.zeros(8, ">u4"), "accumulator must have dtype"),
        (np.zeros(8, np.uint32)[::2], "accumulator must be C-contiguous"),
        ([0, 0], "accumulator must be a NumPy array, got list"),
    ],
)
def test_an_array_that_would_need_a_copy_is_refused_by_name(words, reason):
    with pytest.raises(TypeError, match=reason):
        _native.add_masks(words, [], [], stream=1, first=0, bits=22, threads=1)


def test_a_read_only_accumulator_is_refused():
    words = np.zeros(8, np.uint32)
    words.flags.writeable = False

    with pytest.raises(TypeError, match="accumulator must be writable"):
        _native.add_masks(words, [], [], stream=1, first=0, bits=22, threads=1)


def test_an_error_about_one_argument_does_not_print_the_others():
    words = np.full(8, 0xDEADBEEF, np.uint32)

    with pytest.raises(TypeError) as caught:
        _native.add_masks(words, [], [], stream="one", first=0, bits=22, threads=1)

    assert str(caught.value) == "stream must be an integer, got str"


# --- packing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 65))
def test_packing_is_one_little_endian_bit_string_and_unpacking_its_inverse(bits):
    for count in (0, 1, 2, 7, 8, 9, 31, 64, 301):
        values = [(index * 0x9E3779B97F4A7C15 + 5) % 2**64 for index in range(count)]
        low = [value % 2**bits for value in values]
        for dtype in [np.uint64] + ([np.uint32] if bits <= 32 else []):
            words = np.array([value % 2 ** (8 * dtype().nbytes) for value in values], dtype)
            for isa in ISAS:
                _native.use_isa(isa)
                data = _native.pack_ring(words, bits)
                assert data == ring.packed(low, bits)
                assert _native.unpack_ring(data, count, bits).tolist() == low


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=40), count=st.integers(0, 400), bits=st.integers(1, 64))
def test_bytes_unpack_only_if_packing_gives_them_back(data, count, bits):
    try:
        words = _native.unpack_ring(data, count, bits)
    except DecodeError:
        exact = len(data) == -(-count * bits // 8)
        assert not exact or ring.packed(ring.unpacked(data, count, bits), bits) != data
    else:
        assert _native.pack_ring(words, bits) == data


@pytest.mark.parametrize(
    ("data", "count", "bits", "reason"),
    [
        (b"\x00\x00", 3, 5, None),
        (b"\x00\x80", 3, 5, "padding bit"),
        (b"\x01", 0, 5, "0 bytes, got 1"),
        (b"\x00\x00\x00", 3, 5, "2 bytes, got 3"),
        (b"\x00", 3, 5, "2 bytes, got 1"),
        (b"", 2**40, 1, "cannot be in 0 bytes"),
    ],
)
def test_foreign_words_with_a_wrong_length_or_padding_are_refused(data, count, bits, reason):
    if reason is None:
        assert not _native.unpack_ring(data, count, bits).any()
        return
    with pytest.raises(DecodeError, match=reason):
        _native.unpack_ring(data, count, bits)


@pytest.mark.parametrize("bits", [1, 2, 22, 31, 32, 33, 63, 64])
def test_centering_lifts_words_to_the_signed_range_of_their_width(bits):
    edges = [0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1]
    words = np.array(edges, np.uint64)

    lifted = _native.center_ring(words, bits)

    assert lifted.dtype == np.int64
    assert lifted.tolist() == [ring.centered(edge, bits) for edge in edges]
    if bits < 64:
        scratch = words | np.uint64(1 << 63)
        assert _native.center_ring(scratch, bits).tolist() == lifted.tolist()
