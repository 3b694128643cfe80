"""The digest of an aggregate is made when asked for, and never of anything but the result."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from typing_extensions import Buffer

from veilsum import Aggregator, ConfigError, ModelLayout, _native
from veilsum.aggregate import AggregateResult
from veilsum.model import result_digest

LAYOUT = ModelLayout(
    _native.Layout(
        [("w", "f32", (3, 5)), ("b", "bf16", (7,)), ("none", "f16", (0,)), ("n", "i64", ())]
    )
)
UPDATE: dict[str, Any] = {
    "w": np.arange(15, dtype=np.float32).reshape(3, 5) / 7,
    "b": np.arange(7, dtype=np.float32),
    "none": np.empty(0, np.float16),
    "n": np.array(3, np.int64),
}


def result(rule: str = "mean", **changed: Any) -> AggregateResult:
    sums = Aggregator(LAYOUT, rule=rule, threads=2)
    sums.add(UPDATE | changed, weight=1, site="a")
    return sums.finish()


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_the_digest_of_a_result_is_that_of_its_arrays(rule: str) -> None:
    assert result(rule).digest == result_digest(LAYOUT, UPDATE)


def change_a_value(arrays: dict[str, Any]) -> None:
    arrays["w"][2, 4] += 1


def change_a_sign_of_zero(arrays: dict[str, Any]) -> None:
    arrays["b"][0] = -0.0


def replace_an_array(arrays: dict[str, Any]) -> None:
    arrays["n"] = np.array(4, np.int64)


def remove_an_array(arrays: dict[str, Any]) -> None:
    del arrays["none"]


def reorder(arrays: dict[str, Any]) -> None:
    arrays["w"] = arrays.pop("w")


def move_bytes_between_arrays(arrays: dict[str, Any]) -> None:
    # The same bytes one after the other, cut in another place.
    flat = arrays["w"].reshape(-1)
    arrays["w"], arrays["b"] = flat[:14], np.concatenate([flat[14:], arrays["b"]])


CHANGES = [
    change_a_value,
    change_a_sign_of_zero,
    replace_an_array,
    remove_an_array,
    reorder,
    move_bytes_between_arrays,
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_of_arrays_that_were_changed_is_refused(
    change: Callable[[dict[str, Any]], None],
) -> None:
    changed = result()
    change(changed.arrays)

    with pytest.raises(ConfigError, match="changed after finish"):
        _ = changed.digest
    with pytest.raises(ConfigError) as refused:
        pickle.dumps(changed)
    assert "read `digest` before" in str(refused.value.hint)


def test_a_digest_that_was_read_stays_what_it_was() -> None:
    changed = result()
    before = changed.digest
    change_a_value(changed.arrays)

    assert changed.digest == before


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda held: pickle.loads(pickle.dumps(held))],
    ids=["deep", "pickle"],
)
def test_a_result_that_is_copied_or_pickled_carries_its_digest(
    duplicate: Callable[[AggregateResult], AggregateResult],
) -> None:
    original = result()
    again = duplicate(original)
    change_a_value(again.arrays)  # the original's are others

    assert again.digest == original.digest == result_digest(LAYOUT, UPDATE)
    assert again == original


def test_a_shallow_copy_shares_the_arrays_and_their_digest() -> None:
    original = result()
    shared = copy.copy(original)
    assert shared.arrays is original.arrays
    change_a_value(shared.arrays)

    with pytest.raises(ConfigError, match="changed after finish"):
        _ = shared.digest


def test_results_are_equal_if_their_values_and_sites_are() -> None:
    assert result() == result()
    assert result() != result(n=np.array(4, np.int64))
    assert result() != "a result"
    other_site = Aggregator(LAYOUT)
    other_site.add(UPDATE, weight=1, site="b")
    assert other_site.finish() != result()
    changed = result()
    change_a_value(changed.arrays)
    assert changed == changed
    with pytest.raises(TypeError, match="unhashable"):
        hash(changed)


def test_showing_a_result_computes_nothing() -> None:
    shown = result()
    assert "_digest=<not computed yet>" in repr(shown)
    assert shown.digest in repr(shown)


def test_threads_that_ask_at_once_are_told_the_same() -> None:
    asked, found = result(), []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        found.append(asked.digest)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [result_digest(LAYOUT, UPDATE)] * 8


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_the_checksum_of_buffers_depends_on_every_byte_and_on_nothing_else(isa: str) -> None:
    rng = np.random.default_rng(5)
    # More than one piece of work, and many small ones.
    buffers: list[bytes] = [rng.bytes(size) for size in (9 << 20, 0, 1, 3 << 20)] + [
        rng.bytes(100)
    ] * 200
    expected = _native.checksum(buffers, threads=1)
    assert _native.checksum(buffers, threads=3) == expected
    _native.use_isa("base")
    assert _native.checksum(buffers, threads=2) == expected
    _native.use_isa(isa)
    for number, place in [(0, 0), (0, (9 << 20) - 1), (0, 4 << 20), (2, 0), (203, 99)]:
        changed = bytearray(buffers[number])
        changed[place] ^= 1
        others: list[Buffer] = [*buffers[:number], changed, *buffers[number + 1 :]]
        assert _native.checksum(others, threads=2) != expected
