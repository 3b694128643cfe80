"""What a site's device encodes, masks and packs has the bytes, counts and errors of the CPU,
whatever the device does in which order; one that fails, or computes another bit, never gives an
upload; and no value and no key stays behind in its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reference import ring
from reference.rotation import rotate
from reference.secagg import mask_words
from support.devices import every_device, results_of_losses, small_windows
from support.secagg import consortium, make_contributions, make_plan, small_arrays
from veilsum import _native, secagg
from veilsum._native import DeviceArray, Layout, Secret
from veilsum.arrays import round_to_bfloat16
from veilsum.errors import ConfigError, DeviceError, VeilsumError
from veilsum.model import ModelLayout
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.upload import encode_upload

Values = NDArray[Any]

WIDTHS = [1, 2, 7, 16, 22, 31, 32, 33, 63, 64]
BLOCKS = [64, 256, 1024, 4096]
GENERATORS = ("chacha20", "aes256ctr")
CHUNK = 4096
TILE = 512
HEADER = 64
ROTATION_KEY = bytes(range(8))
ROUNDING = bytes(range(60, 92))

# Every format, gaps, an empty tensor and a counter between them; several tensors in a tile, one in
# several tiles, and a short last tile.
TENSORS = [
    ("a", "f32", (37,)),
    ("empty", "f32", (0, 3)),
    ("n", "i64", (5,)),
    ("b", "f64", (66, 66)),
    ("scalar", "f16", ()),
    ("c", "bf16", (3000,)),
    ("d", "f16", (130,)),
    ("e", "f32", (600,)),
]
FLOATS = [number for number, (_, dtype, _) in enumerate(TENSORS) if dtype != "i64"]


def made(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Values:
    if dtype == "i64":
        return np.arange(5, dtype=np.int64)
    values = np.asarray(random.uniform(-1, 1, shape))
    if dtype == "bf16":
        return round_to_bfloat16(values.astype(np.float32)).reshape(shape)
    return np.asarray(values, {"f16": np.float16, "f32": np.float32, "f64": np.float64}[dtype])


def secrets(count: int) -> list[Secret]:
    return [Secret.from_bytes(bytes((31 * k + i) % 256 for i in range(32))) for k in range(count)]


def largest_gain(bits: int) -> float:
    """Steps per unit such that values up to 1 fit, with what stochastic rounding adds."""
    return max(2 ** (bits - 1) - 1, 2**-25) * (1 - 2**-50)


@dataclass(frozen=True)
class Job:
    """One upload; `replace` makes others of it."""

    tensors: Sequence[tuple[str, str, tuple[int, ...]]] = field(default_factory=lambda: TENSORS)
    bits: int = 22
    keys: int = 2
    signs: Sequence[int] = ()
    generator: str = "chacha20"
    stochastic: bool = True
    clip: bool = False
    block: int = 0
    scale_block: int = 0
    values: Mapping[int, Values] = field(default_factory=dict)  # instead of random ones
    resident: str = ""  # tensors on this device
    chunk: int = CHUNK
    threads: int = 2

    @property
    def layout(self) -> Layout:
        return Layout(list(self.tensors))

    @property
    def entries(self) -> int:
        size = self.layout.group_size(1)
        return -(-size // self.scale_block) if self.scale_block else len(self.layout.offsets(1))

    def arrays(self) -> list[Any]:
        random = np.random.default_rng(7)
        arrays: list[Any] = [made(random, dtype, shape) for _, dtype, shape in self.tensors]
        for number, values in self.values.items():
            arrays[number] = values
        if self.resident:
            arrays = [
                array if dtype == "i64" else DeviceArray(self.resident, array, dtype)
                for array, (_, dtype, _) in zip(arrays, self.tensors, strict=True)
            ]
        return arrays

    def steps(self) -> dict[str, Any]:
        entries = self.entries
        # They differ from entry to entry.
        limits = 1 - np.arange(entries) % 5 / 16
        gains = largest_gain(self.bits) / limits * (1 - np.arange(entries) % 3 / 8)
        rotated = {
            "rotation_block": self.block,
            "rotation_key": ROTATION_KEY,
            "rotated_limit": float((limits * gains).min(initial=1e30)),
        }
        return {
            "bits": self.bits,
            "gains": gains,
            "limits": limits[:0] if self.block else limits,
            "rounding": Secret.from_bytes(ROUNDING) if self.stochastic else None,
            "keys": secrets(self.keys),
            "signs": list(self.signs) or [-1 if k % 3 == 1 else 1 for k in range(self.keys)],
            "generator": self.generator,
            "scale_block": self.scale_block,
            **(rotated if self.block else {}),
        }

    def chunks(self, backend: str) -> tuple[list[bytes], int]:
        return _native.encode_ring_chunks(
            self.layout,
            self.arrays(),
            **self.steps(),
            clip=self.clip,
            plan_digest=bytes(range(200, 232)),
            update_id=99,
            chunk_coordinates=self.chunk,
            threads=self.threads,
            backend=backend,
        )


def same(job: Job, backend: str) -> bool:
    return job.chunks(backend) == replace(job, resident="").chunks("cpu")


# --- bytes ------------------------------------------------------------------------------


@every_device
@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_an_upload_of_a_device_is_that_of_the_cpu(
    bits: int, generator: str, stochastic: bool, backend: str
) -> None:
    assert same(Job(bits=bits, generator=generator, stochastic=stochastic, clip=True), backend)


@every_device
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("bits", [7, 22, 33])
def test_a_rotated_upload_is_that_of_the_cpu(bits: int, block: int, backend: str) -> None:
    for stochastic in (True, False):
        job = Job(bits=bits, block=block, stochastic=stochastic, clip=True)
        assert same(job, backend)
    assert same(replace(job, generator="aes256ctr"), backend)


@every_device
@pytest.mark.parametrize("bits", [16, 33])
def test_an_upload_of_a_device_is_that_of_the_reference(bits: int, backend: str) -> None:
    job = Job(bits=bits, clip=True)
    steps, layout, arrays = job.steps(), job.layout, job.arrays()
    words = [0] * layout.group_size(1)
    for place, (tensor, first, count) in enumerate(layout.offsets(1)):
        values = arrays[tensor].ravel()
        if job.tensors[tensor][1] == "bf16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        gain, limit = steps["gains"][place], steps["limits"][place]
        for i in range(count):
            words[first + i] = ring.step(float(values[i]), gain, limit, ROUNDING, first + i)
    for key, sign in zip(steps["keys"], steps["signs"], strict=True):
        for i, mask in enumerate(mask_words(bytes(key), 1, 0, len(words), bits, "chacha20")):
            words[i] += sign * mask

    chunks, _ = job.chunks(backend)

    for index, chunk in enumerate(chunks):
        here = words[index * CHUNK : (index + 1) * CHUNK]
        assert chunk[HEADER:].startswith(ring.packed(here, bits))


@every_device
@pytest.mark.parametrize("block", [0, 1024])
@pytest.mark.parametrize("scale_block", [256, 1024, 4096])
def test_scales_of_blocks_are_taken(scale_block: int, block: int, backend: str) -> None:
    for bits in (20, 40):
        assert same(Job(bits=bits, scale_block=scale_block, block=block, clip=True), backend)


@every_device
@pytest.mark.parametrize("generator", GENERATORS)
def test_masks_of_any_number_of_keys_and_of_both_signs_are_added(
    generator: str, backend: str
) -> None:
    for count in (0, 1, 2, 3, 9, 17):
        for signs in ([1] * count, [-1] * count, [(-1) ** k for k in range(count)]):
            for bits in (22, 33):
                job = Job(bits=bits, keys=count, signs=signs, generator=generator, clip=True)
                assert same(job, backend), (count, signs, bits)


# Around the ends of a warp, a tile of masks, a tile, a window and a chunk.
@every_device
@pytest.mark.parametrize(
    "size", [1, 63, 64, 65, 511, 512, 513, 2048, 2049, 4095, 4096, 4097, 8192, 8200]
)
def test_tensors_of_every_length_are_encoded(size: int, backend: str) -> None:
    tensors = [("w", "f32", (size,))]
    with small_windows():
        for block, chunk in ((0, CHUNK), (256, CHUNK), (0, 2 * CHUNK)):
            assert same(Job(tensors, block=block, chunk=chunk, clip=True), backend)


@every_device
def test_many_small_tensors_fill_a_tile(backend: str) -> None:
    dtypes = ("f32", "f16", "bf16", "f64")
    tensors = [(f"t{n}", dtypes[n % 4], (1 + n % 3,)) for n in range(150)]
    for block in (0, 64):
        assert same(Job(tensors, block=block, clip=True), backend)
    assert same(Job(tensors, resident=backend, clip=True), backend)


@every_device
def test_a_layout_without_floats_has_no_chunks(backend: str) -> None:
    for tensors in ([("n", "i64", (5,))], [("empty", "f32", (0,))]):
        assert Job(tensors).chunks(backend) == ([], 0)


# --- arrays in device memory ------------------------------------------------------------


@every_device
@pytest.mark.parametrize("block", [0, 4096])
def test_tensors_on_the_device_are_read_where_they_lie(block: int, backend: str) -> None:
    job = Job(resident=backend, block=block, clip=True)
    expected = replace(job, resident="").chunks("cpu")
    arrays = job.arrays()
    mixed = [array if n % 2 else host for n, (array, host) in enumerate(
        zip(arrays, replace(job, resident="").arrays(), strict=True)
    )]  # fmt: skip
    for chosen in (arrays, mixed):
        _native.use_emulator()
        found = _native.encode_ring_chunks(
            job.layout, chosen, **job.steps(), clip=True, plan_digest=bytes(range(200, 232)),
            update_id=99, chunk_coordinates=CHUNK, threads=1, backend=backend,
        )  # fmt: skip
        assert found == expected
        if backend == "emu":
            here = [array for array in chosen if isinstance(array, np.ndarray)]
            copied = sum(array.nbytes for array in here if array.dtype != np.int64)
            assert copied <= _native.emulator_copied_bytes() <= copied + 4096


@pytest.mark.parametrize("backend", ["cpu", "emu:0"])
def test_tensors_of_another_device_are_refused(backend: str) -> None:
    with pytest.raises(ConfigError, match=r"arrays\['a'\] is on emu:1, not on"):
        Job(resident="emu:1").chunks(backend)


def test_tensors_on_a_device_have_the_dtype_and_the_size_of_the_layout() -> None:
    for values, error in (
        (DeviceArray("emu", np.zeros(37), "f64"), TypeError),
        (DeviceArray("emu", np.zeros(36, np.float32), "f32"), ConfigError),
    ):
        with pytest.raises(error, match=r"arrays\['a'\] must have"):
            Job(values={0: values}).chunks("emu")  # type: ignore[dict-item]
    counter = DeviceArray("emu", np.zeros(5, np.int64), "i64")
    with pytest.raises(TypeError, match=r"arrays\['n'\] must .* be a floating-point tensor"):
        Job(values={2: counter}).chunks("emu")  # type: ignore[dict-item]


# --- counts and errors ------------------------------------------------------------------


def spoilt(number: int, places: Mapping[int, float]) -> dict[int, Values]:
    _, dtype, shape = TENSORS[number]
    values = np.zeros(shape, {"f32": np.float32, "f64": np.float64, "f16": np.float16}[dtype])
    for place, value in places.items():
        values.ravel()[place] = value
    return {number: values}


NAN, INFINITY = float("nan"), float("inf")
SPOILT = [
    spoilt(0, {3: NAN}),
    spoilt(3, {0: INFINITY, 4000: -INFINITY, 4355: NAN}),
    spoilt(0, {3: NAN}) | spoilt(6, {129: INFINITY}) | spoilt(7, {5: 3.0}),
    spoilt(0, {0: 2.0, 36: -2.0}),
    spoilt(7, dict.fromkeys(range(0, 600, 2), 5.0)) | spoilt(3, {4: 1e300}),
]


def outcome(job: Job, backend: str) -> tuple[str, str] | int:
    """Type and text of the error, with its hint; else how many values were clamped."""
    try:
        return job.chunks(backend)[1]
    except VeilsumError as error:
        return f"{type(error).__name__}: {error}", error.hint or ""


@every_device
@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("block", [0, 64, 4096])
@pytest.mark.parametrize("values", SPOILT)
def test_values_that_cannot_be_encoded_are_counted_as_on_the_cpu(
    values: Mapping[int, Values], block: int, resident: bool, backend: str
) -> None:
    for clip in (False, True):
        job = Job(values=values, block=block, clip=clip)
        there = replace(job, resident=backend) if resident else job
        assert outcome(there, backend) == outcome(job, "cpu")


def test_what_was_met_is_said_by_tensor() -> None:
    found = [outcome(Job(values=values), "emu") for values in SPOILT]
    texts = [error[0].removeprefix("ConfigError: ") for error in found if isinstance(error, tuple)]
    assert [text.split(",")[0] for text in texts] == [
        "tensor 'a' has 1 values that are not finite",
        "tensor 'b' has 3 values that are not finite",
        "tensor 'a' has 1 values that are not finite",
        "tensor 'a' has 2 values beyond its limit of 1",
        "tensor 'b' has 1 values beyond its limit of 0.875",
    ]


@every_device
def test_a_device_refuses_what_the_cpu_refuses(backend: str) -> None:
    for job in (Job(bits=65), Job(bits=0), Job(chunk=100), Job(block=100)):
        assert outcome(job, backend) == outcome(job, "cpu")
    with pytest.raises(ConfigError, match="unknown backend 'gpu'"):
        Job().chunks("gpu")
    with pytest.raises(DeviceError, match="there is no device 'emu:7'"):
        Job().chunks("emu:7")


# --- shapes, orders, windows ------------------------------------------------------------


JOBS = [
    Job(clip=True),
    Job(bits=33, clip=True, generator="aes256ctr", keys=5),
    Job(block=1024, clip=True, keys=3),
    Job(block=4096, clip=True, bits=40, scale_block=256),
]


@every_device
@pytest.mark.parametrize("shape", [(1, 32), (2, 64), (3, 128), (1, 224), (0, 256)])
def test_every_launch_shape_gives_the_same_bytes(shape: tuple[int, int], backend: str) -> None:
    for job in JOBS:
        _native.use_launch_shape(blocks=shape[0], threads=shape[1])
        assert same(job, backend)


def test_every_order_of_threads_blocks_and_streams_gives_the_same_bytes() -> None:
    for seed in range(1, 5):
        _native.use_emulator(seed=seed)
        with small_windows():
            assert all(same(job, "emu") for job in JOBS)


@every_device
@pytest.mark.parametrize("chunk", [CHUNK, 2 * CHUNK])
def test_windows_of_any_size_give_the_same_bytes(chunk: int, backend: str) -> None:
    tensors = [*TENSORS, ("f", "f32", (4 * CHUNK,))]
    for tiles in (1, 2, 3):
        with small_windows(tiles):
            for block in (0, 256):
                assert same(Job(tensors, chunk=chunk, block=block, clip=True), backend)


def test_memory_does_not_grow_with_the_model() -> None:
    job = Job([("w", "f32", (30 * CHUNK,))])
    _native.use_emulator(memory_bytes=200_000)
    with small_windows():
        assert same(job, "emu")
    _native.use_emulator(memory_bytes=200_000)
    with small_windows(16), pytest.raises(DeviceError, match="out of memory"):
        job.chunks("emu")


# --- failures ---------------------------------------------------------------------------


@pytest.mark.parametrize("job", JOBS[1:3])
def test_a_device_that_is_lost_at_any_call_gives_an_error_and_leaves_no_memory(job: Job) -> None:
    with small_windows():
        results = results_of_losses(lambda: job.chunks("emu"))
    expected = job.chunks("cpu")
    assert results.count(None) > 30
    # None if memory was being given back: the chunks were complete.
    assert all(result in (None, expected) for result in results)
    assert results[:20] == [None] * 20


def test_a_device_without_memory_is_an_error_that_leaves_none_behind() -> None:
    for memory in (1, 70, 20_000, 50_000):
        _native.use_emulator(memory_bytes=memory)
        with small_windows(), pytest.raises(DeviceError, match="out of memory"):
            Job().chunks("emu")
        assert _native.emulator_bytes() == 0


# --- secrets ----------------------------------------------------------------------------

KEY = bytes((31 * 0 + i) % 256 for i in range(32))
VALUES = np.random.default_rng(1).uniform(-1, 1, 5000).astype(np.float32)
SECRET = Job([("w", "f32", (5000,))], values={0: VALUES}, bits=32, keys=1, signs=[1])


def plain_words() -> bytes:
    chunks, _ = replace(SECRET, keys=0, signs=()).chunks("cpu")
    return b"".join(chunk[HEADER:] for chunk in chunks)


NEEDLES = {
    "values": VALUES[40:44].tobytes(),
    "a key": KEY,
    "half of a key": KEY[16:],
    "the rounding key": ROUNDING[:8],
    "keystream": np.array(mask_words(KEY, 1, 100, 4, 32, "chacha20"), np.uint32).tobytes(),
}


@pytest.mark.parametrize("needle", NEEDLES)
@pytest.mark.parametrize("block", [0, 1024])
def test_no_secret_is_left_in_memory_of_a_device(block: int, needle: str) -> None:
    _native.use_emulator(needle=NEEDLES[needle])
    replace(SECRET, block=block, clip=True).chunks("emu")
    assert _native.emulator_needles() == 0


@pytest.mark.parametrize("needle", ["values", "a key", "the rounding key"])
def test_no_secret_is_left_when_memory_runs_out_in_between(needle: str) -> None:
    tensors = [("w", "f32", (5000,)), ("v", "f32", (9000,))]
    with small_windows():
        for memory in (32, 30_000, 60_000, 90_000):
            _native.use_emulator(memory_bytes=memory, needle=NEEDLES[needle])
            with pytest.raises(DeviceError, match="out of memory"):
                replace(SECRET, tensors=tensors).chunks("emu")
            assert _native.emulator_needles() == 0
            assert _native.emulator_bytes() == 0


def test_no_secret_is_left_in_host_memory_when_the_device_is_lost() -> None:
    SECRET.chunks("emu")
    _native.use_emulator()
    SECRET.chunks("emu")
    for call in range(1, _native.emulator_calls() + 1, 3):
        for needle in ("values", "a key", "the rounding key"):
            _native.use_emulator(lost_at_call=call, needle=NEEDLES[needle])
            outcome(SECRET, "emu")
            assert _native.emulator_needles() == 0


def test_no_plain_word_is_left_in_memory_of_a_device() -> None:
    """Without masks the words are the values, wherever they were."""
    words = plain_words()
    for place in (0, 4000, 17_000):
        _native.use_emulator(needle=words[place : place + 16])
        replace(SECRET, keys=0, signs=()).chunks("emu")
        assert _native.emulator_needles() == 0


def test_no_rotated_value_is_left_in_shared_memory() -> None:
    job = replace(SECRET, tensors=[("w", "f32", (4096,))], values={0: VALUES[:4096]}, block=1024)
    scaled = (VALUES[:4096] * job.steps()["gains"]).astype(np.float32)
    rotated = rotate(scaled, 1024, ROTATION_KEY)
    _native.use_emulator(needle=rotated[:4].tobytes())  # where they lie side by side
    replace(job, clip=True).chunks("emu")
    assert _native.emulator_needles() == 0


def test_what_the_audit_reads_from_a_device_comes_through_memory_that_is_cleared() -> None:
    job = replace(SECRET, resident="emu")
    arrays = job.arrays()
    _native.use_emulator(needle=NEEDLES["values"])
    _native.encode_ring_tiles(job.layout, arrays, tiles=[0], **job.steps(), backend="emu")
    assert _native.emulator_needles() == 0


# --- tiles of the audit -----------------------------------------------------------------


@every_device
@pytest.mark.parametrize("job", JOBS)
def test_tiles_are_those_of_the_chunks(job: Job, backend: str) -> None:
    size = job.layout.group_size(1)
    tiles = list(range(-(-size // TILE)))
    found = np.zeros(TILE * len(tiles), np.uint64)
    chunks, _ = job.chunks("cpu")
    _native.fold_ring_tiles(
        found, [chunks], tiles=tiles, elements=size, bits=job.bits, chunk_coordinates=CHUNK
    )
    found &= np.uint64(2**job.bits - 1)
    for there in (job, replace(job, resident=backend)):
        words = _native.encode_ring_tiles(
            there.layout, there.arrays(), tiles=tiles, **there.steps(), backend=backend
        )
        assert np.array_equal(words, found)


def test_tiles_that_are_not_there_are_refused() -> None:
    job = Job()
    with pytest.raises(ConfigError, match="there is no tile 17"):
        _native.encode_ring_tiles(job.layout, job.arrays(), tiles=[17], **job.steps())


def test_tiles_are_made_of_gains_and_limits_that_fit_the_layout_and_the_ring() -> None:
    for block, changes in (
        (0, {"gains": np.ones(1)}),
        (0, {"limits": np.ones(0)}),
        (0, {"gains": np.full(7, 1e300)}),
        (64, {"gains": np.ones(1)}),
        (64, {"rotated_limit": 1e300}),
    ):
        job = Job(block=block)
        steps = job.steps() | changes
        with pytest.raises(ConfigError) as tiles:
            _native.encode_ring_tiles(job.layout, job.arrays(), tiles=[0], **steps)
        with pytest.raises(ConfigError) as chunks:
            _native.encode_ring_chunks(
                job.layout, job.arrays(), **steps, clip=True, plan_digest=bytes(32),
                update_id=1, chunk_coordinates=CHUNK, threads=1,
            )  # fmt: skip
        assert str(tiles.value) == str(chunks.value)


# --- rounds and their audit -------------------------------------------------------------


LARGE = ModelLayout.from_arrays(small_arrays(0, size=70_000))
SEED = bytes(range(32))


def large_plan(**changes: Any) -> secagg.Plan:
    return make_plan(5, layout=LARGE, overrange="clip", **changes)


def large_arrays(number: int) -> dict[str, Values]:
    return small_arrays(number, 70_000)


@every_device
@pytest.mark.parametrize(
    "changes", [{}, {"hadamard": 4096}, {"mask_generator": "aes256ctr"}], ids=str
)
def test_a_round_of_sites_with_devices_has_the_digest_of_the_cpu(
    changes: dict[str, Any], backend: str
) -> None:
    plan = large_plan(**changes)
    form: dict[str, Any] = {
        "drop": {plan.cohort[1]: "inputs"},
        "consortium": consortium(),  # rotations depend on it
    }
    updates = make_contributions(plan, large_arrays)
    expected = secagg.run_in_process(plan, updates, **form).digest
    for both in ("cpu", backend):
        found = secagg.run_in_process(plan, updates, **form, backend=both, site_backend=backend)
        assert found.digest == expected


def upload(
    backend: str, plan: secagg.Plan | None = None, seed: bytes | None = SEED, **changes: Any
) -> tuple[bytes, ...]:
    plan = plan or large_plan()
    given = make_contributions(plan, large_arrays)[plan.cohort[0]]._replace(**changes)
    return encode_upload(
        plan, given, MaskKeys(), update_id=7, threads=1, backend=backend, audit_seed=seed
    ).chunks


@every_device
def test_an_update_in_device_memory_is_uploaded_as_one_in_host_memory(backend: str) -> None:
    host = large_arrays(0)
    expected = upload("cpu", update=host)
    moved: dict[str, Any] = {
        "weight": DeviceArray(backend, host["weight"], "f32"),
        "steps": DeviceArray(backend, host["steps"], "i64"),
    }
    for there in ("cpu", backend):
        assert upload(there, update=moved) == expected
    with pytest.raises(ConfigError, match="tensor 'weight' is f32"):
        upload(backend, update=moved | {"weight": DeviceArray(backend, host["weight"][1:], "f32")})


@every_device
def test_a_site_of_weight_0_uploads_zeros_whatever_its_update_is(backend: str) -> None:
    host = large_arrays(0)
    moved = host | {"weight": DeviceArray(backend, host["weight"], "f32")}
    zeros = {name: np.zeros_like(array) for name, array in host.items()}
    expected = upload("cpu", update=zeros)
    for update in (host, moved):
        assert upload(backend, update=update, weight=0)[1:] == expected[1:]  # 0 has the weight


@pytest.mark.parametrize("hadamard", [0, 1024])
@pytest.mark.parametrize("size", [70_000, 3000], ids=["many tiles", "few tiles"])
def test_the_audit_refuses_what_a_device_spoils(
    size: int, hadamard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit in every eighth tile, as a broken lane would."""
    right = _native.encode_ring_chunks
    layout = ModelLayout.from_arrays(small_arrays(0, size=size))
    plan = make_plan(5, layout=layout, hadamard=hadamard, overrange="clip")
    given = make_contributions(plan, lambda number: small_arrays(number, size))[plan.cohort[0]]

    def spoil(*args: Any, **options: Any) -> tuple[list[bytes], int]:
        chunks, clamped = right(*args, **options)
        broken = [bytearray(chunk) for chunk in chunks]
        for chunk in broken:
            codes = np.frombuffer(chunk, np.uint8)[HEADER:]
            codes[:: 8 * TILE * plan.ring_bits // 8] ^= 1
        return [bytes(chunk) for chunk in broken], clamped

    monkeypatch.setattr(_native, "encode_ring_chunks", spoil)
    with pytest.raises(DeviceError, match=r"emu encoded tile \d+ of stream 1 to other words"):
        encode_upload(
            plan, given, MaskKeys(), update_id=7, threads=1, backend="emu", audit_seed=SEED
        )


def test_what_a_device_encodes_needs_the_seed_of_its_audit() -> None:
    for seed in (None, b"", bytes(31)):
        with pytest.raises(ConfigError, match="it needs audit_seed"):
            upload("emu", seed=seed)


def test_every_audit_looks_at_tiles_that_nobody_could_foresee(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode = _native.encode_ring_tiles
    seen: list[tuple[int, ...]] = []

    def record(*args: Any, tiles: Sequence[int], **options: Any) -> NDArray[np.uint64]:
        seen.append(tuple(tiles))
        return encode(*args, tiles=tiles, **options)

    monkeypatch.setattr(_native, "encode_ring_tiles", record)
    plan = large_plan()
    for _ in range(2):
        secagg.run_in_process(plan, make_contributions(plan, large_arrays), site_backend="emu")
    assert len(seen) == 2 * len(plan.cohort)
    assert len(set(seen)) == len(seen)
    assert all(len(tiles) == 64 for tiles in seen)


def test_a_site_whose_device_is_lost_has_uploaded_nothing() -> None:
    plan = large_plan()
    updates = make_contributions(plan, large_arrays)
    _native.use_emulator()
    secagg.run_in_process(plan, updates, site_backend="emu")
    for lost_at in (1, _native.emulator_calls() // 2):
        _native.use_emulator(lost_at_call=lost_at)
        with pytest.raises(DeviceError, match="the device is lost"):
            secagg.run_in_process(plan, updates, site_backend="emu")
        assert _native.emulator_bytes() == 0
