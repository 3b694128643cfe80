"""The exact weighted mean: equal to fractions bit for bit, whatever the order of arrival."""

from __future__ import annotations

import itertools
import math
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import codecs as reference_codecs
from reference import mean as reference
from reference.rounding import FORMATS
from veilsum import Aggregator, ModelLayout, Streaming, _native, decode, encode
from veilsum.errors import ConfigError, DecodeError, DeviceError, PeerError
from veilsum.model import result_digest

ISAS = _native.supported_isas()
WEIGHTS = {"lyon": 1, "osaka": 2**31 - 1, "quito": 12_345, "oslo": 977, "bern": 3}
TENSORS = [
    ("a", "f32", (4200,)),
    ("h", "f16", (70,)),
    ("n", "i64", (6,)),
    ("d", "f32", (3, 5)),
    ("b", "bf16", (130,)),
    ("u", "u8", (9,)),
]
LAYOUT = ModelLayout(_native.Layout(TENSORS))


def update_of(number: int) -> dict[str, np.ndarray]:
    """Values over forty powers of two, with zeros, subnormal numbers and equal magnitudes."""
    rng = np.random.default_rng(number)
    a = (rng.normal(size=4200) * 2.0 ** rng.integers(-35, 5, 4200)).astype(np.float32)
    a[:64] = 0
    a[100] = 2.0**-149
    a[101] = (-1) ** number * 1.5
    return {
        "a": a,
        "h": (rng.normal(size=70) * 2.0 ** rng.integers(-20, 3, 70)).astype(np.float16),
        "n": rng.integers(-(2**62), 2**62, 6),
        "d": rng.normal(size=(3, 5)).astype(np.float32),
        "b": torch.from_numpy(rng.normal(size=130)).to(torch.bfloat16).view(torch.uint16).numpy(),
        "u": rng.integers(0, 256, 9).astype(np.uint8),
    }


UPDATES = {site: update_of(number) for number, site in enumerate(WEIGHTS)}


def flat_floats(arrays: dict[str, np.ndarray], tensors: Any = TENSORS) -> list[float]:
    """Coordinates of group 1, zeros in the gaps."""
    values: list[list[float]] = []
    for name, dtype, _ in tensors:
        array = arrays[name].reshape(-1)
        if dtype == "bf16" and array.dtype == np.uint16:
            array = np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
        values.append(array.tolist())
    return reference_codecs.grid(tensors, values, 1)


def coordinate_dtypes(tensors: Any = TENSORS) -> list[str]:
    spans, size = reference_codecs.offsets(tensors, 1)
    dtypes = ["f64"] * size
    for number, first, elements in spans:
        dtypes[first : first + elements] = [tensors[number][1]] * elements
    return dtypes


def aggregator(**options: Any) -> Aggregator:
    return Aggregator(LAYOUT, **({"threads": 1} | options))


def filled(**options: Any) -> Aggregator:
    mean = aggregator(**options)
    for site, update in UPDATES.items():
        mean.add(update, weight=WEIGHTS[site], site=site)
    return mean


# --- exactness ---------------------------------------------------------------------


def test_the_mean_is_that_of_the_fractions_bit_for_bit() -> None:
    expected = reference.mean(
        [(WEIGHTS[site], flat_floats(update)) for site, update in UPDATES.items()],
        coordinate_dtypes(),
    )

    for isa in ISAS:
        _native.use_isa(isa)
        assert flat_floats(filled().finish().arrays) == expected


