"""Masks and masked sums on devices have the bits of the CPU and of the slow reference, whatever the
device does in which order; one that fails, or computes another bit, never gives a sum; and no key
stays behind in its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reference.secagg import mask_words
from support.devices import every_device, small_windows
from support.secagg import NAMES, make_contributions, make_plan, small_arrays
from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.aggregate import tile_audit
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import ConfigError, DecodeError, DeviceError, RoundAborted
from veilsum.model import ModelLayout

Words = NDArray[Any]

WIDTHS = [1, 2, 7, 8, 15, 16, 20, 22, 31, 32, 33, 40, 48, 57, 58, 63, 64]
GENERATORS = ("chacha20", "aes256ctr")
SEGMENT = 2**29  # elements that share a nonce
CHUNK = 4096
# Around the ends of a tile (512), a piece of four, a window of eight and a nonce segment.
RANGES = [
    (0, 1), (0, 512), (5, 3), (511, 2), (1, 511), (63, 65), (513, 1536), (1900, 700), (2047, 2),
    (0, 2049), (4090, 4200), (SEGMENT - 700, 1500), (3 * SEGMENT + 17, 40),
]  # fmt: skip


def secrets(count: int) -> list[Secret]:
    return [Secret.from_bytes(bytes((31 * k + i) % 256 for i in range(32))) for k in range(count)]


def signs_of(count: int) -> list[int]:
    return [-1 if k % 3 == 1 else 1 for k in range(count)]


def start(count: int, bits: int, *, wide: bool = False) -> Words:
    """Sums that are there before; some have bits above the ring's."""
    values = np.random.default_rng(count).integers(0, 2**64, count, np.uint64)
    return values if wide or bits > 32 else values.astype(np.uint32)


def kept(words: Words, bits: int) -> Words:
    kept_bits: Words = words & words.dtype.type(2**bits - 1)
    return kept_bits


def masked(
    backend: str,
    keys: Sequence[Secret],
    signs: Sequence[int],
    *,
    bits: int,
    first: int = 0,
    count: int = 1100,
    generator: str = "chacha20",
    wide: bool = False,
    threads: int = 2,
) -> Words:
    words = start(count, bits, wide=wide)
    _native.add_masks(
        words,
        keys,
        signs,
        generator=generator,
        stream=1,
        first=first,
        bits=bits,
        threads=threads,
        backend=backend,
    )
    return kept(words, bits)


# --- masks ------------------------------------------------------------------------------


@every_device
@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_masks_of_a_device_are_those_of_the_cpu(bits: int, generator: str, backend: str) -> None:
    keys, signs = secrets(5), signs_of(5)
    for first, count in RANGES:
        for wide in {bits > 32, True}:
            form = {"bits": bits, "first": first, "count": count, "wide": wide}
            there = masked(backend, keys, signs, generator=generator, **form)  # type: ignore[arg-type]
            here = masked("cpu", keys, signs, generator=generator, **form)  # type: ignore[arg-type]
            assert np.array_equal(there, here), form


@every_device
@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("bits", range(1, 65))
def test_masks_of_a_device_are_those_of_the_reference(
    bits: int, generator: str, backend: str
) -> None:
    key = bytes(range(100, 132))
    first, count = 509, 7
    words = np.zeros(count, np.uint64)
    _native.add_masks(
        words,
        [Secret.from_bytes(key)],
        [1],
        generator=generator,
        stream=7,
        first=first,
        bits=bits,
        threads=1,
        backend=backend,
    )
    assert words.tolist() == mask_words(key, 7, first, count, bits, generator)


@every_device
@pytest.mark.parametrize("generator", GENERATORS)
def test_any_number_of_keys_is_added(generator: str, backend: str) -> None:
    for count in (0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 40):
        keys, signs = secrets(count), signs_of(count)
        for bits in (22, 33):
            there = masked(backend, keys, signs, bits=bits, generator=generator)
            here = masked("cpu", keys, signs, bits=bits, generator=generator)
            assert np.array_equal(there, here), (count, bits)


