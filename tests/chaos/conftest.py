"""Runs that are submitted once for all tests of processes that die."""

from __future__ import annotations

import asyncio

import pytest

from support.chaos import DEADLINES, SITES, Case, make_case
from support.consortium import make_consortium
from veilsum.control import RunSpec

VICTIM = "kyoto"
SPECS = {
    "plain": RunSpec("chaos", rounds=2, masked=False, deadlines=DEADLINES),
    "masked": RunSpec("chaos", rounds=2, clip=0.5, max_attempts=10, deadlines=DEADLINES),
}


def _case(kind: str, factory: pytest.TempPathFactory) -> Case:
    folder = factory.mktemp(kind)
    consortium = make_consortium(folder / "consortium", SITES)
    return asyncio.run(make_case(consortium, folder, SPECS[kind], (VICTIM,)))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _case("plain", tmp_path_factory)


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _case("masked", tmp_path_factory)


@pytest.fixture(params=SPECS)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found