def test_integers_are_averaged_exactly_and_rounded_half_to_even() -> None:
    result = filled().finish().arrays

    for name in ("n", "u"):
        expected = reference.integer_mean(
            [(WEIGHTS[site], update[name].tolist()) for site, update in UPDATES.items()]
        )
        assert result[name].tolist() == expected
        assert result[name].dtype == UPDATES["lyon"][name].dtype
    halves = Aggregator(ModelLayout(_native.Layout([("n", "i32", (4,))])))
    halves.add({"n": np.array([0, 1, -1, -3], np.int32)}, weight=1, site="a")
    halves.add({"n": np.array([1, 2, -2, -4], np.int32)}, weight=1, site="b")
    assert halves.finish().arrays["n"].tolist() == [0, 2, -2, -4]


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(
    st.lists(
        st.tuples(st.integers(1, 2**31 - 1), st.lists(finite, min_size=5, max_size=5)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(ISAS),
)
@settings(max_examples=300, deadline=None)
def test_any_floats_and_weights_average_as_fractions_do(
    updates: list[tuple[int, list[float]]], isa: str
) -> None:
    _native.use_isa(isa)
    mean = Aggregator(ModelLayout(_native.Layout([("w", "f32", (5,))])), threads=1)
    for number, (weight, values) in enumerate(updates):
        mean.add({"w": np.array(values, np.float32)}, weight=weight, site=str(number))

    assert mean.finish().arrays["w"].tolist() == reference.mean(updates, ["f32"] * 5)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 2**31 - 1),
            st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=300, deadline=None)
def test_float64_tensors_lose_nothing_on_the_way_in(
    updates: list[tuple[int, list[float]]],
) -> None:
    mean = Aggregator(ModelLayout(_native.Layout([("w", "f64", (3,))])), threads=1)
    for number, (weight, values) in enumerate(updates):
        mean.add({"w": np.array(values)}, weight=weight, site=str(number))

    assert mean.finish().arrays["w"].tolist() == reference.mean(updates, ["f64"] * 3)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1, 1, 1, 1), (3, 5), (7, 7, 10)])
def test_means_half_way_between_two_numbers_go_to_the_even_one(
    dtype: str, weights: tuple[int, ...]
) -> None:
    # Neighbouring numbers of the format: their means are very often exact ties.
    precision, least = FORMATS[dtype]
    steps = range(2 ** (precision - 1), 2 ** (precision - 1) + 40)
    tensors = [("w", dtype, (40,))]
    for exponent in (least, least + 3, 1 - precision):
        columns = [
            [(steps[(place * (number + 1)) % 40]) * 2.0**exponent for place in range(40)]
            for number in range(len(weights))
        ]
        mean = Aggregator(ModelLayout(_native.Layout(tensors)), threads=1)
        for number, (weight, column) in enumerate(zip(weights, columns, strict=True)):
            array = np.array(column, np.float16 if dtype == "f16" else np.float32)
            mean.add({"w": array}, weight=weight, site=str(number))

        expected = reference.mean(list(zip(weights, columns, strict=True)), [dtype] * 40)
        assert mean.finish().arrays["w"].tolist() == expected


def test_one_update_is_its_own_mean() -> None:
    # All within 2**37 of the largest in its tile: nothing is cut off.
    update = UPDATES["oslo"] | {"a": UPDATES["oslo"]["a"].clip(2.0**-30, 32)}
    mean = aggregator()
    mean.add(update, weight=2**31 - 1, site="oslo")

    result = mean.finish()

    assert result.digest == result_digest(LAYOUT, update)


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [
        ("f32", np.full(5000, np.finfo(np.float32).max)),
        ("f16", np.full(5000, -65504, np.float16)),
        ("f64", np.full(5000, -np.finfo(np.float64).max)),
        ("bf16", np.full(5000, 0x7F7F, np.uint16)),
        ("i64", np.array([-(2**63), 2**63 - 1])),
        ("u64", np.array([0, 2**63 - 1], np.uint64)),
        ("i8", np.array([-128, 127], np.int8)),
    ],
)
def test_the_largest_values_of_every_dtype_do_not_overflow(dtype: str, largest: Any) -> None:
    layout = ModelLayout(_native.Layout([("w", dtype, largest.shape)]))
    mean = Aggregator(layout, threads=1)
    for number in range(50):
        mean.add({"w": largest}, weight=2**31 - 1, site=str(number))

    assert mean.finish().digest == result_digest(layout, {"w": largest})


@pytest.mark.parametrize(
    ("dtype", "unit", "expected"),
    [("f4", 2.0**-149, [2, -4, 8]), ("f8", 2.0**-890, [1.5, -4.5, 7.5])],
)
def test_tiny_values_do_not_vanish(dtype: str, unit: float, expected: list[float]) -> None:
    # The means are 1.5, -4.5 and 7.5 units; of the smallest f32 there are only whole ones.
    mean = Aggregator(ModelLayout.from_arrays({"w": np.zeros(3, dtype)}))
    mean.add({"w": (np.array([1, -3, 5]) * unit).astype(dtype)}, weight=1, site="a")
    mean.add({"w": (np.array([2, -6, 10]) * unit).astype(dtype)}, weight=1, site="b")

    assert (mean.finish().arrays["w"] / unit).tolist() == expected