@every_device
@pytest.mark.parametrize("sign", [1, -1])
def test_masks_of_one_sign_only_are_added(sign: int, backend: str) -> None:
    keys = secrets(9)
    there = masked(backend, keys, [sign] * 9, bits=26)
    assert np.array_equal(there, masked("cpu", keys, [sign] * 9, bits=26))


@every_device
def test_more_keys_than_go_to_a_device_at_once_are_added(backend: str) -> None:
    keys, signs = secrets(1030), signs_of(1030)
    there = masked(backend, keys, signs, bits=20, count=3)
    assert np.array_equal(there, masked("cpu", keys, signs, bits=20, count=3))


@every_device
def test_a_device_refuses_what_the_cpu_refuses(backend: str) -> None:
    words = np.zeros(4, np.uint32)
    form = {"generator": "chacha20", "stream": 1, "threads": 1, "backend": backend}
    with pytest.raises(ConfigError, match="bits must be 1 to 32"):
        _native.add_masks(words, secrets(1), [1], first=0, bits=33, **form)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave the mask stream"):
        _native.add_masks(words, secrets(1), [1], first=2**61 - 2, bits=8, **form)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown backend 'gpu'"):
        _native.add_masks(words, secrets(1), [1], first=0, bits=8, **{**form, "backend": "gpu"})  # type: ignore[arg-type]
    assert not words.any()


def test_bits_above_the_ring_come_back_as_zeros() -> None:
    words = start(700, 22)
    _native.add_masks(
        words, secrets(3), [1, 1, -1], generator="chacha20", stream=1, first=0, bits=22,
        threads=1, backend="emu",
    )  # fmt: skip
    assert not (words >> 22).any()


# --- packed words -----------------------------------------------------------------------


def uploads_of(count: int, number: int, bits: int) -> list[list[bytes]]:
    random = np.random.default_rng(bits)
    return [
        _native.ring_word_chunks(
            random.integers(0, 2**64, count, np.uint64),
            bits=bits,
            group=1,
            keys=[],
            signs=[],
            generator="chacha20",
            plan_digest=bytes(32),
            update_id=7,
            chunk_coordinates=CHUNK,
            threads=1,
        )
        for _ in range(number)
    ]


def folded(backend: str, uploads: Sequence[Sequence[bytes]], count: int, bits: int) -> Words:
    sums = start(count, bits)
    _native.fold_ring_chunks(
        sums, uploads, bits=bits, chunk_coordinates=CHUNK, threads=2, backend=backend
    )
    return kept(sums, bits)


@every_device
@pytest.mark.parametrize("bits", range(1, 65))
def test_uploads_folded_on_a_device_are_those_folded_on_the_cpu(bits: int, backend: str) -> None:
    for count, number in ((1, 1), (511, 2), (513, 5), (CHUNK, 3), (2 * CHUNK + 77, 4)):
        uploads = uploads_of(count, number, bits)
        there = folded(backend, uploads, count, bits)
        assert np.array_equal(there, folded("cpu", uploads, count, bits)), (count, number)


@every_device
def test_many_uploads_are_folded_in_parts_that_fit(backend: str) -> None:
    uploads = uploads_of(CHUNK + 700, 40, 22)
    expected = folded("cpu", uploads, CHUNK + 700, 22)
    for window_bytes in (1, 12_000, 40_000, 1 << 20):
        _native.use_pass_memory(window_bytes=window_bytes, window_tiles=256)
        assert np.array_equal(folded(backend, uploads, CHUNK + 700, 22), expected)


@every_device
def test_chunks_that_are_not_the_whole_group_are_refused_before_anything_is_added(
    backend: str,
) -> None:
    chunks = uploads_of(2 * CHUNK + 64, 1, 22)[0]
    sums = np.zeros(2 * CHUNK + 64, np.uint32)
    with pytest.raises(DecodeError, match="3 chunks, got 2"):
        _native.fold_ring_chunks(
            sums, [chunks, chunks[:2]], bits=22, chunk_coordinates=CHUNK, threads=1, backend=backend
        )
    assert not sums.any()


