"""What every test may rely on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from support.devices import reset_devices

# Every run tries the same examples.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _every_test_leaves_the_default_kernels() -> Iterator[None]:
    """A test may switch the instruction set, or ask something of devices."""
    from veilsum import _native

    yield
    _native.use_isa("")
    _native.use_aes("")
    reset_devices()