def test_zeros_average_to_positive_zero() -> None:
    mean = aggregator()
    for site, update in UPDATES.items():
        zeros = {name: np.zeros_like(array) for name, array in update.items()}
        mean.add(zeros | {"d": np.full((3, 5), -0.0, np.float32)}, weight=1, site=site)

    result = mean.finish().arrays

    assert not any(array.view(np.uint8).any() for array in result.values())


# --- encoded updates ------------------------------------------------------------------


def encoded(site: str, codec: str, chunk_coordinates: int = 4096) -> Any:
    options = {"clip": 128.0} if codec.startswith("ring") else {}
    return encode(
        UPDATES[site],
        codec,
        layout=LAYOUT,
        seed=len(site),
        chunk_coordinates=chunk_coordinates,
        **options,
    )


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16", "ring12", "ring30"])
def test_the_mean_of_encoded_updates_is_that_of_their_f32_values(codec: str) -> None:
    mean = aggregator()
    columns = []
    for site, weight in WEIGHTS.items():
        update = encoded(site, codec)
        wide = _native.Layout([(name, "f32" if dtype in ("f16", "bf16") else dtype, shape)
                               for name, dtype, shape in TENSORS])  # fmt: skip
        values = decode_as(wide, update)
        columns.append((weight, flat_floats(values)))
        mean.add(update, weight=weight, site=site)

    expected = reference.mean(columns, coordinate_dtypes())

    for isa in ISAS:
        _native.use_isa(isa)
        assert flat_floats(mean.finish().arrays) == expected


def decode_as(layout: _native.Layout, update: Any) -> dict[str, np.ndarray]:
    """Decoded values before they are rounded to their tensors' dtypes."""
    arrays = _native.decode_chunks(
        layout,
        update.body,
        codec=update.form.number,
        scale=update.form.scale,
        plan_digest=update.form.plan_digest,
        update_id=update.form.update_id,
        chunk_coordinates=update.form.chunk_coordinates,
    )
    return dict(zip(update.layout.names, arrays, strict=True))


