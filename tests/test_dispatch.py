"""The choice of the instruction set: forced by name, never silently replaced."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from veilsum import _native
from veilsum.errors import ConfigError

LEVELS = ("base", "v2", "v3", "v4")
PRINT_ACTIVE = "from veilsum import _native; print(_native.active_isa())"


def run(code: str, isa: str = "", aes: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "VEILSUM_ISA": isa, "VEILSUM_AES": aes},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_levels_are_listed_weakest_first_and_base_is_always_there():
    isas = _native.supported_isas()

    assert isas == LEVELS[: len(isas)]
    assert isas[0] == "base"


def test_levels_are_those_the_operating_system_reports_for_this_cpu():
    with open("/proc/cpuinfo") as cpuinfo:
        flags = next((set(line.split()) for line in cpuinfo if line.startswith("flags")), set())
    needed = [
        {"ssse3", "sse4_1", "sse4_2", "popcnt", "cx16"},
        {"avx", "avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"},
        {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"},
    ]
    level = next((at for at, wanted in enumerate(needed) if not wanted <= flags), len(needed))

    assert _native.supported_isas() == LEVELS[: level + 1]


def test_the_strongest_level_is_the_default():
    assert run(PRINT_ACTIVE, "") == _native.supported_isas()[-1]


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_the_environment_forces_a_level(isa):
    assert run(PRINT_ACTIVE, isa) == isa


def test_a_level_of_the_environment_that_does_not_exist_is_an_error_that_lists_what_does():
    code = (
        "from veilsum import _native\n"
        "for _ in range(2):\n"
        "    try: _native.active_isa()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    known = " ".join(_native.supported_isas())
    message = (
        f"ConfigError VEILSUM_ISA asks for instruction set 'avx9'; this CPU and build run: {known}"
    )

    assert run(code, "avx9").splitlines() == [message, message]


def test_a_level_can_be_chosen_at_run_time_and_given_back():
    for isa in _native.supported_isas():
        _native.use_isa(isa)
        assert _native.active_isa() == isa

    _native.use_isa("")

    assert _native.active_isa() == _native.supported_isas()[-1]


def test_an_unknown_level_is_refused_and_changes_nothing():
    _native.use_isa("base")

    with pytest.raises(ConfigError, match=r"use_isa\(\) asks for instruction set 'v5'"):
        _native.use_isa("v5")

    assert _native.active_isa() == "base"


# --- AES -----------------------------------------------------------------------------------

AES = ("bitsliced", "aesni", "vaes256", "vaes512")
PRINT_AES = "from veilsum import _native; print(_native.active_aes())"


def test_implementations_of_aes_are_those_the_operating_system_reports_for_this_cpu():
    with open("/proc/cpuinfo") as cpuinfo:
        flags = next((set(line.split()) for line in cpuinfo if line.startswith("flags")), set())
    levels = len(_native.supported_isas())
    needed = {"aesni": ({"aes"}, 2), "vaes256": ({"aes", "vaes"}, 3), "vaes512": ({"vaes"}, 4)}
    present = [name for name, (own, level) in needed.items() if own <= flags and level <= levels]

    assert _native.supported_aes() == ("bitsliced", *present)


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_a_forced_level_takes_no_aes_instructions_beyond_its_own_age(isa):
    allowed = AES[: 1 + LEVELS.index(isa)]
    fastest = [name for name in _native.supported_aes() if name in allowed][-1]

    _native.use_isa(isa)

    assert _native.active_aes() == fastest
    assert run(PRINT_AES, isa) == fastest


@pytest.mark.parametrize("aes", _native.supported_aes())
def test_the_environment_forces_an_implementation_of_aes_at_every_level(aes):
    assert run(PRINT_AES, aes=aes) == aes
    assert run(PRINT_AES, "base", aes) == aes


def test_an_implementation_of_aes_that_does_not_exist_is_an_error_that_lists_what_does():
    code = (
        "from veilsum import _native\n"
        "try: _native.active_aes()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    known = " ".join(_native.supported_aes())
    assert run(code, aes="gpu") == (
        "ConfigError VEILSUM_AES asks for AES implementation 'gpu'; "
        f"this CPU and build run: {known}"
    )

    _native.use_aes("bitsliced")
    with pytest.raises(ConfigError, match=r"use_aes\(\) asks for AES implementation 'aes9'"):
        _native.use_aes("aes9")
    assert _native.active_aes() == "bitsliced"

    _native.use_aes("")
    assert _native.active_aes() == _native.supported_aes()[-1]


# --- compiler and devices --------------------------------------------------------------------


def test_the_compiler_is_named_with_its_version():
    name, version = _native.compiler().split(" ", 1)

    assert name in {"GNU", "Clang"}
    assert version[0].isdigit()


def test_a_machine_without_a_cuda_device_says_why():
    built, names, reason = _native.cuda_status()

    assert isinstance(built, bool)
    assert bool(names) != bool(reason)
