"""What both sides of a plain round agree on."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from veilsum import _native, plain
from veilsum.control import RoundId, RunSpec
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout

LAYOUT = ModelLayout.from_arrays(
    {"weight": np.zeros(70_000, np.float32), "seen": np.zeros(3, np.int64)}
)
SPEC = RunSpec("task", masked=False, metrics=("auc", "loss"), clip=0.5)
PLAN = plain.make_plan(SPEC, LAYOUT, bytes(32))


def test_a_plan_says_what_the_run_asks_for() -> None:
    assert PLAN.codec == "f32"
    assert (PLAN.layout, PLAN.model_hash) == (LAYOUT.to_bytes(), bytes(32))
    assert (PLAN.weight_cap, PLAN.metrics, PLAN.clip) == (65_536, ("auc", "loss"), 0.5)
    plain.check_plan(PLAN)


@pytest.mark.parametrize(
    "change",
    [
        {"layout": b"VLL1"},
        {"codec": "f16"},
        {"weight_cap": 1},
        {"chunk_coordinates": 4096},
        {"metrics": ("aucloss",)},
        {"metrics": ("loss", "auc")},
        {"model_hash": b"\1" * 32},
        {"clip": 0.25},
        {"compression": "zstd"},
        {"error_feedback": True},
    ],
)
def test_the_digest_covers_every_other_field(change: dict[str, Any]) -> None:
    assert plain.plan_digest(replace(PLAN, **change)) != PLAN.digest


def test_every_field_but_the_digest_is_tried_above() -> None:
    assert {field.name for field in fields(PLAN)} == {
        "layout",
        "codec",
        "weight_cap",
        "chunk_coordinates",
        "metrics",
        "model_hash",
        "clip",
        "compression",
        "error_feedback",
        "digest",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_cap": 0}, "weight_cap must be 1 to"),
        ({"weight_cap": 2**31}, "weight_cap must be 1 to"),
        ({"chunk_coordinates": 4096}, "chunks of a plain round hold 65536 coordinates"),
        ({"codec": "i64"}, "not for the updates of a plain round"),
        ({"codec": "ring65"}, "not for the updates of a plain round"),
        ({"codec": "ring1"}, "not for the updates of a plain round"),
        ({"codec": "ring16", "clip": float("inf")}, "needs a positive, finite clip"),
        ({"codec": "ring16", "clip": float("nan")}, "needs a positive, finite clip"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_even_with_the_right_digest(
    change: dict[str, Any], message: str
) -> None:
    changed = replace(PLAN, **change)

    with pytest.raises(ConfigError, match=message):
        plain.check_plan(replace(changed, digest=plain.plan_digest(changed)))


@pytest.mark.parametrize("bits", range(2, 65))
@pytest.mark.parametrize("clip", [0.1, 0.3, 1.0, 7.7, 1e-20, 1e20])
def test_the_clip_is_never_beyond_the_last_step_of_a_ring_codec(bits: int, clip: float) -> None:
    settings = plain.codec_settings(f"ring{bits}", clip)

    largest = 2 ** (bits - 1) - (1 if bits <= 30 else max(2, 2 ** (bits - 54)))
    assert settings.limit == clip
    assert settings.scale * clip <= largest
    assert settings.scale * clip == pytest.approx(largest, rel=1e-15)


def test_codecs_without_steps_have_no_scale_and_no_limit() -> None:
    for name in ("f32", "f16", "bf16", "int8"):
        settings = plain.codec_settings(name, 0.5)
        assert (settings.scale, settings.limit) == (0.0, 0.0)


def test_a_codec_whose_blocks_do_not_fit_the_model_is_refused_when_the_run_is_planned() -> None:
    layout = ModelLayout.from_arrays({"a": np.zeros(64), "b": np.zeros(3)})
    plain.make_plan(replace(SPEC, codec="int8"), layout, bytes(32))
    plain.make_plan(replace(SPEC, codec="int8/b256"), LAYOUT, bytes(32))

    with pytest.raises(ConfigError, match="tensor 'b' starts inside a block of codec int8/b256"):
        plain.make_plan(replace(SPEC, codec="int8/b256"), layout, bytes(32))


def test_update_ids_differ_by_plan_round_attempt_run_and_site() -> None:
    other_plan = plain.make_plan(replace(SPEC, clip=0.25), LAYOUT, bytes(32))
    ids = {
        plain.update_id(PLAN, RoundId("run", 1), "lyon"),
        plain.update_id(other_plan, RoundId("run", 1), "lyon"),
        plain.update_id(PLAN, RoundId("run", 2), "lyon"),
        plain.update_id(PLAN, RoundId("run", 1, 1), "lyon"),
        plain.update_id(PLAN, RoundId("runl", 1), "yon"),
        plain.update_id(PLAN, RoundId("run", 1), "oslo"),
    }

    assert len(ids) == 6
    assert all(0 <= one < 2**64 for one in ids)


def test_the_chunks_of_an_update_cover_both_groups() -> None:
    floats, integers = plain.chunk_groups(LAYOUT, plain.codec_settings("f32", 1.0).number)

    assert (floats.number, floats.coordinates, floats.count) == (1, 70_016, 2)
    assert (integers.number, integers.coordinates, integers.count) == (2, 64, 1)


@pytest.mark.parametrize("bits", [2, 16, 30, 31, 32, 33, 53, 54, 55, 56, 64])
def test_an_update_at_the_clip_can_be_encoded_with_every_ring_codec(bits: int) -> None:
    settings = plain.codec_settings(f"ring{bits}", 0.3)
    layout = ModelLayout.from_arrays({"weight": np.zeros(4096)})
    update = np.tile([0.3, -0.3], 2048)

    chunks = _native.encode_chunks(
        layout.native,
        [update],
        codec=settings.number,
        scale=settings.scale,
        limit=settings.limit,
        rounding=_native.Secret.from_bytes(bytes(range(32))),
        least_error=False,
        plan_digest=bytes(32),
        update_id=1,
        chunk_coordinates=4096,
        threads=1,
    )

    assert len(chunks) == 1