def test_int8_updates_are_summed_as_integers() -> None:
    mean = aggregator()
    columns = []
    for site, weight in WEIGHTS.items():
        update = encoded(site, "int8")
        scales: list[float] = []
        codes: list[int] = []
        for chunk in update.body[:2]:
            header = reference_codecs.HEADER.unpack(chunk[:60])
            count, scale_bytes = header[8], header[10]
            begin = 64 + -(-scale_bytes // 16) * 16
            scales += np.frombuffer(chunk, "<f4", scale_bytes // 4, 64).tolist()
            codes += np.frombuffer(chunk, "i1", count, begin).tolist()
        columns.append((weight, scales, codes))
        mean.add(update, weight=weight, site=site)

    expected = reference.int8_mean(columns, coordinate_dtypes())

    for isa in ISAS:
        _native.use_isa(isa)
        assert flat_floats(mean.finish().arrays) == expected


def test_zero_codes_under_a_huge_scale_do_no_harm() -> None:
    update = encode({"w": np.full(128, 1e-30, np.float32)}, "int8", chunk_coordinates=4096)
    scales = np.array([3e35, 1e-30], "<f4").tobytes()
    codes = np.array([0] * 64 + [100] * 64, "i1").tobytes()
    form = update.form
    chunk = reference_codecs.chunk("int8", 1, 0, 0, True, (scales, codes), 128, form.plan_digest, 0)
    pieces = [update.chunks()[0], chunk]
    mean = Aggregator(update.layout)
    mean.add(type(update).from_chunks(pieces), weight=2**31 - 1, site="a")

    result = mean.finish().arrays["w"]

    assert result[:64].tolist() == [0.0] * 64
    assert result[64:] == pytest.approx(1e-28, rel=1e-6)


# --- order, threads, chunks, spool -----------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_two_hundred_orders_of_arrival_have_one_digest(isa: str, threads: int) -> None:
    _native.use_isa("base")
    expected = mixed_digest(list(WEIGHTS), threads=1, chunk_coordinates=4096)
    _native.use_isa(isa)
    shuffle = random.Random(20_26)

    digests = set()
    for _ in range(200):
        order = list(WEIGHTS)
        shuffle.shuffle(order)
        digests.add(mixed_digest(order, threads, shuffle.choice([4096, 8192, 65536])))

    assert digests == {expected}


CODEC_OF = {"lyon": "int8", "osaka": "f32", "quito": "bf16", "oslo": "arrays", "bern": "ring16"}
ENCODED = {
    (site, size): encoded(site, codec, size)
    for (site, codec), size in itertools.product(CODEC_OF.items(), (4096, 8192, 65536))
    if codec != "arrays"
}


def mixed_digest(order: list[str], threads: int, chunk_coordinates: int) -> str:
    """The digest of a mean in which every site has another codec."""
    mean = aggregator(threads=threads)
    for site in order:
        update = ENCODED.get((site, chunk_coordinates), UPDATES[site])
        mean.add(update, weight=WEIGHTS[site], site=site)
    return mean.finish().digest


def test_a_spool_gives_the_same_digest_and_leaves_nothing(tmp_path: Path) -> None:
    expected = filled().finish()
    mean = filled(spool=tmp_path)
    kept = sorted(tmp_path.iterdir())

    assert mean.finish().digest == expected.digest
    assert len(kept) == len(UPDATES)
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    mean.remove("lyon")
    assert len(list(tmp_path.iterdir())) == len(UPDATES) - 1
    del mean
    assert list(tmp_path.iterdir()) == []


def test_a_spool_keeps_encoded_updates_in_their_wire_form(tmp_path: Path) -> None:
    mean = aggregator(spool=tmp_path)
    update = encoded("lyon", "int8")
    mean.add(update, weight=5, site="ly/../on\n")

    (path,) = tmp_path.iterdir()

    assert path.read_bytes() == b"".join(update.body)
    in_memory = aggregator()
    in_memory.add(update, weight=5, site="ly/../on\n")
    assert mean.finish().digest == in_memory.finish().digest


def test_a_spool_that_cannot_be_written_is_an_error_that_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a directory"):
        aggregator(spool=tmp_path / "missing")
    spool = tmp_path / "spool"
    spool.mkdir()
    mean = aggregator(spool=spool)
    spool.rmdir()

    with pytest.raises(ConfigError, match=r"cannot create spool file.*No such file"):
        mean.add(UPDATES["lyon"], weight=1, site="lyon")
    assert mean.sites == ()


# The second bound is the sum of all weights: an arrival that is counted twice for a moment
# would make the aggregator refuse another one.
@pytest.mark.parametrize(
    "options", [{}, {"streaming": Streaming(max_abs=200.0, max_total_weight=sum(WEIGHTS.values()))}]
)
def test_several_threads_may_add_at_once(options: dict[str, Any]) -> None:
    expected = filled(**options).finish().digest
    for _ in range(50):
        mean = aggregator(threads=2, **options)
        workers = [
            threading.Thread(target=mean.add, args=(UPDATES[site],),
                             kwargs={"weight": weight, "site": site})
            for site, weight in WEIGHTS.items()
        ]  # fmt: skip
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert mean.finish().digest == expected


def test_borrowed_arrays_average_to_the_same_bits() -> None:
    mean = aggregator()
    for site, update in UPDATES.items():
        mean.add(update, weight=WEIGHTS[site], site=site, copy=False)

    for isa in ISAS:
        _native.use_isa(isa)
        assert mean.finish().digest == filled().finish().digest


@pytest.mark.parametrize("name", ["a", "h"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 60_000.0])
def test_a_borrowed_array_that_grew_is_refused_and_a_copy_is_not_affected(
    name: str, bad: float
) -> None:
    expected = filled().finish().digest
    update = {key: array.copy() for key, array in UPDATES["lyon"].items()}
    borrowing, copying = aggregator(), aggregator()
    for mean, copy in ((borrowing, False), (copying, True)):
        for site, weight in WEIGHTS.items():
            arrays = update if site == "lyon" else UPDATES[site]
            mean.add(arrays, weight=weight, site=site, copy=copy)

    update[name][-1] = bad

    assert copying.finish().digest == expected
    for isa in ISAS:
        _native.use_isa(isa)
        with pytest.raises((ConfigError, PeerError), match=r"changed between|not finite"):
            borrowing.finish()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_infinity_written_beside_doubles_beyond_every_float_is_refused(bad: float) -> None:
    floats = np.ones(100, np.float32)
    borrowed = {"d": np.full(5, 1e300), "f": floats}
    mean = Aggregator(ModelLayout.from_arrays(borrowed))
    mean.add(borrowed, weight=1, site="lyon", copy=False)

    floats[50] = bad

    for isa in ISAS:
        _native.use_isa(isa)
        with pytest.raises((ConfigError, PeerError), match=r"changed between|not finite"):
            mean.finish()


def test_a_caller_may_drop_and_reuse_what_was_added() -> None:
    expected = filled().finish().digest
    mean = aggregator()
    for site, update in UPDATES.items():
        buffer = bytearray(encode(update, "f32", layout=LAYOUT).to_bytes())
        scratch = {name: array.copy() for name, array in update.items()}
        if site in ("lyon", "oslo"):
            mean.add(scratch, weight=WEIGHTS[site], site=site)
        elif site == "bern":
            mean.add({name: array.copy() for name, array in update.items()},
                     weight=WEIGHTS[site], site=site, copy=False)  # fmt: skip
        else:
            mean.add(buffer, weight=WEIGHTS[site], site=site)
        for array in scratch.values():
            array.fill(1)
        buffer[:] = bytes(len(buffer))

    assert mean.finish().digest == expected


def test_a_host_that_flushes_subnormal_numbers_gets_the_same_bits() -> None:
    expected = filled().finish().digest
    update = encode(UPDATES["oslo"], "f16", layout=LAYOUT).to_bytes()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        assert filled(threads=2).finish().digest == expected
        assert encode(UPDATES["oslo"], "f16", layout=LAYOUT).to_bytes() == update
    finally:
        torch.set_flush_denormal(False)


# --- a set that changes -----------------------------------------------------------------


def test_removing_a_site_is_as_if_it_had_never_been_there() -> None:
    without = aggregator()
    for site in ("lyon", "quito", "oslo", "bern"):
        without.add(UPDATES[site], weight=WEIGHTS[site], site=site)
    mean = filled()
    before = mean.finish()

    mean.remove("osaka")
    after = mean.finish()

    assert mean.sites == after.sites == ("bern", "lyon", "oslo", "quito")
    assert after.total_weight == sum(WEIGHTS.values()) - WEIGHTS["osaka"]
    assert after.digest == without.finish().digest != before.digest
    mean.add(UPDATES["osaka"], weight=WEIGHTS["osaka"], site="osaka")
    assert mean.finish().digest == before.digest


def test_a_result_says_who_and_how_much() -> None:
    result = filled().finish()

    assert result.sites == tuple(sorted(WEIGHTS))
    assert result.total_weight == sum(WEIGHTS.values())
    assert list(result.arrays) == [name for name, _, _ in TENSORS]
    assert [array.shape for array in result.arrays.values()] == [shape for *_, shape in TENSORS]
    assert result.arrays["b"].dtype == np.float32
    assert result.digest == result_digest(LAYOUT, result.arrays)


def test_sites_are_sorted_by_their_utf8_bytes() -> None:
    mean = aggregator()
    for site in ("é", "z", "\U0001f600", "a", "\uffff"):
        mean.add(UPDATES["lyon"], weight=1, site=site)

    assert mean.sites == ("a", "z", "é", "\uffff", "\U0001f600")


def test_there_is_no_mean_of_nothing() -> None:
    for options in ({}, {"streaming": STREAMING}):
        with pytest.raises(ConfigError, match="no mean of no updates"):
            aggregator(**options).finish()
    mean = aggregator()
    with pytest.raises(ConfigError, match="'lyon' has no update"):
        mean.remove("lyon")


# --- streaming ----------------------------------------------------------------------------

STREAMING = Streaming(max_abs=200.0, max_total_weight=2**32)


def test_a_streamed_mean_is_that_of_the_fractions_with_the_declared_scale() -> None:
    expected = reference.streamed_mean(
        [(WEIGHTS[site], flat_floats(update)) for site, update in UPDATES.items()],
        coordinate_dtypes(),
        200.0,
        2**32,
    )

    for isa in ISAS:
        _native.use_isa(isa)
        result = filled(streaming=STREAMING).finish()
        assert flat_floats(result.arrays) == expected
        assert result.arrays["n"].tolist() == filled().finish().arrays["n"].tolist()


def test_streamed_orders_and_forms_have_one_digest() -> None:
    digests = set()
    for order in itertools.islice(itertools.permutations(WEIGHTS), 0, 120, 7):
        mean = aggregator(streaming=STREAMING, threads=2)
        for site in order:
            update = ENCODED.get((site, 8192), UPDATES[site])
            mean.add(update, weight=WEIGHTS[site], site=site)
        digests.add(mean.finish().digest)

    assert len(digests) == 1


def test_a_value_or_weight_beyond_the_declared_bound_is_refused_and_changes_nothing() -> None:
    layout = ModelLayout.from_arrays({"w": np.zeros(5000, np.float32)})
    mean = Aggregator(layout, streaming=Streaming(max_abs=1.0, max_total_weight=10))
    mean.add({"w": np.ones(5000, np.float32)}, weight=4, site="a")
    before = mean.finish()
    beyond = np.zeros(5000, np.float32)
    beyond[4999] = 1.0001

    with pytest.raises(PeerError, match=r"site 'b' sent a value beyond the declared max_abs"):
        mean.add({"w": beyond}, weight=1, site="b")
    with pytest.raises(PeerError, match="site 'b' has weight 7, which passes the declared total"):
        mean.add({"w": np.ones(5000, np.float32)}, weight=7, site="b")
    with pytest.raises(PeerError, match="already added"):
        mean.add({"w": np.ones(5000, np.float32)}, weight=1, site="a")
    with pytest.raises(ConfigError, match="cannot forget site 'a'"):
        mean.remove("a")

    assert mean.finish().digest == before.digest
    assert mean.sites == ("a",)
    mean.add({"w": -np.ones(5000, np.float32)}, weight=6, site="b")
    assert mean.finish().arrays["w"].tolist() == [np.float32(-0.2)] * 5000


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [None, STREAMING])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_and_change_nothing(
    bad: float, streaming: Streaming | None
) -> None:
    mean = filled(streaming=streaming)
    before = mean.finish().digest
    for name in ("a", "h", "d"):
        poisoned = UPDATES["lyon"][name].copy()
        poisoned.reshape(-1)[[1, 7]] = bad
        for isa in ISAS:
            _native.use_isa(isa)
            with pytest.raises(PeerError, match=f"2 values that are not finite in tensor '{name}'"):
                mean.add(UPDATES["lyon"] | {name: poisoned}, weight=1, site="rome")

    assert mean.finish().digest == before
    assert "rome" not in mean.sites


LENGTHS = (1, 2, 7, 8, 15, 17, 33, 64, 65, 127, 511, 512, 513, 530, 4095, 4096, 4097, 4161)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("isa", ISAS)
def test_a_value_that_is_not_finite_is_refused_at_the_end_of_any_length(
    isa: str, dtype: str
) -> None:
    # Vectors of several widths end somewhere; what is left behind them is looked at, too.
    _native.use_isa(isa)
    patterns = {"f16": np.float16, "bf16": np.uint16, "f32": np.float32, "f64": np.float64}
    for length in LENGTHS:
        layout = ModelLayout(_native.Layout([("w", dtype, (length,))]))
        for streaming in (None, STREAMING):
            mean = Aggregator(layout, streaming=streaming, threads=1)
            for place in {0, length // 2, length - 1}:
                values = np.zeros(length, patterns[dtype])
                values[place] = 0x7FC0 if dtype == "bf16" else math.nan
                for copy in (True, False):
                    with pytest.raises(PeerError, match="1 values that are not finite"):
                        mean.add({"w": values}, weight=1, site="rome", copy=copy)


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16", "int8", "int4", "fp4", "sign", "ring24"])
@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_value_counts_at_the_end_of_any_length(isa: str, codec: str) -> None:
    # The sum's scale rests on it: a value that is not looked at could leave 64 bits.
    _native.use_isa(isa)
    options: dict[str, Any] = {"clip": 2.0**14} if codec == "ring24" else {}
    for length in LENGTHS:
        values = np.full(length, 2.0**-10, np.float32)
        values[-1] = -(2.0**14)
        update = encode({"w": values}, codec, **options)
        mean = Aggregator(update.layout, threads=1)
        for site in "abcd":
            mean.add(update, weight=2**31 - 1, site=site)

        assert mean.finish().arrays["w"].tolist() == decode(update)["w"].tolist()


@pytest.mark.parametrize("weight", [0, -1, 2**31, 2**70, -(2**70), 1.5, math.nan, "3", True, None])
def test_weights_that_are_not_allowed_are_refused(weight: Any) -> None:
    mean = aggregator()

    with pytest.raises(PeerError, match="site 'lyon' has weight"):
        mean.add(UPDATES["lyon"], weight=weight, site="lyon")
    assert mean.total_weight == 0


@pytest.mark.parametrize("weight", [3, 3.0, np.int32(3), np.float64(3), torch.tensor(3)])
def test_whole_numbers_of_any_kind_are_weights(weight: Any) -> None:
    mean = aggregator()
    mean.add(UPDATES["lyon"], weight=weight, site="lyon")

    assert mean.total_weight == 3


def test_a_site_counts_once() -> None:
    mean = filled()

    with pytest.raises(PeerError, match="site 'lyon' has already added an update"):
        mean.add(UPDATES["osaka"], weight=1, site="lyon")
    assert mean.total_weight == sum(WEIGHTS.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"d": np.zeros((5, 3), np.float32)}, r"shape \(5, 3\)"),
        ({"d": np.zeros((3, 5))}, "'d' is f64"),
        ({"extra": np.zeros(1)}, r"\('extra'\) unknown"),
        ({"n": [1, 2]}, "a list, not an array"),
    ],
)
def test_an_update_of_another_shape_is_the_sites_mistake(
    change: dict[str, Any], reason: str
) -> None:
    mean = aggregator()

    with pytest.raises(PeerError, match=f"site 'lyon' sent a bad update: .*{reason}"):
        mean.add(UPDATES["lyon"] | change, weight=1, site="lyon")
    assert mean.sites == ()


