"""What an update of a buffered run counts for, and which settings a buffered run can have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import fedbuff
from veilsum.buffering import MAX_STALENESS, WEIGHT_CAP, Buffering
from veilsum.control import BufferedUpdate, RoundId, RoundRecord, RunSpec
from veilsum.errors import ConfigError, DecodeError
from veilsum.transport import wire_runs, wire_spec

SPEC = RunSpec("task", masked=False, buffer_size=4, max_staleness=7, min_sites=2)


@given(st.integers(1, WEIGHT_CAP), st.data())
def test_a_weight_counts_for_the_integer_nearest_to_what_the_paper_says(
    cap: int, data: st.DataObject
) -> None:
    weight = data.draw(st.integers(1, cap))
    staleness = data.draw(st.integers(0, MAX_STALENESS))
    buffering = Buffering(1, MAX_STALENESS, cap)

    counted = buffering.counted(weight, staleness)

    assert buffering.fraction_bits == fedbuff.fraction_bits(cap)
    assert counted == fedbuff.counted(weight, staleness, cap)
    exact = weight * 2**buffering.fraction_bits / (1 + staleness) ** 0.5
    assert abs(counted - exact) <= 0.5 + 2**-20
    assert 1 <= counted < 2**31


@pytest.mark.parametrize(
    ("weight", "staleness", "cap", "counted"),
    [
        (1, 0, 65_536, 2**14),
        (65_536, 0, 65_536, 2**30),
        (65_535, 0, 65_535, 65_535 * 2**15),
        (1, 3, 65_536, 2**13),  # 1 / sqrt(4) is a half
        (1, 1, 65_536, 11_585),  # 2**14 / sqrt(2) = 11585.24
        (1, 2, 65_536, 9_459),  # 2**14 / sqrt(3) = 9459.31
        (10, 20, 100, 36_610_887),  # 10 * 2**24 / sqrt(21) = 36610886.796
        (1, MAX_STALENESS, WEIGHT_CAP, 32),  # 2**10 / sqrt(1001) = 32.37
    ],
)
def test_known_answers(weight: int, staleness: int, cap: int, counted: int) -> None:
    assert Buffering(1, MAX_STALENESS, cap).counted(weight, staleness) == counted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masked": True, "min_sites": 3}, "buffer_size is for plain runs: masks cancel out only"),
        ({"error_feedback": True}, "error_feedback is for rounds"),
        ({"quorum": 3}, "quorum cannot be set in a buffered run: its rounds wait for no site"),
        ({"select": 3}, "select cannot be set"),
        ({"quorum": 3, "late": "next"}, "quorum and late cannot be set"),
        ({"buffer_size": 1}, "buffer_size 1 is less than min_sites 2"),
        ({"buffer_size": -1}, "buffer_size must be 1 or more, got -1"),
        ({"buffer_size": 0}, "max_staleness is for buffered runs: set buffer_size"),
        ({"max_staleness": -1}, "max_staleness must be 0 to 1000, got -1"),
        ({"max_staleness": 1001}, "max_staleness must be 0 to 1000, got 1001"),
        ({"weight_cap": 2**21}, "weight_cap of a buffered run must be 1 to 2097151, got 2097152"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SPEC, **settings)


def test_a_run_without_buffers_has_the_usual_staleness() -> None:
    assert RunSpec("task", masked=False).max_staleness == 20
    assert replace(SPEC, buffer_size=1, min_sites=1).buffering.size == 1


def test_a_buffered_run_travels_and_one_that_was_stored_before_there_were_buffers_has_none() -> (
    None
):
    message = wire_spec.encode_spec(SPEC)
    assert wire_spec.decode_spec(message) == SPEC
    message.ClearField("buffer_size")
    message.ClearField("max_staleness")
    assert wire_spec.decode_spec(message) == replace(SPEC, buffer_size=0, max_staleness=20)
    message.max_staleness = 7
    with pytest.raises(DecodeError, match="max_staleness is for buffered runs"):
        wire_spec.decode_spec(message)


def test_a_record_keeps_every_update_of_a_buffer() -> None:
    updates = (BufferedUpdate("basel", 0, 1, 50, 70), BufferedUpdate("basel", 1, 0, 50, 100))
    record = RoundRecord(
        round=RoundId("run", 2),
        completed=True,
        reason="",
        digest="00" * 32,
        model_hash="11" * 32,
        sites=("basel",),
        dropped={},
        total_weight=170,
        metrics={},
        bytes_in={"basel": 10},
        seconds={"updates": 1.0},
        updates=updates,
    )

    assert wire_runs.record_from_bytes(wire_runs.record_to_bytes(record)) == record
    zero = replace(record, updates=(BufferedUpdate("basel", 0, 1, 0, 0),))
    with pytest.raises(DecodeError, match="weight"):
        wire_runs.record_from_bytes(wire_runs.record_to_bytes(zero))
