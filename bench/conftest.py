"""What every benchmark shares. Two lines are enough for one:

def test_the_thing(report):
    report(ours, numpy=theirs, size=bytes_touched, coordinates=values)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from harness import Report

from veilsum.bench import machine
from veilsum.bench.timing import Timer

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


def _report(
    request: pytest.FixtureRequest, probes: dict[str, Callable[[], object]], timer: Timer
) -> Report:
    request.node.add_marker(pytest.mark.benchmark(timer=timer))
    benchmark = request.getfixturevalue("benchmark")
    return Report(request.node.name, benchmark, probes, request.config.stash[_LINES], timer)


@pytest.fixture
def report(
    request: pytest.FixtureRequest, memory_probes: dict[str, Callable[[], object]]
) -> Report:
    """Times ours, yardsticks and memory in turn (harness.Report), in processor time.

    On an idle machine that is the wall time of one thread, and on a busy one still that of the
    work and not of its neighbours. For several threads use wall_report.
    """
    return _report(request, memory_probes, time.process_time)


@pytest.fixture
def wall_report(
    request: pytest.FixtureRequest, memory_probes: dict[str, Callable[[], object]]
) -> Report:
    """The same in wall time."""
    return _report(request, memory_probes, time.perf_counter)


def pytest_configure(config: pytest.Config) -> None:
    machine.keep_pages()
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
