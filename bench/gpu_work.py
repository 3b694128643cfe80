"""What devices do besides sums: masks, ring words, rules, rotations, decoding, encoding, steps.

Each `Work` is one public call whose arrays lie in host memory, so that its time has the bus in it;
its result is compared with the CPU's before it is timed (bench/gpu.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
DECODED: dict[str, dict[str, Any]] = {"eden4": {}, "ring16": {"clip": 1.0}, "topk": {}}


@dataclass(frozen=True)
class Work:
    """One call.

    Attributes:
        run: gives what is to be the same on every backend, which it is named.
        bytes: over the bus, the way that carries more.
        operations: of integers, as far as they are counted; else 0.
    """

    name: str
    run: Callable[[str], Any]
    bytes: int
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
    yield _rule("median", "median", elements)
    yield _rule("krum", _krum(), elements)
    for codec in DECODED:
        yield _decoding(codec, elements)
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
    return Work(f"{KEYS} masks {generator}, {bits} bits", run, 4 * elements, KEYS * elements * each)


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
    return Work(f"sum of {UPLOADS} uploads, {bits} bits", run, size, operations)


def _encoding(block: int, elements: int, threads: int) -> Work:
    values = _values(elements, 4)
    operations = 22 / 8 / 64 * KEYSTREAM_OPERATIONS["chacha20"] + ELEMENT_OPERATIONS
    return Work(
        f"upload of 22 bits, {KEYS} masks" + (f", rotated by {block}" if block else ""),
        lambda backend: b"".join(_encoded(values, 22, backend, threads, block)),
        4 * elements,
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

    return Work(f"rotation by {ROTATION}", run, 4 * elements)


def _layout(elements: int) -> Any:
    import veilsum
    from veilsum import _native

    return veilsum.ModelLayout(_native.Layout([("w", "f32", (elements,))]))


def _filled(rule: Any, elements: int, backend: str, updates: list[Any]) -> Any:
    import veilsum

    aggregate = veilsum.Aggregator(_layout(elements), backend=backend, rule=rule)
    for number, update in enumerate(updates):
        aggregate.add(update, weight=100, site=f"site-{number}")
    return aggregate


def _updates(codec: str, elements: int, count: int) -> list[Any]:
    import veilsum

    layout, options = _layout(elements), DECODED.get(codec, {})
    arrays = [{"w": _values(elements, number)} for number in range(count)]
    return [veilsum.encode(one, codec=codec, layout=layout, **options) for one in arrays]


def _krum() -> Any:
    from veilsum.rules import Krum

    return Krum(byzantine=2)


def _rule(name: str, rule: Any, elements: int) -> Work:
    updates = _updates("f32", elements, UPLOADS)
    return Work(
        f"{name} of {UPLOADS}",
        lambda backend: _filled(rule, elements, backend, updates).finish().digest,
        sum(update.nbytes for update in updates),
    )


def _decoding(codec: str, elements: int) -> Work:
    updates = _updates(codec, elements, UPLOADS)
    return Work(
        f"mean of {UPLOADS} {codec}",
        lambda backend: _filled("mean", elements, backend, updates).finish().digest,
        sum(update.nbytes for update in updates),
    )


def _step(elements: int) -> Work:
    from veilsum.optimizers import FedAdam

    updates = _updates("f32", elements, UPLOADS)
    model = {"w": _values(elements, 6)}
    optimizers: dict[str, Any] = {}

    def run(backend: str) -> str:
        if backend not in optimizers:
            device = None if backend == "cpu" else backend
            optimizers[backend] = FedAdam().start(_layout(elements), device=device)
        filled = _filled("mean", elements, backend, updates)
        return str(filled.finish_step(model, optimizers[backend]).digest)

    size = sum(update.nbytes for update in updates) + 4 * elements
    return Work(f"mean of {UPLOADS} f32 and step of FedAdam, moments there", run, size)