@pytest.mark.parametrize("bits", [1, 22, 33, 64])
def test_tiles_are_folded_as_in_the_whole(bits: int) -> None:
    count, tiles = 2 * CHUNK + 77, [0, 3, 7, 8, 15, 16]
    uploads = uploads_of(count, 3, bits)
    whole = np.zeros(count, np.uint32 if bits <= 32 else np.uint64)
    _native.fold_ring_chunks(whole, uploads, bits=bits, chunk_coordinates=CHUNK, threads=1)
    sums = np.zeros(512 * len(tiles), whole.dtype)
    _native.fold_ring_tiles(
        sums, uploads, tiles=tiles, elements=count, bits=bits, chunk_coordinates=CHUNK
    )
    padded = np.concatenate([whole, np.zeros(512, whole.dtype)])
    for place, tile in enumerate(tiles):
        size = min(512, count - 512 * tile)
        mine = sums[512 * place : 512 * place + size]
        assert np.array_equal(kept(mine, bits), kept(padded[512 * tile :][:size], bits))


def test_tiles_that_are_not_there_are_refused() -> None:
    uploads = uploads_of(1024, 1, 22)
    form = {"elements": 1024, "bits": 22, "chunk_coordinates": CHUNK}
    for tile in (2, 2**64 - 1):
        with pytest.raises(ConfigError, match="there is no tile"):
            _native.fold_ring_tiles(np.zeros(512, np.uint32), uploads, tiles=[tile], **form)
    with pytest.raises(ConfigError, match="1 tiles are 512 sums, got 511"):
        _native.fold_ring_tiles(np.zeros(511, np.uint32), uploads, tiles=[0], **form)


# --- shapes, orders, windows ------------------------------------------------------------


def everything(backend: str, bits: int = 22) -> list[Words]:
    keys, signs = secrets(6), signs_of(6)
    uploads = uploads_of(3 * CHUNK + 99, 5, bits)
    return [
        folded(backend, uploads, 3 * CHUNK + 99, bits),
        *(
            masked(backend, keys, signs, bits=bits, first=300, count=9000, generator=generator)
            for generator in GENERATORS
        ),
    ]