def test_an_unsigned_value_beyond_63_bits_is_the_sites_mistake() -> None:
    mean = Aggregator(ModelLayout(_native.Layout([("u", "u64", (2,))])))

    with pytest.raises(PeerError, match=r"tensor 'u' has a value above 2\*\*63-1"):
        mean.add({"u": np.array([0, 2**63], np.uint64)}, weight=1, site="lyon")


def test_encoded_updates_of_another_layout_or_with_wrong_bytes_are_refused() -> None:
    mean = aggregator()
    other = encode({"w": np.zeros(3, np.float32)}, "f32")
    damaged = bytearray(encoded("lyon", "int8").to_bytes())
    damaged[-100] ^= 1

    with pytest.raises(PeerError, match="another layout"):
        mean.add(other, weight=1, site="lyon")
    with pytest.raises(DecodeError):
        mean.add(damaged, weight=1, site="lyon")
    with pytest.raises(ConfigError, match="an update cannot be a int"):
        mean.add(5, weight=1, site="lyon")  # type: ignore[arg-type]
    assert mean.sites == ()


def foreign_chunk(dtype: str, codec: str, values: list[float], scale: float = 0.0) -> Any:
    """A well-formed update whose values its tensor cannot hold."""
    layout = ModelLayout(_native.Layout([("w", dtype, (len(values),))]))
    group = reference_codecs.group_of(dtype)
    size = reference_codecs.aligned(len(values))
    padded = values + [0] * (size - len(values))
    body = reference_codecs.sections(codec, padded, 0, scale, None)
    plan = bytes(32)
    chunk = reference_codecs.chunk(codec, group, 0, 0, True, body, size, plan, 0)
    return layout, chunk, plan


