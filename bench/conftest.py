"""What every benchmark shares. Two lines are enough for one:

def test_the_thing(report):
    report(ours, numpy=theirs, size=bytes_touched, coordinates=values)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import machine
import pytest
from harness import Report

_LINES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def memory_probes() -> dict[str, Callable[[], object]]:
    """The machine's own speeds: calls that move machine.PROBE_BYTES, by name."""
    return machine.probes()


@pytest.fixture(scope="session")
def torch_one_thread() -> Any:
    """The torch module, told to use one thread."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


@pytest.fixture
def report(
    request: pytest.FixtureRequest,
    benchmark: Any,
    memory_probes: dict[str, Callable[[], object]],
) -> Report:
    """Times ours, yardsticks and memory in turn (harness.Report)."""
    return Report(request.node.name, benchmark, memory_probes, request.config.stash[_LINES])


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LINES] = []


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    machine_info["veilsum"] = machine.description()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.stash[_LINES]:
        return
    facts = machine.description()
    terminalreporter.section("speed")
    terminalreporter.write_line(", ".join(facts.values()))
    for text in config.stash[_LINES]:
        terminalreporter.write_line(text)
