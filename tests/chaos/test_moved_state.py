"""Another coordinator takes over: never beside the first, and from a copy when that is gone."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from support.chaos import Case, Scenario, as_undisturbed, failures
from support.lives import NO_TLS, start
from support.site_lives import Step


def test_a_second_coordinator_on_a_live_directory_is_refused(masked: Case, tmp_path: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(masked.template, state)
    settings = masked.consortium.coordinator_settings(state, **NO_TLS)

    async def main() -> None:
        first = start(settings)
        assert await first.until("port")
        second = start(settings)
        assert await second.until("port") is None
        second.end()
        assert second.process.exitcode == 1
        assert "another coordinator uses the state directory" in second.failure, second.failure
        first.end()
        third = start(settings)
        assert await third.until("port")
        third.end()

    asyncio.run(main())


def moved(state: Path) -> Path:
    """Somewhere else; the disk that it was on is gone."""
    there = state.with_name(f"{state.name}-moved")
    shutil.copytree(state, there)
    shutil.rmtree(state)
    return there


def test_a_run_goes_on_from_a_copy_of_the_directory_at_another_address(
    case: Case, tmp_path: Path
) -> None:
    """Twice."""
    scenarios = [Scenario([Step("spool.chunks", 3), Step("update.kept", 1)], meanwhile=moved)]
    assert asyncio.run(failures(case, tmp_path, scenarios, as_undisturbed)) == {}