@pytest.mark.parametrize(
    ("dtype", "codec", "values", "scale", "reason"),
    [
        ("f16", "f32", [1.0, 7e4], 0.0, "tensor 'w' that do not fit f16"),
        ("f16", "bf16", [-7e4], 0.0, "tensor 'w' that do not fit f16"),
        ("f16", "int8", [7e4], 0.0, "tensor 'w' that do not fit f16"),
        ("bf16", "f32", [3.4e38], 0.0, "tensor 'w' that do not fit bf16"),
        ("u8", "i64", [3, 256], 0.0, "tensor 'w' that does not fit u8"),
        ("i8", "i64", [-129], 0.0, "tensor 'w' that does not fit i8"),
        ("u64", "i64", [-1], 0.0, "tensor 'w' that does not fit u64"),
        ("f32", "ring32", [2.0**30], 2.0**-1022, "beyond every f32"),
    ],
)
@pytest.mark.parametrize("streaming", [0.0, 1e30])
def test_values_their_tensor_cannot_hold_are_refused_and_change_nothing(
    dtype: str, codec: str, values: list[float], scale: float, reason: str, streaming: float
) -> None:
    if codec == "ring32":
        layout, chunk, plan = foreign_chunk(dtype, codec, values, 1.0)
    else:
        layout, chunk, plan = foreign_chunk(dtype, codec, values)
    mean = _native.MeanAggregator(
        layout.native,
        threads=1,
        spool="",
        streaming_max_abs=streaming,
        streaming_max_total_weight=100 if streaming else 0,
    )
    number = 1 if codec == "i64" else reference_codecs.codec_number(codec)

    with pytest.raises(PeerError, match=reason):
        mean.add_chunks(
            "lyon", 1, [chunk], codec=number, scale=scale, plan_digest=plan, update_id=0,
            chunk_coordinates=4096,
        )  # fmt: skip
    assert mean.sites == ()