def same(some: list[Words], others: list[Words]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


@every_device
@pytest.mark.parametrize("shape", [(1, 32), (2, 64), (3, 128), (1, 224), (0, 256)])
def test_every_launch_shape_gives_the_same_bits(shape: tuple[int, int], backend: str) -> None:
    for bits in (22, 33):
        expected = everything("cpu", bits)
        _native.use_launch_shape(blocks=shape[0], threads=shape[1])
        assert same(everything(backend, bits), expected)


def test_every_order_of_threads_blocks_and_streams_gives_the_same_bits() -> None:
    expected = everything("cpu")
    for seed in range(1, 7):
        _native.use_emulator(seed=seed)
        with small_windows():
            assert same(everything("emu"), expected)


@every_device
def test_windows_of_any_size_give_the_same_bits(backend: str) -> None:
    expected = everything("cpu")
    for tiles in (1, 2, 3):
        with small_windows(tiles):
            assert same(everything(backend), expected)


def test_memory_does_not_grow_with_model_or_uploads() -> None:
    """Three windows of sums and of what is added, whatever passes through them."""
    _native.use_pass_memory(window_bytes=1 << 16, window_tiles=4)
    uploads = uploads_of(20 * CHUNK, 30, 22)
    expected = folded("cpu", uploads, 20 * CHUNK, 22)
    _native.use_emulator(memory_bytes=6 * (1 << 17))
    assert np.array_equal(folded("emu", uploads, 20 * CHUNK, 22), expected)


# --- failures ---------------------------------------------------------------------------


def jobs() -> list[Any]:
    keys, signs = secrets(3), signs_of(3)
    uploads = uploads_of(2 * CHUNK + 7, 3, 22)
    return [
        lambda: folded("emu", uploads, 2 * CHUNK + 7, 22),
        lambda: masked("emu", keys, signs, bits=22, count=9000),
        lambda: masked("emu", keys, signs, bits=33, count=9000, generator="aes256ctr"),
    ]


@pytest.mark.parametrize("job", range(3))
@pytest.mark.parametrize("seed", [0, 3])
def test_a_device_that_is_lost_at_any_call_is_an_error_and_leaves_no_memory(
    job: int, seed: int
) -> None:
    work = jobs()[job]
    with small_windows():
        _native.use_emulator(seed=seed)
        expected = work()
        calls = _native.emulator_calls()
        for lost_at in range(1, calls + 1):
            _native.use_emulator(seed=seed, lost_at_call=lost_at)
            with suppress(DeviceError):  # none if memory was being given back: the sum was taken
                assert np.array_equal(work(), expected)
            assert _native.emulator_bytes() == 0
        assert calls > 20


@pytest.mark.parametrize("job", range(3))
def test_a_device_without_memory_is_an_error_that_leaves_none_behind(job: int) -> None:
    work = jobs()[job]
    for memory in (1, 5000, 30_000):
        _native.use_emulator(memory_bytes=memory)
        with pytest.raises(DeviceError, match="out of memory"):
            work()
        assert _native.emulator_bytes() == 0


# --- secrets ----------------------------------------------------------------------------


KEY = bytes(range(60, 92))


def first_round_planes(key: bytes) -> bytes:
    """The first round key of AES in planes (csrc/element/aes.h), as it lies on a device."""
    planes = []
    for plane in range(8):
        word = 0
        for place, byte in enumerate(key[:16]):
            bits = 0xF if byte >> plane & 1 else 0  # the same in four blocks
            word |= bits << (16 * (place % 4) + 4 * (place // 4))
        planes.append(word.to_bytes(8, "little"))
    return b"".join(planes)


def words_left(generator: str) -> bytes:
    """A few masks that are added to zeros, as they lie in the sums' memory."""
    words = mask_words(KEY, 1, 40, 8, 32, generator)
    return np.array(words, np.uint32).tobytes()


def keystream_left(generator: str) -> bytes:
    """What a block of threads has in shared memory: at this width elements are its words."""
    return np.array(mask_words(KEY, 1, 100, 4, 32, generator), np.uint32).tobytes()


NEEDLES = {
    "key": ("chacha20", KEY),
    "half of a key": ("chacha20", KEY[16:]),
    "round keys": ("aes256ctr", first_round_planes(KEY)),
    "sums of ChaCha20": ("chacha20", words_left("chacha20")),
    "sums of AES": ("aes256ctr", words_left("aes256ctr")),
    "keystream of ChaCha20": ("chacha20", keystream_left("chacha20")),
    "keystream of AES": ("aes256ctr", keystream_left("aes256ctr")),
}


def add_one_key(generator: str) -> None:
    _native.add_masks(
        np.zeros(9000, np.uint32), [Secret.from_bytes(KEY)], [1],
        generator=generator, stream=1, first=0, bits=32, threads=1, backend="emu",
    )  # fmt: skip


@pytest.mark.parametrize("needle", NEEDLES)
def test_no_secret_is_left_in_memory_of_a_device(needle: str) -> None:
    generator, secret = NEEDLES[needle]
    _native.use_emulator(needle=secret)
    add_one_key(generator)
    assert _native.emulator_needles() == 0


@pytest.mark.parametrize("needle", NEEDLES)
def test_no_secret_is_left_when_memory_runs_out_in_between(needle: str) -> None:
    generator, secret = NEEDLES[needle]
    key_bytes = 32 if generator == "chacha20" else 960
    with small_windows():
        for memory in (key_bytes, key_bytes + 4 * CHUNK, key_bytes + 8 * CHUNK):
            _native.use_emulator(memory_bytes=memory, needle=secret)
            with pytest.raises(DeviceError, match="out of memory"):
                add_one_key(generator)
            assert _native.emulator_needles() == 0
            assert _native.emulator_bytes() == 0


# --- rounds and their audit ----------------------------------------------------------------


LARGE = ModelLayout.from_arrays(small_arrays(0, size=70_000))


def run(backend: str, drop: Mapping[str, Any] | None = None, **changes: Any) -> str:
    plan = make_plan(5, layout=LARGE, **changes)
    updates = make_contributions(plan, lambda number: small_arrays(number, 70_000))
    return secagg.run_in_process(plan, updates, drop=drop, backend=backend).digest


@every_device
@pytest.mark.parametrize("generator", GENERATORS)
def test_a_masked_round_on_a_device_has_the_digest_of_the_cpu(generator: str, backend: str) -> None:
    drop = {NAMES[1]: "inputs"}
    expected = run("cpu", drop, mask_generator=generator)
    assert run(backend, drop, mask_generator=generator) == expected


def test_a_round_on_a_device_that_is_lost_aborts() -> None:
    _native.use_emulator()
    run("emu")
    calls = _native.emulator_calls()
    for lost_at in (1, calls // 2, calls - 20):
        _native.use_emulator(lost_at_call=lost_at)
        with pytest.raises(RoundAborted, match="the device is lost"):
            run("emu")
        assert _native.emulator_bytes() == 0


SPEC = make_plan(5).ring
TALL = make_plan(5, layout=LARGE).ring


def secure_sum(spec: Any = TALL) -> SecureSum:
    return SecureSum(spec, backend="emu", audit_seed=bytes(range(32)))


def upload(spec: Any) -> list[bytes]:
    return [
        chunk
        for stream in spec.streams
        for chunk in _native.ring_word_chunks(
            np.arange(stream.elements, dtype=np.uint64),
            bits=stream.bits,
            group=stream.group,
            keys=[],
            signs=[],
            generator="chacha20",
            plan_digest=bytes(32),
            update_id=7,
            chunk_coordinates=spec.chunk_coordinates,
            threads=1,
        )
    ]


@pytest.mark.parametrize("step", ["fold_ring_chunks", "add_masks"])
@pytest.mark.parametrize("spec", [SPEC, TALL], ids=["few tiles", "many tiles"])
def test_the_audit_refuses_what_a_device_spoils(
    step: str, spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit in every eighth tile, as a broken lane would."""
    right = getattr(_native, step)

    def spoil(words: Words, *args: Any, backend: str = "cpu", **options: Any) -> None:
        right(words, *args, backend=backend, **options)
        if backend != "cpu":
            words[:: 8 * 512] ^= words.dtype.type(1)

    total = secure_sum(spec)
    monkeypatch.setattr(_native, step, spoil)
    total.fold(upload(spec))
    total.add_masks(secrets(3), [1, -1, 1])
    with pytest.raises(DeviceError, match="emu computed another sum than the CPU in tile"):
        total.finish(1)


def test_the_audit_sees_every_tile_where_there_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in range(SPEC.streams[1].elements):
        total = secure_sum(SPEC)
        total.fold(upload(SPEC))
        total._words[1][place] ^= 1
        with pytest.raises(DeviceError, match="in tile 0 of stream 1"):
            total.finish(1)


def test_audited_tiles_are_different_ones_that_the_seed_chooses() -> None:
    chosen = [tile_audit.chosen_tiles(bytes([n]) * 32, 1, 1000) for n in range(20)]
    assert all(len(set(tiles)) == 64 and max(tiles) < 1000 for tiles in chosen)
    assert len({tuple(tiles) for tiles in chosen}) == 20
    assert tile_audit.chosen_tiles(bytes(32), 1, 1000) != tile_audit.chosen_tiles(
        bytes(32), 2, 1000
    )
    assert tile_audit.chosen_tiles(bytes(32), 1, 64) == list(range(64))


def test_a_sum_on_a_device_needs_the_seed_of_its_audit() -> None:
    for seed in (None, b"", bytes(31)):
        with pytest.raises(ConfigError, match="it needs audit_seed"):
            SecureSum(SPEC, backend="emu", audit_seed=seed)


def test_after_an_error_of_its_device_a_sum_is_of_no_use() -> None:
    total = secure_sum()
    _native.use_emulator(lost_at_call=3)
    with pytest.raises(DeviceError, match="the device is lost"):
        total.fold(upload(TALL))
    _native.use_emulator()
    for call in (
        lambda: total.fold(upload(TALL)),
        lambda: total.add_masks(secrets(1), [1]),
        lambda: total.finish(1),
    ):
        with pytest.raises(DeviceError, match="there is no sum"):
            call()
