"""The native masks and ring words against the slow reference, on every instruction set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import aes, chacha20, ring
from reference.secagg import mask_words
from veilsum import _native
from veilsum._native import Secret
from veilsum.errors import ConfigError, DecodeError

VECTORS = json.loads((Path(__file__).parent / "vectors" / "secagg.json").read_text())
PAIR_KEY = bytes.fromhex(VECTORS["pair_key"])
ISAS = _native.supported_isas()
WIDTHS = [1, 7, 8, 12, 16, 20, 22, 24, 25, 26, 31, 32, 33, 48, 57, 58, 63, 64]
SEGMENT = 2**29  # elements that share a nonce

GENERATORS = ("chacha20", "aes256ctr")
# Every way this CPU can make masks: generator, instruction set, implementation of AES.
AES_PATHS = [("aes256ctr", isa, name) for isa in ISAS for name in _native.supported_aes()]
PATHS = [("chacha20", isa, "") for isa in ISAS] + AES_PATHS

# Each crosses a boundary of the stream: a tile (512), a run of tiles (4096), a byte, a
# vector, the nonce segment; the lengths are around the vector widths.
RANGES = [
    (0, 1), (0, 16), (0, 512), (1, 15), (5, 3), (7, 1029), (511, 2), (513, 64),
    (4090, 12), (4096, 4097), (SEGMENT - 3, 7), (SEGMENT - 600, 1200), (3 * SEGMENT + 17, 40),
]  # fmt: skip


def dtype_of(bits: int) -> type[np.uint32] | type[np.uint64]:
    return np.uint32 if bits <= 32 else np.uint64


def use(path: tuple[str, str, str]) -> None:
    _, isa, implementation = path
    _native.use_isa(isa)
    _native.use_aes(implementation)


def masks(
    keys, signs, first, count, bits, *, generator="chacha20", stream=1, threads=1, dtype=None
):
    """Mask sums from a zero accumulator, as Python integers."""
    words = np.zeros(count, dtype or dtype_of(bits))
    secrets = [Secret.from_bytes(key) for key in keys]
    _native.add_masks(
        words,
        secrets,
        signs,
        generator=generator,
        stream=stream,
        first=first,
        bits=bits,
        threads=threads,
    )
    return [int(word) % 2**bits for word in words]


def expected_sum(keys, signs, first, count, bits, *, generator="chacha20", stream=1):
    columns = [
        [sign * word for word in mask_words(key, stream, first, count, bits, generator)]
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


def test_the_reference_aes_gives_the_blocks_printed_in_the_standards():
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    first = bytes(range(0xF0, 0x100))
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )

    stream = aes.counter_stream(key, first, 4)

    # FIPS 197, C.3; SP 800-38A, F.5.5
    block = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert aes.encrypted(bytes(range(32)), block).hex() == "8ea2b7ca516745bfeafc49904b496089"
    assert bytes(a ^ b for a, b in zip(stream, plain, strict=True)).hex() == (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )


@pytest.mark.parametrize("path", AES_PATHS, ids="-".join)
def test_words_of_32_bits_are_the_counter_stream_of_the_standard_itself(path):
    use(path)
    for key in (bytes(range(32)), PAIR_KEY, b"\xff" * 32):
        counter = (7).to_bytes(4, "little") + bytes(4) + b"VSM1" + bytes(4)

        words = masks([key], [1], 0, 512, 32, generator="aes256ctr", stream=7)

        assert np.array(words, "<u4").tobytes() == aes.counter_stream(key, counter, 128)


@pytest.mark.parametrize("path", AES_PATHS, ids="-".join)
def test_every_byte_of_the_s_box_is_right(path):
    """A counter that runs through 2^16 values meets every byte in the first S-boxes, and
    the words behind 14 rounds depend on all of them."""
    use(path)
    words = masks([PAIR_KEY], [1], 0, 2**15, 32, generator="aes256ctr")

    assert words == mask_words(PAIR_KEY, 1, 0, 2**15, 32, "aes256ctr")


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_masks_are_the_golden_ones(path):
    rows = [row for row in VECTORS["masks"] if row["generator"] == path[0]]
    assert len(rows) == 9
    use(path)

    for row in rows:
        assert_golden(row)


def assert_golden(vector):
    generator, bits = vector["generator"], vector["bits"]
    words = masks([PAIR_KEY], [1], 0, 1024, bits, generator=generator)

    assert [f"{word:x}" for word in words[:4]] == vector["first"]
    assert [f"{word:x}" for word in words[511:513]] == vector["at_511"]
    digest = hashlib.sha256(np.array(words, "<u8").tobytes()).hexdigest()
    assert digest[:16] == vector["sha256_of_1024"]
    (far,) = masks([PAIR_KEY], [1], SEGMENT + 5, 1, bits, generator=generator)
    assert far == int(vector["at_536870917"], 16)


# --- any width, any range ----------------------------------------------------------------


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_any_range_of_a_mask_equals_the_reference_on_every_instruction_set(bits, generator):
    keys, signs = [PAIR_KEY, bytes(range(32)), b"\xff" * 32], [1, -1, -1]
    place = {"generator": generator, "stream": 0xFFFFFFFF}
    for first, count in RANGES:
        expected = expected_sum(keys, signs, first, count, bits, **place)
        for path in PATHS:
            if path[0] == generator:
                use(path)
                assert masks(keys, signs, first, count, bits, **place) == expected


@pytest.mark.parametrize("bits", [5, 22, 32])
def test_narrow_words_may_live_in_a_wide_accumulator(bits):
    expected = expected_sum([PAIR_KEY], [1], 3, 700, bits)
    for isa in ISAS:
        _native.use_isa(isa)
        assert masks([PAIR_KEY], [1], 3, 700, bits, dtype=np.uint64) == expected


@pytest.mark.parametrize("bits", [1, 22, 32, 33, 64])
@pytest.mark.parametrize(
    "path", [path for path in PATHS if path[0] == "chacha20" or path[1] == "base"], ids="-".join
)
def test_the_number_of_threads_does_not_show(path, bits):
    use(path)
    keys, first, count = [PAIR_KEY, bytes(32)], 4099, 3 * 65536 + 5

    alone = masks(keys, [1, -1], first, count, bits, generator=path[0], threads=1)

    assert masks(keys, [1, -1], first, count, bits, generator=path[0], threads=2) == alone
    part = masks(keys, [1, -1], first + 70_000, 50, bits, generator=path[0])
    assert part == alone[70_000:70_050]


@pytest.mark.parametrize("power", [8, 16, 24])
@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_block_numbers_carry_between_their_bytes(path, power):
    # Tiles of 7 bits have 28 AES blocks. These begin where few batches of any size would, so that
    # some batch has numbers on both sides of the power.
    use(path)
    blocks, tile_blocks = (4, 28) if path[0] == "aes256ctr" else (1, 7)
    before = 2**power // tile_blocks - blocks
    for tile in range(before, before + 2 * blocks):
        first, count = tile * 512, 2 * 512
        assert masks([PAIR_KEY], [1], first, count, 7, generator=path[0]) == mask_words(
            PAIR_KEY, 1, first, count, 7, path[0]
        )


@pytest.mark.parametrize("generator", GENERATORS)
def test_more_keys_than_are_made_ready_at_a_time_add_up(generator):
    keys = [number.to_bytes(32, "big") for number in range(1100)]
    signs = [1 - 2 * (number % 2) for number in range(1100)]

    expected = expected_sum(keys, signs, 510, 4, 22, generator=generator)

    assert masks(keys, signs, 510, 4, 22, generator=generator) == expected


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_generators_differ_under_one_key(path):
    use(path)
    other = next(generator for generator in GENERATORS if generator != path[0])

    words = masks([PAIR_KEY], [1], 0, 64, 64, generator=path[0])

    assert not set(words) & set(mask_words(PAIR_KEY, 1, 0, 64, 64, other))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 64),
    first=st.integers(0, 2**61 - 700),
    count=st.integers(0, 700),
    path=st.sampled_from(PATHS),
)
def test_a_mask_added_and_subtracted_leaves_the_words_alone(bits, first, count, path):
    use(path)
    place = {"generator": path[0], "stream": 2, "first": first, "bits": bits, "threads": 1}
    words = np.arange(count, dtype=dtype_of(bits)) * 0x9E3779B1
    key = Secret.from_bytes(PAIR_KEY)
    before = words.copy()

    _native.add_masks(words, [key], [1], **place)
    _native.add_masks(words, [key], [-1], **place)

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
        ({"generator": "rc4"}, "generator must be chacha20 or aes256ctr, got 'rc4'"),
        ({"signs": [0]}, r"sign 0 must be \+1 or -1, got 0"),
        ({"signs": []}, "1 keys, 0 signs"),
        ({"keys": [Secret.zeros(31)]}, "key 0 must have 32 bytes, got 31"),
    ],
)
def test_what_no_mask_can_be_made_of_is_refused_and_changes_nothing(change, reason):
    words = np.zeros(4, np.uint32)
    arguments = {"keys": [Secret.zeros(32)], "signs": [1], "stream": 1, "first": 0, "bits": 22}
    arguments |= {"generator": "chacha20", "threads": 1} | change

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
        _native.add_masks(
            words, [], [], generator="chacha20", stream=1, first=0, bits=22, threads=1
        )


def test_a_read_only_accumulator_is_refused():
    words = np.zeros(8, np.uint32)
    words.flags.writeable = False

    with pytest.raises(TypeError, match="accumulator must be writable"):
        _native.add_masks(
            words, [], [], generator="chacha20", stream=1, first=0, bits=22, threads=1
        )


def test_an_error_about_one_argument_does_not_print_the_others():
    words = np.full(8, 0xDEADBEEF, np.uint32)

    with pytest.raises(TypeError) as caught:
        _native.add_masks(
            words, [], [], generator="chacha20", stream="one", first=0, bits=22, threads=1
        )

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