@pytest.mark.parametrize("codec", ["f32", "int8", "ring8", "i64"])
def test_a_gap_that_is_not_zero_is_refused(codec: str) -> None:
    dtype = "i64" if codec == "i64" else "f32"
    layout = _native.Layout([("w", dtype, (3,))])
    plan = bytes(32)
    body = reference_codecs.sections(codec, [0] * 63 + [1], 0, 1.0, None)
    chunk = reference_codecs.chunk(codec, 2 if codec == "i64" else 1, 0, 0, True, body, 64, plan, 0)
    mean = _native.MeanAggregator(
        layout, threads=1, spool="", streaming_max_abs=0.0, streaming_max_total_weight=0
    )

    with pytest.raises(DecodeError, match="coordinate 63 lies between tensors"):
        mean.add_chunks(
            "lyon", 1, [chunk], codec=1 if codec == "i64" else reference_codecs.codec_number(codec),
            scale=1.0 if codec == "ring8" else 0.0, plan_digest=plan, update_id=0,
            chunk_coordinates=4096,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"rule": "average"}, ConfigError, "unknown rule 'average'"),
        ({"backend": "tpu"}, ConfigError, "unknown backend 'tpu'"),
        ({"backend": "cuda:99"}, DeviceError, "no CUDA backend|no device"),
        ({"threads": 0}, ConfigError, "threads"),
        ({"streaming": STREAMING, "spool": "."}, ConfigError, "nothing to spool"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        aggregator(**options)


@pytest.mark.parametrize(
    ("max_abs", "weight"),
    [(0.0, 1), (-1.0, 1), (math.inf, 1), (math.nan, 1), (1.0, 0), (1.0, 2**53)],
)
def test_streaming_bounds_that_bound_nothing_are_refused(max_abs: float, weight: int) -> None:
    with pytest.raises(ConfigError):
        Streaming(max_abs=max_abs, max_total_weight=weight)


def test_what_was_decoded_can_be_added_again() -> None:
    mean = aggregator()

    mean.add(decode(encoded("lyon", "bf16")), weight=1, site="lyon")

    assert mean.finish().arrays["b"].dtype == np.float32
