"""What every test of a host needs before its host is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

# Hosts that report home read these when they are imported; no test reaches outside the machine.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"


@pytest.fixture
def flower_task() -> Iterator[None]:
    """Flower's messages can be made, as inside a process that Flower started."""
    from support import flower_grid

    with flower_grid.flower_task():
        yield


@pytest.fixture
def grid(flower_task: None) -> Any:
    """The five sites of support/flower_round.py, all of them honest."""
    from support import flower_grid, flower_round

    return flower_grid.LocalGrid(dict.fromkeys(flower_round.WEIGHTS, flower_round.honest))
