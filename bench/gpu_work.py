"""What devices do besides sums: masks, ring words, rules, rotations, decoding, encoding, steps.

Each `Work` is one public call, mostly with arrays in host memory, so that its time has the bus in
it; its result is compared with the CPU's before it is timed, and its kernels are timed by
themselves as well (bench/gpu.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Integer operations that nvcc makes of 64 bytes of keystream for sm_90, and of an element of a sum
# (docs/gpu.md, tests/machine_code.json).
KEYSTREAM_OPERATIONS = {"chacha20": 1025, "aes256ctr": 5360}
ELEMENT_OPERATIONS = 3

KEYS = 12
UPLOADS = 10
CHUNK = 65_536
ROTATION = 4096
# What decodes a codec, and how it is encoded.
DECODED: dict[str, tuple[str, dict[str, Any]]] = {
    "eden4": ("eden_kernel", {}),
    "ring16": ("ring_kernel", {"clip": 1.0}),
    "ring16, rotated": ("rotated_ring_kernel", {"clip": 1.0, "hadamard": 1024}),
    "topk": ("topk_kernel", {}),
}
FLOATS = 4 * (UPLOADS + 1)  # bytes per coordinate of all updates and of what becomes of them


@dataclass(frozen=True)
class Work:
    """One call.

    Attributes:
        run: gives what is to be the same on every backend, which it is named.
        bytes: over the bus, the way that carries more.
        kernels: the kernels that it launches, each with the least bytes of device memory that it
            reads and writes (docs/gpu.md).
        operations: integer operations of the first of them, as far as they are counted; else 0.
    """

    name: str
    run: Callable[[str], Any]
    bytes: int
    kernels: Mapping[str, float]
    operations: float = 0


def every_work(elements: int, threads: int) -> Iterator[Work]:
    """Args:
    elements: coordinates of each; a multiple of 4096.
    threads: of the host.
    """
    for generator in KEYSTREAM_OPERATIONS:
        for bits in (22, 32):
            yield _masks(generator, bits, elements, threads)
    for bits in (22, 32):
        yield _fold(bits, elements, threads)
    yield _rotation(elements, threads)
    yield from _rules(elements)
    yield from _resident(elements)
    for name in DECODED:
        yield _decoding(name, elements)
    yield _streaming(elements)
    for block in (0, ROTATION):
        yield _encoding(block, elements, threads)
    yield _step(elements)


# --- masks and ring words -----------------------------------------------------------------------


def _secrets() -> list[Any]:
    from veilsum._native import Secret

    # Not random: a benchmark compares two runs.
    return [Secret.from_bytes(bytes([number]) * 32) for number in range(KEYS)]


def _masks(generator: str, bits: int, elements: int, threads: int) -> Work:
    import numpy as np

    from veilsum import _native

    keys, signs = _secrets(), [1, -1] * (KEYS // 2)
    sums = np.zeros(elements, np.uint32)

    def run(backend: str) -> Any:
        sums[:] = 0
        _native.add_masks(
            sums, keys, signs, generator=generator, stream=1, first=0, bits=bits,
            threads=threads, backend=backend,
        )  # fmt: skip
        return sums & np.uint32(2**bits - 1)

    each = bits / 8 / 64 * KEYSTREAM_OPERATIONS[generator] + ELEMENT_OPERATIONS
    return Work(
        f"{KEYS} masks {generator}, {bits} bits",
        run,
        4 * elements,
        {"mask_kernel": 8 * elements},
        KEYS * elements * each,
    )


def _encoded(values: Any, bits: int, backend: str, threads: int, block: int = 0) -> list[bytes]:
    import numpy as np

    from veilsum import _native

    largest = 2.0 ** (bits - 6)  # steps: room for the sum, and for what a rotation gathers
    chunks, _ = _native.encode_ring_chunks(
        _native.Layout([("w", "f32", values.shape)]),
        [values],
        bits=bits,
        gains=np.array([largest]),
        limits=np.array([] if block else [1.0]),
        clip=True,
        rounding=_native.Secret.from_bytes(bytes(32)),
        keys=_secrets(),
        signs=[1, -1] * (KEYS // 2),
        generator="chacha20",
        plan_digest=bytes(32),
        update_id=1,
        chunk_coordinates=CHUNK,
        threads=threads,
        rotation_block=block,
        rotation_key=bytes(8),
        rotated_limit=largest if block else 0.0,
        backend=backend,
    )
    return chunks


def _values(elements: int, seed: int) -> Any:
    import numpy as np

    values = np.random.default_rng(seed).standard_normal(elements, dtype=np.float32)
    return values * np.float32(0.05)


def _fold(bits: int, elements: int, threads: int) -> Work:
    import numpy as np

    from veilsum import _native

    uploads = [_encoded(_values(elements, 3), bits, "cpu", threads)] * UPLOADS
    sums = np.zeros(elements, np.uint32)

    def run(backend: str) -> Any:
        sums[:] = 0
        _native.fold_ring_chunks(
            sums, uploads, bits=bits, chunk_coordinates=CHUNK, threads=threads, backend=backend
        )
        return sums & np.uint32(2**bits - 1)

    size = 4 * elements + UPLOADS * sum(map(len, uploads[0]))
    operations = UPLOADS * elements * ELEMENT_OPERATIONS
    kernels = {"packed_kernel": 8 * elements + UPLOADS * elements * bits / 8}
    return Work(f"sum of {UPLOADS} uploads, {bits} bits", run, size, kernels, operations)


def _encoding(block: int, elements: int, threads: int) -> Work:
    values = _values(elements, 4)
    operations = 22 / 8 / 64 * KEYSTREAM_OPERATIONS["chacha20"] + ELEMENT_OPERATIONS
    return Work(
        f"upload of 22 bits, {KEYS} masks" + (f", rotated by {block}" if block else ""),
        lambda backend: b"".join(_encoded(values, 22, backend, threads, block)),
        4 * elements,
        {"encode_kernel": (4 + 22 / 8) * elements},
        KEYS * elements * operations,
    )


# --- rotation, rules, decoding, steps -----------------------------------------------------------


def _rotation(elements: int, threads: int) -> Work:
    from veilsum import _native

    values = _values(elements, 5)

    def run(backend: str) -> Any:
        rotated = values.copy()
        _native.rotate(
            rotated, block=ROTATION, key=bytes(8), first=0, inverse=False, threads=threads,
            backend=backend,
        )  # fmt: skip
        return rotated

    return Work(f"rotation by {ROTATION}", run, 4 * elements, {"rotate_kernel": 8 * elements})


def _layout(elements: int) -> Any:
    import veilsum
    from veilsum import _native

    return veilsum.ModelLayout(_native.Layout([("w", "f32", (elements,))]))


def _filled(
    rule: Any, elements: int, backend: str, updates: list[Any], copy: bool = True, **options: Any
) -> Any:
    import veilsum

    aggregate = veilsum.Aggregator(_layout(elements), backend=backend, rule=rule, **options)
    for number, update in enumerate(updates):
        aggregate.add(update, weight=100, site=f"site-{number}", copy=copy)
    return aggregate


def _updates(codec: str, elements: int, **options: Any) -> list[Any]:
    import veilsum

    layout = _layout(elements)
    arrays = [{"w": _values(elements, number)} for number in range(UPLOADS)]
    return [veilsum.encode(one, codec=codec, layout=layout, **options) for one in arrays]


def _size(updates: list[Any]) -> int:
    return sum(update.nbytes for update in updates)


def _rules(elements: int) -> Iterator[Work]:
    from veilsum.rules import Bucketing, CoordinateMedian, Krum, TrimmedMean

    floats = _updates("f32", elements)
    median = {"median_kernel": FLOATS * elements}
    buckets = UPLOADS // 2
    yield _rule("median", CoordinateMedian(), elements, floats, median)
    trimmed = {"kept_kernel": FLOATS * elements}
    yield _rule("trimmed mean", TrimmedMean(trim=2), elements, floats, trimmed)
    krum = {"gram_kernel": 4 * UPLOADS * elements}
    yield _rule("krum", Krum(byzantine=2), elements, floats, krum)
    yield _rule(
        "median of pairs",
        [Bucketing(size=2, seed=1), CoordinateMedian()],
        elements,
        floats,
        {
            "mean_rows_kernel": 4 * (UPLOADS + buckets) * elements,
            "median_kernel": 4 * (buckets + 1) * elements,
        },
    )
    codes = _updates("int8", elements)
    decoding = {"codes_kernel": _size(codes) + 4 * UPLOADS * elements}
    yield _rule("median of int8", CoordinateMedian(), elements, codes, decoding | median)


def _rule(
    name: str, rule: Any, elements: int, updates: list[Any], kernels: Mapping[str, float]
) -> Work:
    return Work(
        f"{name}, {UPLOADS} updates",
        lambda backend: _filled(rule, elements, backend, updates).finish().digest,
        _size(updates),
        kernels,
    )


def _resident(elements: int) -> Iterator[Work]:
    """Updates that lie in device memory, screened with and without their norms."""
    from veilsum.rules import CoordinateMedian, NormClipping

    rows = {"screen_kernel": 4 * UPLOADS * elements, "gather_kernel": 8 * UPLOADS * elements}
    median = {"median_kernel": FLOATS * elements}
    yield _resident_rule("median", CoordinateMedian(), elements, rows | median)
    norms = {
        "screen_kernel": 4 * UPLOADS * elements,
        "squares_kernel": 4 * UPLOADS * elements,
        "sum_kernel": FLOATS * elements,
    }
    yield _resident_rule("clipped mean", NormClipping(max_norm=1.0), elements, norms)


def _resident_rule(name: str, rule: Any, elements: int, kernels: Mapping[str, float]) -> Work:
    from veilsum import _native

    arrays = [_values(elements, number) for number in range(UPLOADS)]

    def run(backend: str) -> str:
        place = arrays
        if backend != "cpu":
            place = [_native.DeviceArray(backend, one, "f32") for one in arrays]
        filled = _filled(rule, elements, backend, [{"w": one} for one in place], copy=False)
        return str(filled.finish().digest)

    moved = 4 * UPLOADS * elements
    return Work(f"{name}, {UPLOADS} updates in device memory", run, moved, kernels)


def _decoding(name: str, elements: int) -> Work:
    kernel, options = DECODED[name]
    updates = _updates(name.partition(",")[0], elements, **options)
    return Work(
        f"mean of {name}, {UPLOADS} updates",
        lambda backend: _filled("mean", elements, backend, updates).finish().digest,
        _size(updates),
        {kernel: _size(updates) + 4 * UPLOADS * elements, "sum_kernel": FLOATS * elements},
    )


def _streaming(elements: int) -> Work:
    import veilsum

    updates = _updates("f32", elements)
    bounds = veilsum.Streaming(max_abs=1.0, max_total_weight=100 * UPLOADS)
    return Work(
        f"streaming mean, {UPLOADS} updates",
        lambda backend: (
            _filled("mean", elements, backend, updates, streaming=bounds).finish().digest
        ),
        _size(updates),
        {"sum_kernel": (4 + 16) * UPLOADS * elements, "mean_kernel": 12 * elements},
    )


def _step(elements: int) -> Work:
    from veilsum.optimizers import FedAdam

    updates = _updates("f32", elements)
    model = {"w": _values(elements, 6)}
    optimizers: dict[str, Any] = {}

    def run(backend: str) -> str:
        if backend not in optimizers:
            device = None if backend == "cpu" else backend
            optimizers[backend] = FedAdam().start(_layout(elements), device=device)
        filled = _filled("mean", elements, backend, updates)
        return str(filled.finish_step(model, optimizers[backend]).digest)

    return Work(
        f"mean of f32 and step of FedAdam, moments there, {UPLOADS} updates",
        run,
        _size(updates) + 4 * elements,
        # The mean, two moments and the model are read; two moments and the model are written.
        {"sum_kernel": FLOATS * elements, "step_kernel": 7 * 4 * elements},
    )
