"""Open files: a coordinator sees to its limit before it serves anyone."""

from __future__ import annotations

import resource

import pytest

from veilsum.errors import ConfigError
from veilsum.transport import process
from veilsum.transport.process import allow_open_files, files_beside_connections

ENDLESS = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The last one is what the system says."""
    known = [(1024, 4096)]
    monkeypatch.setattr(process.resource, "getrlimit", lambda _: known[-1])
    monkeypatch.setattr(process.resource, "setrlimit", lambda _, new: known.append(new))
    return known


@pytest.mark.parametrize(
    ("system", "sites", "connections", "allowed"),
    [
        ((1024, 4096), 12, 600, 1024),  # 600 + 12 + 128 are fewer
        ((1024, 4096), 12, 2000, 2140),
        ((1024, 4096), 12, 8192, 4096),  # as far as may be
        ((1024, 4096), 1000, 100, 3128),  # three for each of the sites
        ((1024, ENDLESS), 12, 8192, 8332),
    ],
)
def test_the_limit_is_raised_to_what_sites_and_connections_need(
    system: tuple[int, int],
    sites: int,
    connections: int,
    allowed: int,
    limits: list[tuple[int, int]],
) -> None:
    limits.append(system)

    assert allow_open_files(sites, connections) == allowed
    assert limits[-1] == (allowed, system[1])


def test_an_endless_limit_is_left_alone(limits: list[tuple[int, int]]) -> None:
    limits.append((ENDLESS, ENDLESS))

    assert allow_open_files(4096, 8192) >= 8192 + files_beside_connections(4096)
    assert limits[-1] == (ENDLESS, ENDLESS)


def test_a_system_that_allows_too_few_is_an_error_with_a_remedy(
    limits: list[tuple[int, int]],
) -> None:
    allow_open_files(1322, 1)  # 4094
    with pytest.raises(
        ConfigError, match=r"1323 sites needs 4097 open files, .* process 4096"
    ) as no:
        allow_open_files(1323, 1)
    assert "LimitNOFILE=4097" in (no.value.hint or "")
