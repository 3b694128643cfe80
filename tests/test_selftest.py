"""What a process tests of its machine before it serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from veilsum import _native, selftest
from veilsum.errors import DeviceError
from veilsum.transport.coordinator_app import serve_coordinator
from veilsum.transport.drain import Orders
from veilsum.transport.settings import CoordinatorSettings, SiteSettings
from veilsum.transport.site_app import serve_site


@pytest.mark.parametrize("backend", ["cpu", "emu"])
def test_a_machine_that_computes_as_it_must_may_serve(backend):
    selftest.require_working(backend)


@pytest.mark.parametrize(
    ("constant", "wrong", "name"),
    [
        ("CHACHA20", {22: ((0, 0, 0, 0), "")}, "masks"),
        ("SHARES", ("00" * 32,) * 5, "shares"),
        ("ENCODED", {"int8": (0.0, 0.0, "0" * 16)}, "codecs"),
        ("_is_nearest", lambda value, exact: False, "exact mean"),
    ],
)
def test_the_first_test_that_fails_is_named(constant, wrong, name, monkeypatch):
    monkeypatch.setattr(selftest, constant, wrong)
    with pytest.raises(DeviceError, match=f"the self-test of {name} on") as caught:
        selftest.require_working("cpu")
    assert "veilsum doctor" in (caught.value.hint or "")


def test_the_kernels_that_check_sums_are_tested_too(monkeypatch):
    def nothing(words: np.ndarray, *_: object, **__: object) -> None:
        words[:] = 0

    monkeypatch.setattr(_native, "add_mask_tiles", nothing)
    with pytest.raises(DeviceError, match="tiles of masks on base"):
        selftest.require_working("cpu")


def test_a_device_is_tested_where_one_is_used(monkeypatch):
    monkeypatch.setattr(selftest, "UPLOADS", {(22, 0, "chacha20"): "0" * 16})
    selftest.require_working("cpu")
    with pytest.raises(DeviceError, match="masked uploads on emu"):
        selftest.require_working("emu")


def test_neither_role_serves_on_a_machine_that_computes_wrongly(monkeypatch, tmp_path: Path):
    """It is the first thing that they do: not one of these files is there."""
    monkeypatch.setattr(selftest, "SHARES", ("00" * 32,) * 5)
    missing = tmp_path / "none"
    coordinator = CoordinatorSettings(
        listen="127.0.0.1:0",
        insecure=True,
        roster=missing,
        signing_key=missing,
        state_dir=tmp_path / "state",
    )
    site = SiteSettings(
        site="lyon",
        coordinator="127.0.0.1:1",
        insecure=True,
        roster=missing,
        signing_key=missing,
        trainer="nobody:trainer",
    )

    async def serve_both() -> None:
        with pytest.raises(DeviceError, match="self-test of shares"):
            await serve_coordinator(coordinator, orders=Orders())
        with pytest.raises(DeviceError, match="self-test of shares"):
            await serve_site(site, None, stop=asyncio.Event())  # type: ignore[arg-type]

    asyncio.run(serve_both())
    assert not (tmp_path / "state").exists()
